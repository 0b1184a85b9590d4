"""A cell in its other forms: JSON, DeepLab's JSON, and a vector of whole numbers; each of them lossless.

What a form cannot hold is a named error, never a silent change.
"""

from __future__ import annotations

import json
import operator as builtin_operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dpcdsl.cell import DEFAULT_FILTERS, MAX_BRANCHES, Branch, Cell, tensor_index
from dpcdsl.errors import Diagnostic, DpcError, Source, Span, nearest, shown
from dpcdsl.identity import CellId, cell_id, cell_of_id, is_id, read_id
from dpcdsl.json_text import Places, parse_json
from dpcdsl.operators import LARGEST_INTEGER, Operator
from dpcdsl.space import Space
from dpcdsl.syntax import LANGUAGE_VERSION, MAX_CHARACTERS, format_cell, parse, zoo

__all__ = [
    "FORMS",
    "cell_from_text",
    "from_deeplab",
    "from_json",
    "from_vector",
    "paper_id",
    "paper_space",
    "spell",
    "to_deeplab",
    "to_json",
    "to_vector",
]

#: The forms a cell can be written in. All of them can be read back.
FORMS = ("text", "line", "vector", "id", "deeplab", "json")


def spell(
    cell: Cell, form: str, *, name: str | None = None, space: Space | None = None, space_name: str | None = None
) -> str:
    """``cell`` in one of :data:`FORMS`.

    name: for the text. space: for the vector and the ID, by default the paper's with as many branches as the cell;
    space_name: what it is called in the ID.
    """
    match form:
        case "text":
            return format_cell(cell, name).rstrip("\n")
        case "line":
            return str(cell)
        case "vector":
            return json.dumps(to_vector(cell, space))
        case "id":
            return str(paper_id(cell) if space is None else cell_id(cell, space, space_name or ""))
        case "deeplab":
            return json.dumps(to_deeplab(cell))
        case "json":
            return json.dumps(to_json(cell))
    raise DpcError.of("DPC062", f"there is no form `{form}`", hint=f"forms: {', '.join(FORMS)}")


def cell_from_text(
    text: str,
    *,
    name: str = "<text>",
    folder: Path | None = None,
    space: Space | None = None,
    max_characters: int = MAX_CHARACTERS,
) -> Cell:
    """A cell in whichever of :data:`FORMS` the text is written. The options are those of :func:`dpcdsl.parse`.

    space: the one a vector or an ID belongs to. An ID needs it here (DPC073); :func:`dpcdsl.read_cell` looks up the
    space that the ID names.
    """
    source = Source(name, text)
    if is_id(text):
        if space is None:
            raise DpcError.of(
                "DPC073", "an ID means a cell only in its space", Span(source, 0, len(text)), hint="name it"
            )
        return cell_of_id(read_id(text), space)
    start = text.lstrip()[:1]
    if start == "{":
        return from_json(source, max_characters=max_characters)
    if start == "[":
        value = parse_json(source, max_characters)
        if value and all(isinstance(number, int) for number in value):
            try:
                return from_vector(value, space)
            except DpcError as error:
                raise error.within(span=Places(source)[()]) from None
        return from_deeplab(source, max_characters=max_characters)
    return parse(text, name=name, folder=folder, max_characters=max_characters).cell()


# JSON


def to_json(cell: Cell) -> dict[str, Any]:
    """The cell as a JSON object; its schema is ``Cell.model_json_schema()``, with the language's version as ``dpc``."""
    return {"dpc": LANGUAGE_VERSION, **cell.model_dump(mode="json")}


def from_json(text: str | Source, *, max_characters: int = MAX_CHARACTERS) -> Cell:
    """The cell of a JSON text such as :func:`to_json` makes."""
    source = text if isinstance(text, Source) else Source("<json>", text)
    value = parse_json(source, max_characters)
    try:
        return _cell_of_object(value)
    except _Misfit as misfit:
        raise _told(source, misfit.found) from None


#: Most mistakes of one kind that are looked for.
_ENOUGH = DpcError.limit + DpcError.most_counted


class _Misfit(Exception):  # noqa: N818 (becomes a DpcError where the text is known)
    def __init__(self, found: Sequence[tuple[Sequence[str | int], Diagnostic]]):
        self.found = found


def _cell_of_object(value: Any) -> Cell:
    found: list[tuple[Sequence[str | int], Diagnostic]] = []

    def report(path: Sequence[str | int], message: str, code: str = "DPC053", hint: str | None = None) -> None:
        found.append((path, Diagnostic(code, message, hint=hint)))

    if not isinstance(value, dict) or not isinstance(value.get("branches"), list):
        raise _Misfit(
            [((), Diagnostic("DPC053", "a cell in JSON is an object with a list `branches`", hint=_JSON_SHAPE))]
        )
    for key in [key for key in value if key not in ("dpc", "filters", "branches")][:_ENOUGH]:
        report([key], f"`{key[:40]}` does not belong to a cell", hint=_JSON_SHAPE)
    version = value.get("dpc", LANGUAGE_VERSION)
    if version != LANGUAGE_VERSION or isinstance(version, bool):
        report(["dpc"], f"version {LANGUAGE_VERSION} of the language is known here", "DPC005")
    branches: list[Branch] = []
    if len(value["branches"]) > MAX_BRANCHES:
        report(["branches"], _too_many(len(value["branches"])), "DPC021")
    for index, element in enumerate(value["branches"][:MAX_BRANCHES]):
        path: list[str | int] = ["branches", index]
        if not isinstance(element, dict) or element.keys() != {"input", "operator"}:
            report(path, "a branch is an object with `input` and `operator`", hint=_JSON_SHAPE)
            continue
        source = element["input"]
        tensor = tensor_index(source) if isinstance(source, str) else None
        if tensor is None:
            report([*path, "input"], '`input` is "F" or an earlier branch, such as "Y1"', "DPC010")
        elif tensor > index:
            report([*path, "input"], f"branch {index + 1} reads `{source}`, which is not an earlier branch", "DPC011")
        try:
            operator = Operator.model_validate(element["operator"])
        except DpcError as error:
            found += [([*path, "operator"], d) for d in error.diagnostics]
            continue
        if tensor is not None:
            branches.append(Branch(input=tensor, operator=operator))
    if found:
        raise _Misfit(found)
    try:
        return Cell(branches=tuple(branches), filters=value.get("filters", DEFAULT_FILTERS))
    except DpcError as error:
        where = (
            ["filters"] if error.diagnostics[0].place == "cell.filters" or error.codes == ("DPC017",) else ["branches"]
        )
        raise _Misfit([(where, d) for d in error.diagnostics]) from None


_JSON_SHAPE = 'write {"filters": 256, "branches": [{"input": "F", "operator": {"kind": "conv1x1", "parameters": {}}}]}'


# DeepLab's JSON: a list of {"input", "op", "kernel", "rate" | "grid_size"}


def to_deeplab(cell: Cell) -> list[dict[str, Any]]:
    """The cell as the authors' code reads it: rates and grids [height, width], inputs from 0, -1 for F.

    Raises :class:`DpcError` (DPC052) for an operator that is not the paper's, or filters other than 256, which that
    code takes from elsewhere.
    """
    found = [
        Diagnostic(
            "DPC052",
            f"DeepLab JSON has no operator `{branch.operator.kind}`",
            place=f"branch {number}",
            hint="it knows `conv1x1`, `sepconv3x3` and `avgpool`",
        )
        for number, branch in enumerate(cell.branches, 1)
        if branch.operator.kind not in ("conv1x1", "sepconv3x3", "avgpool")
    ]
    if cell.filters != DEFAULT_FILTERS:
        found.append(
            Diagnostic(
                "DPC052",
                f"DeepLab JSON does not hold the number of filters, {cell.filters}",
                hint=f"it is an option of that code; set `filters {DEFAULT_FILTERS}` to write the rest",
            )
        )
    if found:
        raise DpcError(found)
    return [_deeplab_branch(branch) for branch in cell.branches]


def _deeplab_branch(branch: Branch) -> dict[str, Any]:
    operator, source = branch.operator, branch.input - 1
    match operator.kind:
        case "conv1x1":
            return {"kernel": 1, "op": "conv", "input": source}
        case "sepconv3x3":
            return {"kernel": 3, "rate": list(operator["rate"]), "op": "conv", "input": source}
        case _:
            return {"grid_size": list(operator["grid"]), "op": "pyramid_pooling", "input": source}


def from_deeplab(text: str | Source | Sequence[Mapping[str, Any]], *, max_characters: int = MAX_CHARACTERS) -> Cell:
    """The cell of DeepLab's JSON, as text or as the parsed list.

    Any negative input is F. A kernel of 1 or [1, 1] is the 1×1 convolution, whatever its rate. The keys that the
    authors' code writes back into its configuration (``target_size``, and ``kernel`` of a pooling) are dropped.
    Raises :class:`DpcError` (DPC051) with every mistake in it.
    """
    if isinstance(text, str):
        text = Source("<deeplab>", text)
    value = parse_json(text, max_characters) if isinstance(text, Source) else text
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _told(text, [((), Diagnostic("DPC051", "a DeepLab cell is a list of branches", hint=_DEEPLAB_SHAPE))])
    found: list[tuple[Sequence[str | int], Diagnostic]] = []
    branches: list[Branch] = []
    for index, element in enumerate(value):
        if index == MAX_BRANCHES:
            found.append(((), Diagnostic("DPC021", _too_many(len(value)))))
        if index == MAX_BRANCHES or len(found) >= _ENOUGH:
            break
        found += [((index, *path), d) for path, d in islice(_deeplab_mistakes(index, element), _ENOUGH)]
        if not found:
            branches.append(Branch(input=max(element["input"], -1) + 1, operator=_deeplab_operator(element)))
    if found:
        raise _told(text, found)
    try:
        return Cell(branches=tuple(branches))
    except DpcError as error:
        raise _told(text, [((), d) for d in error.diagnostics]) from None


_DEEPLAB_SHAPE = 'write [{"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1}, …]'
_DEEPLAB_KEYS = ("input", "op", "kernel", "rate", "grid_size", "target_size")


def _told(text: Any, found: Sequence[tuple[Sequence[str | int], Diagnostic]]) -> DpcError:
    told = found[: DpcError.limit]
    more = len(found) - len(told)
    if isinstance(text, Source):
        places = Places(text)
        return DpcError((Diagnostic(d.code, d.message, places[path], d.hint) for path, d in told), more)
    return DpcError(
        (
            Diagnostic(d.code, d.message, hint=d.hint, place="cell" + "".join(f"[{part!r}]" for part in path))
            for path, d in told
        ),
        more,
    )


def _too_many(branches: int) -> str:
    return f"a cell has at most {MAX_BRANCHES} branches, not {branches}"


def _deeplab_mistakes(index: int, element: Any) -> Iterator[tuple[tuple[str, ...], Diagnostic]]:
    def wrong(message: str, *path: str, hint: str | None = None) -> tuple[tuple[str, ...], Diagnostic]:
        return path, Diagnostic("DPC051", message, hint=hint)

    if not isinstance(element, Mapping):
        yield wrong("a branch is an object", hint=_DEEPLAB_SHAPE)
        return
    for key in element:
        if key not in _DEEPLAB_KEYS:
            near = nearest(shown(key), _DEEPLAB_KEYS)
            yield wrong(f"a branch has no key `{shown(key)}`" + (f"; did you mean `{near}`?" if near else ""), key)
    source = element.get("input")
    if not _whole(source):
        yield wrong(
            "`input` must be a whole number: -1 for the feature map, else the number of an earlier branch from 0",
            *(["input"] if "input" in element else []),
        )
    elif isinstance(source, int) and source >= index:
        yield wrong(
            f"branch {index} reads branch {source}, which is not an earlier one",
            "input",
            hint="inputs count from 0, and -1 is the feature map",
        )
    match element.get("op"):
        case "conv":
            kernel = element.get("kernel")
            if kernel in (1, [1, 1], (1, 1)) and not isinstance(kernel, bool):
                return  # the rate is not looked at
            if kernel not in (3, [3, 3], (3, 3)):
                if "kernel" not in element:
                    yield wrong("a convolution needs `kernel`, 1 or 3")
                else:
                    yield wrong(f"a kernel is 1 or 3, not {shown(kernel)}", "kernel")
            yield from _pair_mistakes(element, "rate", wrong)
        case "pyramid_pooling":
            yield from _pair_mistakes(element, "grid_size", wrong)
        case other:
            found = json.dumps(other) if isinstance(other, str) else shown(other)
            what = f", not {shown(found)}" if "op" in element else ""
            yield wrong(f'`op` must be "conv" or "pyramid_pooling"{what}', *(["op"] if "op" in element else []))


def _pair_mistakes(element: Mapping[str, Any], key: str, wrong: Any) -> Iterator[tuple[tuple[str, ...], Diagnostic]]:
    value = element.get(key)
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(_whole(n) and 1 <= n <= LARGEST_INTEGER for n in value or ()):
        yield wrong(
            f"`{key}` must be [height, width], two whole numbers from 1 up",
            *([key] if key in element else []),
            hint=f'for example "{key}": [1, 6]',
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _deeplab_operator(element: Mapping[str, Any]) -> Operator:
    if element["op"] == "pyramid_pooling":
        return Operator.of("avgpool", grid=tuple(element["grid_size"]))
    if element["kernel"] in (1, [1, 1], (1, 1)):
        return Operator.of("conv1x1")
    return Operator.of("sepconv3x3", rate=tuple(element["rate"]))


# Vectors


def paper_space(branches: int = 5) -> Space:
    """The paper's space (section 3.1) with the given number of branches."""
    return zoo()["dpc"].space(B=branches)


def paper_id(cell: Cell) -> CellId:
    """The cell's ID in the paper's space with as many branches."""
    return cell_id(cell, paper_space(len(cell)), "dpc" if len(cell) == 5 else f"dpc(B={len(cell)})")


def to_vector(cell: Cell, space: Space | None = None) -> list[int]:
    """Two whole numbers for each branch of the space: the input (0 is F) and the operator's number in its set.

    A branch that is left out has -1 and -1. space: default the paper's with as many branches as the cell.
    Raises :class:`DpcError` (DPC055) if the space does not contain the cell.
    """
    space = paper_space(len(cell)) if space is None else space
    return [number for choice in space.placed(cell) for number in (choice or (-1, -1))]


def from_vector(vector: Sequence[int], space: Space | None = None) -> Cell:
    """The cell of a vector; the inverse of :func:`to_vector`. space: default the paper's with half as many branches.

    Raises :class:`DpcError` (DPC054) if a number is out of its range.
    """
    try:
        numbers = [builtin_operator.index(number) for number in vector if not isinstance(number, bool)]
        whole = len(numbers) == len(vector)
    except TypeError:
        whole = False
    if not whole:
        raise DpcError.of("DPC054", "a vector holds whole numbers and nothing else")
    if not numbers or len(numbers) % 2:
        raise DpcError.of(
            "DPC054",
            f"a vector has two numbers for each branch, and this has {len(numbers)}",
            hint="they are the input (0 is F) and the number of the operator in its set, from 0",
        )
    if len(numbers) // 2 > MAX_BRANCHES:
        raise DpcError.of("DPC021", _too_many(len(numbers) // 2))
    space = paper_space(len(numbers) // 2) if space is None else space
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return space.decode(None if pair == (-1, -1) else pair for pair in pairs)
