"""What to say when the text does not fit the grammar: what was found, what would fit, and how to mend it."""

from __future__ import annotations

import re

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
_ITEMS = ("cell", "ops", "space", "from")
_STATEMENTS = ("filters", "optional", "require")


def explain(source: Source, mistake: UnexpectedInput, start: str, base: int = 0) -> Diagnostic:
    """The diagnostic for what Lark could not read; ``base`` is where its text begins in ``source``."""
    text = source.text
    parser = getattr(mistake, "interactive_parser", None)
    expected = set(parser.accepts()) if parser is not None else set()
    at = base + (mistake.pos_in_stream or 0)
    at_end = getattr(getattr(mistake, "token", None), "type", None) == "$END" or not text[at:].strip()
    if at_end:
        at = len(text.rstrip()) or 0
    before = text[:at].rstrip()[-200:]
    found = "" if at_end else _word(text, at)
    span = Span(source, at, at + max(1, len(found)))
    special = _special(text, at, found, before, expected)
    if special is None and expected == {"STAR"}:  # the grammar has taken a word for a count of branches
        previous = re.compile(r"\w{1,64}\s*$").search(before)
        if previous:
            word = previous.group().rstrip()
            start_of_word = len(text[:at].rstrip()) - len(word)
            span = Span(source, start_of_word, start_of_word + len(word))
            special = _not_a_word(word)
    if special is not None:
        message, hint = special
        return Diagnostic("DPC002" if found else "DPC003", message, span, hint)
    wanted = _listed(expected, start)
    if at_end:
        what = "the tuple" if start == "branch_tuple" else "the text"
        return Diagnostic("DPC003", f"{what} ends too early: expected {wanted}", span)
    shown = found if found.isprintable() else f"U+{ord(found[0]):04X}"
    code = "DPC001" if isinstance(mistake, UnexpectedCharacters) else "DPC002"
    return Diagnostic(code, f"expected {wanted}, found `{shown}`", span)


def _word(text: str, at: int) -> str:
    match = re.compile(r"[A-Za-z0-9_]{1,40}|\S").match(text, at)
    return match.group() if match else text[at : at + 1]


def _listed(expected: set[str], start: str) -> str:
    expected = set(expected)
    if {"TUPLE", "RBRACE"} <= expected or "TUPLE" in expected:  # inside a body
        expected -= {"INT", "NAME", "FILTERS", "OPTIONAL", "REQUIRE"}
    if "PAIR" in expected and "LBRACE" in expected:  # a parameter's value
        return "a value such as `6x6` or `{1, 3..21 step 3} x {6}`"
    if "RELATION" in expected:
        expected -= {"LPAR"}
    phrases = list(dict.fromkeys(phrase for name, phrase in _PHRASES.items() if name in expected))
    if "NAME" in expected and not phrases:
        phrases.append("a name")
    if start == "branch_tuple" and "$END" in expected:
        phrases = ["nothing after the tuple"]
    phrases = phrases[:6]
    if len(phrases) < 2:
        return "".join(phrases) or "something else"
    return ", ".join(phrases[:-1]) + " or " + phrases[-1]


def _special(text: str, at: int, found: str, before: str, expected: set[str]) -> tuple[str, str] | None:
    """Mistakes that people make, by name: (message, remedy)."""
    rest = text[at : at + 200]
    if found in (",", ")") and "PAIR" in expected:
        name = before.split()[-1]
        return f"`{name}` has no value", f"write `{name} 6x6`, or `{name} 2` where it takes one number"
    if re.match(r"\d", found) and "PARAMETER" in expected and re.search(r"[(,|]\s*(rate|grid)$", before):
        name = before.split()[-1].lstrip("(,|")
        return f"`{name}` is a parameter and comes after its operator", f"write, say, `sepconv3x3 {name} {found}`"
    if "OPERATOR" not in expected and re.search(r"\b(rate|grid)\s*\d*$", before):
        named = re.search(r"(\w+)\s*(\d*)$", before)
        if named and (found in ("*", "×", "_X", ",", "[", "(", "-", "/", "by") or re.match(r"[Xx]\s*\d", rest)):
            number = re.match(r"\D*(\d*)\D*(\d*)", (named[2] + " " if named[2] else "") + rest)
            pair = f"{number[1] or 1}x{number[2] or 6}" if number else "1x6"
            return "a pair is written HEIGHTxWIDTH", f"write `{named[1]} {pair}`, with `x` between the two numbers"
    if "OUTPUT" in expected and found.isdigit() and re.search(r"\b(rate|grid)\s*\d+\s*,$", before):
        first = re.search(r"(\w+)\s*(\d+)\s*,$", before)
        assert first is not None
        return "a pair is written HEIGHTxWIDTH", f"write `{first[1]} {first[2]}x{found}`"
    if rest.startswith(("//", "/*", "--")):
        return "this is not a comment", "comments start with `#`"
    if found == ";":
        return "`;` has no place here", "branches and statements are simply written one after another"
    if expected == {"COMMA"} and re.match(r"\w", found):
        return f"expected `,`, found `{found}`", "the parts of a branch are separated by commas: `(F, conv1x1, Y1)`"
    if found == "(" and "RPAR" in expected and "TUPLE" not in expected:
        return "the tuple before is not closed: expected `)`, found `(`", "close it with `)`"
    if found == "," and "TUPLE" in expected:
        return "no comma between branches", "write the tuples one after another: `(F, conv1x1, Y1) (Y1, conv1x1, Y2)`"
    if found == ")" and "OUTPUT" in expected:
        return "the tuple has no output", "a branch is `(input, operator, output)`; write `_` to number it by itself"
    if found == ")" and "COMMA" in expected and "TUPLE" not in expected and "(" in before:
        lacks = "no output" if "," in before[before.rindex("(") :] else "no operator and no output"
        return f"the tuple has {lacks}", "a branch is `(input, operator, output)`, such as `(F, conv1x1, Y1)`"
    if found == ")" and "INPUT" in expected:
        return "the tuple is empty", "a branch is `(input, operator, output)`, such as `(F, conv1x1, Y1)`"
    if found == "," and expected == {"RPAR"}:
        return "a branch has three parts: input, operator, output", "leave out what follows the output"
    if found == "(" and "CELL" in expected and "FROM" in expected:
        return "a branch outside a cell", "put it between the braces of `cell NAME { … }`"
    if found in "{(=" and found and expected & {"CELL_NAME", "SPACE_NAME", "OPS_NAME"}:
        kind = "cell" if "CELL_NAME" in expected else "space" if "SPACE_NAME" in expected else "operator set"
        return f"the {kind} has no name", f"write a name before `{found}`"
    if found == "=" and expected == {"LBRACE"}:
        return "a cell is written with braces", "write `cell NAME { (F, conv1x1, Y1) … }`, without `=`"
    if found == "{" and expected == {"EQUAL"}:
        return "an operator set is written with `=`", "write `ops NAME = conv1x1 | sepconv3x3 rate 6x6`"
    if found in ("<", ">", "=", "!") and rest[:2] in ("=<", "=>", "<>") and "RELATION" in expected:
        return f"`{rest[:2]}` is not a comparison", "comparisons are `<=`, `<`, `>=`, `>`, `==`, `!=`"
    if found == "=" and "RELATION" in expected:
        return "`=` does not compare", "write `==` for equal"
    if found in ("&", "|") and "_AND" in expected:
        return f"`{found}` does not join conditions", "write `and` or `or`"
    if found.isdigit() and "MEASURE" in expected:
        return (
            "a comparison starts with its measure",
            "write `params(F=320) <= 400K` rather than `400K >= params(F=320)`",
        )
    if found in ("'", "“", "”", "‘", "’") and expected & {"STRING", "ZOO"}:
        return "a file name stands in straight double quotes", 'write `from "mine.dpc" import NAME`'
    if expected & {"STRING", "ZOO"} and (file := re.match(r"[\w./]+", rest)):
        return (
            "imports name a file in quotes, or `zoo`",
            f'write `from "{file[0]}" import NAME` or `from zoo import NAME`',
        )
    if found == '"' and expected & {"STRING"}:
        return "the file name is not closed", 'write `from "mine.dpc" import NAME` on one line'
    if found == "." and re.search(r"\d(\.\.)?$", before):
        return "a range is written with two dots", "write `3..21` or `3..21 step 3`"
    if found == "-" and "INT" in expected:
        return "numbers here are whole and positive", "write a number from 1 up"
    if found in ("rate", "grid") and "OPERATOR" in expected:
        return f"`{found}` is a parameter and comes after its operator", f"write, say, `sepconv3x3 {found} 6x6`"
    return _misspelt(found, expected)


def _misspelt(found: str, expected: set[str]) -> tuple[str, str] | None:
    """A word that is nearly the keyword that belongs here."""
    words = {name: name.strip("_").lower() for name in expected}
    keywords = [word for name, word in words.items() if _PHRASES.get(name) == f"`{word}`"]
    near = nearest(found, keywords) if re.match(r"[A-Za-z]", found) else None
    if near and near != found:
        return f"`{found}` is not a word of the language; did you mean `{near}`?", f"write `{near}`"
    return None


def _not_a_word(word: str) -> tuple[str, str]:
    near = nearest(word, (*_ITEMS, *_STATEMENTS))
    if near:
        return f"`{word}` is not a word of the language; did you mean `{near}`?", f"write `{near}`"
    return (
        f"`{word}` does not start anything",
        "a file holds `cell`, `ops`, `space` and `from … import`; a body holds branches such as `(F, conv1x1, Y1)`",
    )
