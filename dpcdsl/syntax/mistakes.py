"""What to say when the text does not fit the grammar: what was found, what would fit, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import dataclass

from lark import UnexpectedCharacters, UnexpectedInput

from dpcdsl.errors import Diagnostic, Source, Span, nearest

__all__ = ["explain"]

# Terminals in the language's words, in the order in which they are listed. Several terminals share a phrase.
_PHRASES: dict[str, str] = {
    "CELL_NAME": "a name for the cell",
    "OPS_NAME": "a name for the operator set",
    "SPACE_NAME": "a name for the space",
    "ALIAS": "a name",
    "BASE": "the name of a space or a cell",
    "FORMAL": "the name of a parameter, such as `B`",
    "INPUT": "an input (`F`, `Y1`, … or `any`)",
    "OPERATOR": "an operator such as `sepconv3x3 rate 6x6`",
    "OUTPUT": "the output (`Y1`, `Y2`, … or `_`)",
    "TUPLE": "a branch such as `(F, conv1x1, Y1)`",
    "MEASURE": "a measure such as `params(F=320)`",
    "RELATION": "a comparison (`<=`, `<`, `>=`, `>`, `==`, `!=`)",
    "NUMBER": "a number such as `400000` or `0.4M`",
    "PAIR": "a pair such as `6x6`",
    "INT": "a whole number",
    "_X": "`x` and the width",
    "_STEP": "`step`",
    "_DPC": "`dpc 1`",
    "CELL": "`cell`",
    "OPS": "`ops`",
    "SPACE": "`space`",
    "FROM": "`from`",
    "_IMPORT": "`import`",
    "_AS": "`as`",
    "STRING": 'a file name in quotes such as `"mine.dpc"`',
    "ZOO": "`zoo`",
    "OPTIONAL": "`optional`",
    "FILTERS": "`filters`",
    "REQUIRE": "`require`",
    "_WHERE": "`where`",
    "NOT": "`not`",
    "_AND": "`and`",
    "_OR": "`or`",
    "PARAMETER": "a parameter such as `rate 6x6`",
    "EQUAL": "`=`",
    "STAR": "`*`",
    "VBAR": "`|`",
    "__ANON_0": "`..`",
    "LPAR": "`(`",
    "LBRACE": "`{`",
    "COMMA": "`,`",
    "RPAR": "`)`",
    "RBRACE": "`}`",
    "$END": "the end of the text",
}
_BLANK = " \t\r\n\ufeff"  # as the grammar ignores it
_ITEMS = ("cell", "ops", "space", "from")
_STATEMENTS = ("filters", "optional", "require")


@dataclass(frozen=True)
class _Spot:
    """Where reading stopped: the word there, what surrounds it, and the terminals that would fit.

    touching: nothing stands between the word and what is before it.
    """

    found: str
    before: str
    after: str
    expected: frozenset[str]
    in_tuple: bool
    touching: bool

    def sees(self, *terminals: str) -> bool:
        return not self.expected.isdisjoint(terminals)

    def looking_back(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.before)


def explain(source: Source, mistake: UnexpectedInput, start: str, base: int = 0) -> Diagnostic:
    """The diagnostic for what Lark could not read; ``base`` is where its text begins in ``source``."""
    text = source.text
    parser = getattr(mistake, "interactive_parser", None)
    expected = frozenset(parser.accepts()) if parser is not None else frozenset()
    at = base + (mistake.pos_in_stream or 0)
    at_end = getattr(getattr(mistake, "token", None), "type", None) == "$END" or not text[at:].strip(_BLANK)
    if at_end:
        at = len(text.rstrip(_BLANK))
    found = "" if at_end else _word(text, at)
    before = text[max(0, at - 200) : at].rstrip()
    in_tuple = start == "branch_tuple"
    spot = _Spot(found, before, text[at : at + 200], expected, in_tuple, not text[at - 1 : at].isspace())
    span = Span(source, at, at + max(1, len(found)))
    named = _named(spot) or _misspelt(found, expected)
    if named is None and expected == {"STAR"}:  # the grammar has taken a word for a count of branches
        number = spot.looking_back(r"[<>=] *(\d[\d.]*[ _]?\w+)$")
        word = number or spot.looking_back(r"(\w{1,64})$")
        if word is not None:
            end = at - (len(text[max(0, at - 200) : at]) - len(before))
            span = Span(source, end - len(word[1]), end)
            named = _not_a_number(word[1]) if number else _not_a_word(word[1], text[: span.start])
    if named is not None:
        code = "DPC003" if at_end and span.start == at else "DPC002"
        return Diagnostic(code, named[0], span, named[1])
    wanted = _listed(expected, in_tuple)
    if at_end:
        what = "the tuple" if in_tuple else "the text"
        return Diagnostic("DPC003", f"{what} ends too early: expected {wanted}", span)
    shown = found if found.isprintable() else f"U+{ord(found[0]):04X}"
    code = "DPC001" if isinstance(mistake, UnexpectedCharacters) else "DPC002"
    return Diagnostic(code, f"expected {wanted}, found `{shown}`", span)


def _word(text: str, at: int) -> str:
    match = re.compile(r"[A-Za-z0-9_]{1,40}|\S").match(text, at)
    return match.group() if match else text[at : at + 1]


def _listed(expected: Set[str], in_tuple: bool) -> str:
    if "TUPLE" in expected:  # inside a body
        expected = expected - {"INT", "NAME", "FILTERS", "OPTIONAL", "REQUIRE"}
    if "PAIR" in expected and "LBRACE" in expected:  # a parameter's value
        return "a value such as `6x6` or `{1, 3..21 step 3} x {6}`"
    if "RELATION" in expected:
        expected = expected - {"LPAR"}
    phrases = list(dict.fromkeys(phrase for name, phrase in _PHRASES.items() if name in expected))
    if "NAME" in expected and not phrases:
        phrases.append("a name")
    if in_tuple and "$END" in expected:
        phrases = ["nothing after the tuple"]
    phrases = phrases[:6]
    if len(phrases) < 2:
        return "".join(phrases) or "something else"
    return ", ".join(phrases[:-1]) + " or " + phrases[-1]


_Test = Callable[[_Spot], "re.Match[str] | bool | None"]
_NUMBER = "write all digits (`400000`), or `400K`, `0.4M`, `3G` with a capital letter"
_SHAPE = "a branch is `(input, operator, output)`, such as `(F, conv1x1, Y1)`"

# Mistakes that people make: when, what is wrong, how to mend it. The first that fits is told. In the texts {0} is the
# word found, and {1}, {2} are the groups of the test's match.
_NAMED: tuple[tuple[_Test, str, str], ...] = (
    # Parameters
    (
        lambda s: s.found in (",", ")") and s.sees("PAIR") and s.looking_back(r"\b(Y\d+|_)$"),
        "expected `,` before `{1}`",
        "the parts of a branch are separated by commas: `(F, conv1x1, Y1)`",
    ),
    (
        lambda s: s.found in (",", ")", "x") and s.sees("PAIR") and s.looking_back(r"\dx\d+ ?(x\d+)$"),
        "a pair has two numbers, and `{1}` is one too many",
        "write `rate 1x6`",
    ),
    (
        lambda s: s.found == "=" and s.sees("PAIR") and s.looking_back(r"(\w+)$"),
        "no `=` between a parameter and its value",
        "write `{1} 6x6`",
    ),
    (
        lambda s: s.found in (",", ")") and s.sees("PAIR") and s.looking_back(r"(\w+)$"),
        "`{1}` has no value",
        "write `{1} 6x6`, or `{1} 2` where it takes one number",
    ),
    (
        lambda s: s.found[:1].isdigit() and s.sees("PARAMETER") and s.looking_back(r"[(,|]\s*(rate|grid)$"),
        "`{1}` is a parameter and comes after its operator",
        "write, say, `sepconv3x3 {1} {0}`",
    ),
    (
        lambda s: s.found in ("rate", "grid") and s.sees("OPERATOR"),
        "`{0}` is a parameter and comes after its operator",
        "write, say, `sepconv3x3 {0} 6x6`",
    ),
    (
        lambda s: re.match(r"\d+(x\d+)?$", s.found) and s.sees("PARAMETER") and s.looking_back(r"[(,|]\s*(\w+)$"),
        "`{0}` needs the name of its parameter",
        "write, say, `{1} rate {0}`, or `{1} grid {0}` where it takes a grid",
    ),
    (
        lambda s: s.found == "(" and s.in_tuple and s.sees("COMMA") and s.looking_back(r"[,|]\s*(\w+)$"),
        "parameters are written without parentheses",
        "write, say, `{1} rate 1x6`",
    ),
    (
        lambda s: re.match(r"x\d+$", s.found) and s.looking_back(r"\{[^}]*\d$"),
        "a set holds single numbers",
        "write `rate {{1, 6}} x {{3, 6}}` for all pairs, or `sepconv3x3 rate 1x6 | sepconv3x3 rate 6x3`",
    ),
    (
        lambda s: s.found in ("*", "×", "X", ",", "-", "/", "by") and s.looking_back(r"\b(rate|grid) *(\d+)$"),
        "a pair is written HEIGHTxWIDTH",
        "write `{1} {2}x6`, with `x` between the two numbers",
    ),
    (
        lambda s: s.found in ("[", "(") and s.looking_back(r"\b(rate|grid)$"),
        "a pair is written HEIGHTxWIDTH",
        "write `{1} 1x6`, without brackets",
    ),
    (
        lambda s: s.found.isdigit() and s.sees("OUTPUT") and s.looking_back(r"\b(rate|grid) *(\d+) *,$"),
        "a pair is written HEIGHTxWIDTH",
        "write `{1} {2}x{0}`",
    ),
    (
        lambda s: s.found == "." and s.looking_back(r"^dpc *\d+$|\ndpc *\d+$"),
        "the version is one whole number",
        "write `dpc 1`",
    ),
    (
        lambda s: s.found == "." and s.looking_back(r"\b(rate|grid) *(\d+)$"),
        "a range stands in braces",
        "write `{1} {{{2}..21}} x {{6}}`",
    ),
    (
        lambda s: s.found == "." and s.looking_back(r"\d(\.\.)?$"),
        "a range is written with two dots",
        "write `3..21` or `3..21 step 3`",
    ),
    (lambda s: s.found == "-" and s.sees("NUMBER"), "numbers are not negative", "write a number from 0 up"),
    (
        lambda s: s.found == "-" and s.sees("INT"),
        "numbers here are whole and positive",
        "write a number from 1 up",
    ),
    # Tuples
    (lambda s: s.found == ")" and s.sees("INPUT"), "the tuple is empty", _SHAPE),
    (
        lambda s: s.found == ")" and s.in_tuple and s.sees("COMMA") and s.looking_back(r"\([^,]*$"),
        "the tuple has no operator and no output",
        _SHAPE,
    ),
    (lambda s: s.found == ")" and s.in_tuple and s.sees("COMMA", "OUTPUT"), "the tuple has no output", _SHAPE),
    (
        lambda s: s.found == "," and s.in_tuple and s.expected == {"RPAR"},
        "a branch has three parts: input, operator, output",
        "leave out what follows the output",
    ),
    (
        lambda s: s.found == "(" and s.in_tuple,
        "the tuple before is not closed: expected {expected}, found `(`",
        "close it with `)`",
    ),
    (
        lambda s: s.in_tuple and s.expected == {"COMMA"} and re.match(r"\w", s.found),
        "expected `,`, found `{0}`",
        "the parts of a branch are separated by commas: `(F, conv1x1, Y1)`",
    ),
    (
        lambda s: s.touching and re.match(r"[A-Za-z_]", s.found) and s.looking_back(r"[<>=] *(\d[\d.]*)$"),
        "`{1}{0}` is not a number",
        _NUMBER,
    ),
    (
        lambda s: s.found == "," and s.looking_back(r"[<>=] *\d+$"),
        "numbers are written without commas",
        "write `400000` or `400K`",
    ),
    (
        lambda s: s.found == "," and s.sees("TUPLE"),
        "no comma between branches",
        "write the tuples one after another: `(F, conv1x1, Y1) (Y1, conv1x1, Y2)`",
    ),
    (
        lambda s: s.found == "(" and {"CELL", "FROM"} <= s.expected,
        "a branch outside a cell",
        "put it between the braces of `cell NAME {{ … }}`",
    ),
    # Definitions
    (lambda s: s.found in ("{", "(", "=") and s.sees("CELL_NAME"), "the cell has no name", "write a name before `{0}`"),
    (lambda s: s.found in ("{", "(", "=") and s.sees("SPACE_NAME"), "the space has no name", "write one before `{0}`"),
    (lambda s: s.found in ("{", "=") and s.sees("OPS_NAME"), "the operator set has no name", "write one before `{0}`"),
    (
        lambda s: s.found == "=" and s.expected == {"LBRACE"},
        "a cell is written with braces",
        "write `cell NAME {{ (F, conv1x1, Y1) … }}`, without `=`",
    ),
    (
        lambda s: s.found == "{" and s.expected == {"EQUAL"},
        "an operator set is written with `=`",
        "write `ops NAME = conv1x1 | sepconv3x3 rate 6x6`",
    ),
    (
        lambda s: s.found == "," and s.looking_back(r"\bops\s+\w+\s*=[^=]*$"),
        "choices are separated by `|`, not by commas",
        "write `ops NAME = conv1x1 | sepconv3x3 rate 6x6`",
    ),
    (
        lambda s: s.found.isdigit() and s.sees("FORMAL") and s.looking_back(r"(\w+) *\([^()]*$"),
        "a parameter is given by its name",
        "write, say, `{1}(B={0})`",
    ),
    # Conditions
    (
        lambda s: s.found.isdigit() and s.sees("OPERATOR") and not s.in_tuple and s.looking_back(r"(\w+) *\([^()]*$"),
        "an argument is given by its name",
        "write, say, `{1}(F={0})`",
    ),
    (
        lambda s: s.sees("RELATION") and re.match(r"(=<|=>|<>)", s.after),
        "`{1}` is not a comparison",
        "comparisons are `<=`, `<`, `>=`, `>`, `==`, `!=`",
    ),
    (lambda s: s.found == "=" and s.sees("RELATION"), "`=` does not compare", "write `==` for equal"),
    (lambda s: s.found in ("&", "|") and s.sees("_AND"), "`{0}` does not join conditions", "write `and` or `or`"),
    (
        lambda s: s.found.isdigit() and s.sees("MEASURE"),
        "a comparison starts with its measure",
        "write `depth <= 3` rather than `3 >= depth`, and `depth >= 2 and depth <= 4` for both ends",
    ),
    # Imports
    (
        lambda s: s.found in ("'", "“", "”", "‘", "’") and s.sees("STRING"),
        "a file name stands in straight double quotes",
        'write `from "mine.dpc" import NAME`',
    ),
    (
        lambda s: s.sees("STRING") and re.match(r"([\w./]+)", s.after),
        "imports name a file in quotes, or `zoo`",
        'write `from "{1}" import NAME` or `from zoo import NAME`',
    ),
    (
        lambda s: s.found == '"' and s.sees("STRING"),
        "the file name is not closed",
        'write `from "mine.dpc" import NAME` on one line',
    ),
    # Signs of other languages
    (lambda s: s.after.startswith(("//", "/*", "--")), "this is not a comment", "comments start with `#`"),
    (lambda s: s.found == ";", "`;` has no place here", "branches and statements are simply written one after another"),
)


def _named(spot: _Spot) -> tuple[str, str] | None:
    """What is wrong and how to mend it, if it is one of the mistakes that have a name."""
    for test, message, remedy in _NAMED:
        hit = test(spot)
        if hit:
            groups = hit.groups("") if isinstance(hit, re.Match) else ()
            expected = _listed(spot.expected, spot.in_tuple)
            texts = (text.format(spot.found, *groups, expected=expected) for text in (message, remedy))
            return next(texts), next(texts)
    return None


def _misspelt(found: str, expected: Set[str]) -> tuple[str, str] | None:
    """A word that is nearly the keyword that belongs here."""
    words = {name: name.strip("_").lower() for name in expected}
    keywords = [word for name, word in words.items() if _PHRASES.get(name) == f"`{word}`"]
    near = nearest(found, keywords) if re.match(r"[A-Za-z]", found) else None
    if near and near != found:
        return f"`{found}` is not a word of the language; did you mean `{near}`?", f"write `{near}`"
    return None


def _not_a_number(word: str) -> tuple[str, str]:
    return f"`{word}` is not a number", _NUMBER


def _not_a_word(word: str, before: str) -> tuple[str, str]:
    near = nearest(word, (*_ITEMS, *_STATEMENTS))
    if word in _ITEMS:
        code = re.sub(r"#[^\n]*", "", before)
        if code.count("{") > code.count("}"):
            return f"the body above is not closed: expected `}}` before `{word}`", "close it with `}`"
        return f"`{word}` cannot follow bare branches", "a file holds either definitions, or the branches of one cell"
    if word == "where":
        return "`where` belongs behind `space NAME = BASE`", "in a body, write `require`"
    if word == "import":
        return "an import starts with `from`", "write `from zoo import NAME`"
    if near:
        return f"`{word}` is not a word of the language; did you mean `{near}`?", f"write `{near}`"
    return (
        f"`{word}` does not start anything",
        "a file holds `cell`, `ops`, `space` and `from … import`; a body holds branches such as `(F, conv1x1, Y1)`",
    )
