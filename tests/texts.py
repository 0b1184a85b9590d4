"""Random texts of the language for tests: valid ones in any layout, and broken ones. Independent of the formatter."""

from __future__ import annotations

from random import Random

RATES = (1, 3, 6, 9, 12, 15, 18, 21)
GRIDS = (1, 2, 4, 8)


class Writer:
    """Writes valid text, token by token, with white space and comments of its own choosing between them."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.parts: list[str] = []
        self.comments: list[str] = []
        self.wild = rng.random() < 0.7  # the rest is laid out plainly

    def put(self, *tokens: str) -> None:
        for token in tokens:
            self.parts.append(token)
            self.gap()

    def gap(self) -> None:
        rng = self.rng
        if not self.wild:
            self.parts.append(" ")
            return
        self.parts.append(rng.choice([" ", " ", " ", "  ", "\t", "\n", "\n\n\n", "\r\n"]))
        if rng.random() < 0.06:
            comment = "#" + rng.choice(["", " a (note", "## } {", ' "quoted', " )", " cell x {", " é…"])
            self.comments.append(comment)
            self.parts.append(comment + rng.choice(["\n", "\r\n", "\n\n"]))

    @property
    def text(self) -> str:
        return "".join(self.parts)

    # Pieces

    def operator(self) -> list[str]:
        kind = self.rng.choice(["conv1x1", "sepconv3x3", "sepconv3x3", "avgpool"])
        if kind == "conv1x1":
            return [kind]
        name, values = ("rate", RATES) if kind == "sepconv3x3" else ("grid", GRIDS)
        height, width = self.rng.choice(values), self.rng.choice(values)
        return [kind, name, *self.rng.choice([[f"{height}x{width}"], [str(height), "x", str(width)]])]

    def axis(self, top: int, parameter: str | None = None) -> list[str]:
        rng = self.rng
        parts: list[str] = []
        for _ in range(rng.randint(1, 3)):
            if parts:
                parts.append(",")
            first = rng.randint(1, top)
            parts.append(str(first))
            if rng.random() < 0.4:
                last = str(rng.randint(first, top + 9))
                parts += ["..", parameter if parameter and rng.random() < 0.3 and first == 1 else last]
                if rng.random() < 0.5:
                    parts += ["step", str(rng.randint(1, 5))]
        return ["{", *parts, "}"]

    def choice(self, parameter: str | None = None) -> list[str]:
        """Alternatives, some with sets."""
        rng = self.rng
        parts: list[str] = []
        for _ in range(rng.randint(1, 3)):
            if parts:
                parts.append("|")
            if rng.random() < 0.5:
                parts += self.operator()
            else:
                kind, name = rng.choice([("sepconv3x3", "rate"), ("avgpool", "grid")])
                sides = [rng.choice([self.axis(9, parameter), [str(rng.randint(1, 9))]]) for _ in range(2)]
                parts += [kind, name, *sides[0], "x", *sides[1]]
        return parts

    def cell(self, name: str | None, branches: int) -> None:
        rng = self.rng
        if name is not None:
            self.put("cell", name, "{")
        if rng.random() < 0.3:
            self.put("filters", str(rng.choice([1, 64, 256, 65536])))
        for number in range(1, branches + 1):
            source = rng.randrange(number)
            output = rng.choice([f"Y{number}", "_"])
            self.put("(", f"Y{source}" if source else "F", ",", *self.operator(), ",", output, ")")
        if name is not None:
            self.put("}")

    def condition(self, cells: list[str], sets: list[str], depth: int = 0) -> None:
        rng = self.rng
        if depth < 3 and rng.random() < 0.45:
            form = rng.randrange(3)
            if form == 0:
                self.put("not")
                self.wrapped(cells, sets, depth)
                return
            for number in range(rng.randint(2, 3)):
                if number:
                    self.put("and" if form == 1 else "or")
                self.wrapped(cells, sets, depth)
            return
        measure = rng.randrange(7)
        if measure == 0:
            self.put("params", "(", "F", "=", str(rng.randint(1, 4096)), ")")
        elif measure == 1:
            arguments = [["F", "=", "320"], ["at", "=", f"{rng.randint(1, 99)}x{rng.randint(1, 99)}"]]
            rng.shuffle(arguments)
            self.put("madds", "(", *arguments[0], ",", *arguments[1], ")")
        elif measure == 2:
            self.put(rng.choice(["depth", "branches"]))
        elif measure == 3:
            self.put("uses", "(", *rng.choice([["avgpool"], ["conv1x1", "|", "sepconv3x3"], self.choice()]), ")")
        elif measure == 4 and sets:
            self.put("uses", "(", rng.choice(sets), ")")
        elif measure == 5 and cells:
            self.put("distance", "(", rng.choice(cells), ")")
        else:
            self.put("distance", "(", "(", "F", ",", *self.operator(), ",", "_", ")", ")")
        self.put(rng.choice(["<=", "<", ">=", ">", "==", "!="]))
        self.put(
            rng.choice(["0", "3", "400K", "0.40M", "3.0G", "1.5T", "2986000100", "123456789012345678901234567890"])
        )

    def wrapped(self, cells: list[str], sets: list[str], depth: int) -> None:
        self.put("(")
        self.condition(cells, sets, depth + 1)
        self.put(")")

    def space(self, name: str, cells: list[str], sets: list[str]) -> None:
        rng = self.rng
        parameters = rng.random() < 0.5
        self.put("space", name)
        if parameters:
            self.put("(", "B", "=", str(rng.randint(1, 6)), ")")
        self.put("{")
        self.put("(", rng.choice(["F", "any"]), ",", *self.choice("B" if parameters else None), ",", "Y1", ")")
        number = 1
        for _ in range(rng.randint(0, 4)):
            kind = rng.randrange(4)
            count = rng.randint(1, 3)
            operators = [rng.choice(sets)] if sets and rng.random() < 0.4 else self.choice()
            if kind == 0:
                if rng.random() < 0.4:
                    self.put("optional")
                self.put(*(["B"] if parameters and rng.random() < 0.5 else [str(count)]), "*")
                self.put("(", "any", ",", *operators, ",", "_", ")")
                break
            if kind == 1:
                self.put("optional")
            self.put("(", *rng.choice([["any"], ["F"], ["{", "F", ",", "Y1", "}"]]), ",", *operators, ",", "_", ")")
            number += 1
        if rng.random() < 0.3:
            self.put("filters", "B" if parameters and rng.random() < 0.5 else "128")
        for _ in range(rng.randint(0, 2)):
            self.put("require")
            self.condition(cells, sets)
        self.put("}")

    def file(self) -> None:
        rng = self.rng
        self.parts.append(rng.choice(["", "", "\n\n", "\ufeff", "# first\n"]))
        if self.parts[-1].startswith("#"):
            self.comments.append("# first")
        if rng.random() < 0.6:
            self.put("dpc", "1")
        cells: list[str] = []
        sets: list[str] = []
        spaces: list[str] = []
        if rng.random() < 0.5:
            self.put("from", "zoo", "import", "top1", ",", "dpc", "as", "everything", ",", "paper")
            cells, sets, spaces = ["top1"], ["paper"], ["everything"]
        for number in range(rng.randint(0, 5)):
            kind = rng.randrange(4)
            if kind == 0:
                self.cell(f"c{number}", rng.choice([1, 2, 5, 12]))
                cells.append(f"c{number}")
            elif kind == 1:
                self.put("ops", f"o{number}", "=", *self.choice())
                sets.append(f"o{number}")
            elif kind == 2 or not spaces:
                self.space(f"s{number}", cells, sets)
                spaces.append(f"s{number}")
            else:
                base = rng.choice(spaces + cells)
                self.put("space", f"s{number}", "=", base)
                if base == "everything" and rng.random() < 0.5:
                    self.put("(", "B", "=", "3", ")")
                if rng.random() < 0.6:
                    self.put("where")
                    self.condition(cells, sets)
                spaces.append(f"s{number}")
        if rng.random() < 0.3:
            self.comments.append("# last")
            self.parts.append("# last")


def valid_file(rng: Random) -> tuple[str, list[str]]:
    """A valid text and its comments."""
    writer = Writer(rng)
    writer.file()
    return writer.text, [comment.rstrip() for comment in writer.comments]


def bare_cell(rng: Random, branches: int) -> str:
    writer = Writer(rng)
    writer.cell(None, branches)
    return writer.text


_VOCABULARY = (
    "dpc 1 cell ops space where require filters optional any from import as and or not x step zoo F Y1 Y2 Y7 _ a "
    "b top1 ( ) { } , | * = .. <= == ( ) { } , 1x6 3 0 99999999999999999999 0.4M 5K conv1x1 sepconv3x3 rate avgpool "
    'grid params madds depth branches uses distance at # " \n \t \x00 é [ ] : - \ud800 9.9.9 (F,conv1x1,_)'
)
_WORDS = _VOCABULARY.split(" ")  # by blanks alone, so that the other white space stays


def mutated(rng: Random, text: str) -> str:
    """``text`` with a few things deleted, doubled, exchanged or put in."""
    for _ in range(rng.randint(1, 4)):
        if not text:
            break
        at = rng.randrange(len(text))
        end = min(len(text), at + rng.choice([1, 1, 2, 5, 40]))
        move = rng.randrange(5)
        if move == 0:
            text = text[:at] + text[end:]
        elif move == 1:
            text = text[:at] + text[at:end] * rng.randint(2, 4) + text[end:]
        elif move == 2:
            text = text[:at] + rng.choice(_WORDS) + text[at:]
        elif move == 3:
            text = (
                text[:at] + chr(rng.choice([0, 9, 10, 34, 35, 40, 41, 123, 125, 0x200B, 0xFEFF, 0x1F600])) + text[end:]
            )
        else:
            lines = text.split("\n")
            rng.shuffle(lines)
            text = "\n".join(lines)
    return text


def nonsense(rng: Random) -> str:
    if rng.random() < 0.3:
        return "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0x2FF), 0x10FFFF])) for _ in range(rng.randrange(60))
        )
    return rng.choice([" ", "", "\n"]).join(rng.choice(_WORDS) for _ in range(rng.randrange(40)))
