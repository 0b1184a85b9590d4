"""Operators: kinds, their parameters, and the registry through which a user adds a kind of his own.

A kind says what it is called, which parameters it takes, and which :mod:`layers <dpcdsl.layers>` it stands for. The
paper's three kinds (section 3.1) are registered at the end of this module, through the door that everyone uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from dpcdsl.errors import Diagnostic, DpcError, nearest, shown
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.values import Value

__all__ = [
    "LARGEST_INTEGER",
    "RESERVED_WORDS",
    "Integer",
    "Operator",
    "OperatorKind",
    "Pair",
    "Parameter",
    "ParameterValue",
    "check_size_kept",
    "kind_named",
    "kinds",
    "register_operator",
]

#: Largest whole number the language reads.
LARGEST_INTEGER = 2**31 - 1

#: Words of the language, which cannot name a cell, space, set, operator or parameter.
#: `dpc` is not among them: the version line is the only place where it is a word, and the paper's space is called so.
RESERVED_WORDS = frozenset(
    {
        *("cell", "ops", "space", "where", "require", "filters", "optional", "any", "from", "import", "as"),
        *("and", "or", "not", "x", "step", "zoo", "F"),
    }
)

ParameterValue: TypeAlias = int | Size


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operator kind: a whole number from ``minimum`` up, or a pair of them (``pair``)."""

    name: str
    pair: bool
    minimum: int = 1

    def check(self, value: object) -> ParameterValue:
        """``value`` in its normal form, or a :class:`DpcError`."""
        match value:
            case bool():
                pass
            case int() if not self.pair:
                self._check_range(value)
                return value
            case (int(height), int(width)) if (
                self.pair and not isinstance(height, bool) and not isinstance(width, bool)
            ):
                self._check_range(height)
                self._check_range(width)
                return height, width
        wanted = f"a pair HxW, such as `{self.name} 2x4`" if self.pair else f"one number, such as `{self.name} 2`"
        raise DpcError.of("DPC018", f"`{self.name}` takes {wanted}, not {_spelled(value)}")

    def _check_range(self, value: int) -> None:
        if not self.minimum <= value <= LARGEST_INTEGER:
            raise DpcError.of(
                "DPC017",
                f"`{self.name}` takes whole numbers from {self.minimum} to {LARGEST_INTEGER}, not {shown(value)}",
            )


def Pair(name: str, minimum: int = 1) -> Parameter:  # noqa: N802 (reads as a type where a kind is declared)
    """A parameter with a height and a width, written ``name HxW``."""
    return Parameter(name, pair=True, minimum=minimum)


def Integer(name: str, minimum: int = 1) -> Parameter:  # noqa: N802 (reads as a type where a kind is declared)
    """A parameter that is one whole number, written ``name N``."""
    return Parameter(name, pair=False, minimum=minimum)


@dataclass(frozen=True)
class OperatorKind:
    """A kind of operator.

    name: how it is written in text.
    layers: called as ``layers(filters=256, **parameters)``; returns what the operator stands for.
    parameters: in the order in which they are written.
    label: for diagrams; ``{name}`` is replaced by the value of a parameter.
    """

    name: str
    layers: Callable[..., Sequence[Layer]]
    parameters: tuple[Parameter, ...] = ()
    label: str = ""

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    @property
    def example(self) -> str:
        """How an operator of this kind is written, for messages."""
        return " ".join([self.name, *(f"{p.name} {'6x6' if p.pair else '2'}" for p in self.parameters)])


_registry: dict[str, OperatorKind] = {}


def register_operator(kind: OperatorKind) -> OperatorKind:
    """Make ``kind`` known to the language and everything that reads it. Returns it.

    Raises :class:`DpcError` (DPC065) if the name is taken by another kind, is a word of the language, or looks like a
    tensor (``F``, ``Y1``).
    """
    for name in (kind.name, *(p.name for p in kind.parameters)):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name == "_" or re.fullmatch(r"Y\d+", name):
            raise DpcError.of("DPC065", f"`{name}` cannot name an operator or a parameter", hint="use a plain word")
        if name in RESERVED_WORDS:
            raise DpcError.of("DPC065", f"`{name}` is a word of the language", hint="choose another name")
    if len({p.name for p in kind.parameters}) != len(kind.parameters):
        raise DpcError.of("DPC065", f"`{kind.name}` names a parameter twice")
    try:
        kind.label.format(**{p.name: "1" for p in kind.parameters})
    except (LookupError, ValueError) as error:
        raise DpcError.of(
            "DPC065",
            f"the label {shown(kind.label)} of `{kind.name}` does not fit its parameters: {error}",
            hint="write `{name}` for the value of a parameter, and `{{` for a brace",
        ) from None
    known = _registry.setdefault(kind.name, kind)
    if known != kind:
        raise DpcError.of(
            "DPC065",
            f"an operator `{kind.name}` is registered already",
            hint="a name keeps its meaning; choose another",
        )
    return kind


def kinds() -> Mapping[str, OperatorKind]:
    """All registered kinds by name."""
    return dict(_registry)


def kind_named(name: str) -> OperatorKind:
    """The registered kind, or a :class:`DpcError` (DPC013) with the nearest name."""
    kind = _registry.get(name)
    if kind is None:
        near = nearest(name, _registry)
        raise DpcError.of(
            "DPC013",
            f"there is no operator `{_short(name)}`" + (f"; did you mean `{near}`?" if near else ""),
            hint="operators: " + ", ".join(f"`{k.example}`" for k in _registry.values()),
        )
    return kind


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:40] + "…"


def _spelled(value: object) -> str:
    match value:
        case (int(height), int(width)):
            return f"`{shown(height)}x{shown(width)}`"
    return f"`{shown(value)}`"


def _read_parameters(value: object) -> object:
    # JSON has them as an object; in memory they are a tuple, so that an operator can be hashed.
    return tuple(value.items()) if isinstance(value, Mapping) else value


_Parameters = Annotated[
    tuple[tuple[str, Any], ...],
    BeforeValidator(_read_parameters),
    PlainSerializer(lambda pairs: {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": "integer", "minimum": 1},
                    {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
                ]
            },
            "description": "A whole number, or [height, width].",
        }
    ),
]


class Operator(Value):
    """An operator: a registered kind with a value for each of its parameters.

    >>> Operator.of("sepconv3x3", rate=(1, 6))
    Operator('sepconv3x3 rate 1x6')
    """

    kind: str
    parameters: _Parameters = ()

    @classmethod
    def of(cls, kind: str, /, **parameters: ParameterValue) -> Operator:
        """The operator with its parameters as keywords."""
        return cls(kind=kind, parameters=tuple(parameters.items()))

    @model_validator(mode="after")
    def _check(self) -> Operator:
        kind = kind_named(self.kind)
        given = dict(self.parameters)
        found = [
            _unknown_parameter(kind, name)
            for name in islice((name for name in given if kind.parameter(name) is None), DpcError.limit)
        ]  # all mistakes of an operator are told together
        normal: list[tuple[str, ParameterValue]] = []
        for parameter in kind.parameters:
            if parameter.name not in given:
                found.append(missing_parameter(kind, parameter))
                continue
            value = given[parameter.name]
            try:
                normal.append((parameter.name, parameter.check(tuple(value) if isinstance(value, list) else value)))
            except DpcError as error:
                found += error.diagnostics
        if found:
            raise DpcError(found)
        self.__dict__["parameters"] = tuple(normal)
        return self

    def __getitem__(self, parameter: str) -> Any:
        """The value of a parameter: ``operator["rate"]`` is (height, width)."""
        return dict(self.parameters)[parameter]

    def layers(self, filters: int = 256) -> tuple[Layer, ...]:
        """What the operator stands for, with ``filters`` output channels for its convolutions."""
        return _layers(self, filters)

    @property
    def label(self) -> str:
        """The text of a diagram's box; lines are separated by newlines."""
        kind = kind_named(self.kind)
        values = {n: f"{v[0]}×{v[1]}" if isinstance(v, tuple) else str(v) for n, v in self.parameters}
        template = kind.label or "\n".join([kind.name, *(f"{p.name} {{{p.name}}}" for p in kind.parameters)])
        return template.format(**values)

    def __str__(self) -> str:
        """As it is written in text."""
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield self.kind
        for name, value in self.parameters:
            yield name
            yield f"{value[0]}x{value[1]}" if isinstance(value, tuple) else str(value)

    def __repr__(self) -> str:
        return f"Operator({str(self)!r})"


def check_size_kept(operator: Operator, size: Size, out_size: Size) -> None:
    """Raise :class:`DpcError` (DPC065) if the operator's layers do not come back to the size of its input."""
    if out_size != size:
        raise DpcError.of(
            "DPC065",
            f"`{operator}` turns a map of {size[0]}x{size[1]} into one of {out_size[0]}x{out_size[1]}",
            hint="an operator must keep the size of its input; end its layers with `Resize()`",
        )


def _unknown_parameter(kind: OperatorKind, name: str) -> Diagnostic:
    names = [p.name for p in kind.parameters]
    near = nearest(name, names)
    return Diagnostic(
        "DPC015",
        f"`{kind.name}` has no parameter `{_short(name)}`" + (f"; did you mean `{near}`?" if near else ""),
        hint=f"write `{kind.example}`",
    )


def missing_parameter(kind: OperatorKind, parameter: Parameter) -> Diagnostic:
    return Diagnostic(
        "DPC014", f"`{kind.name}` needs its parameter `{parameter.name}`", hint=f"for example `{kind.example}`"
    )


@lru_cache(maxsize=4096)
def _layers(operator: Operator, filters: int) -> tuple[Layer, ...]:
    return tuple(kind_named(operator.kind).layers(filters=filters, **dict(operator.parameters)))


# The paper's operators (section 3.1). Inside, `filters` is the number of output channels, 256 in the paper.


def _conv1x1(filters: int) -> list[Layer]:
    return [Convolution("conv", filters)]


def _sepconv3x3(filters: int, rate: Size) -> list[Layer]:
    return [DepthwiseConvolution("depthwise", (3, 3), rate), Convolution("pointwise", filters)]


def _avgpool(filters: int, grid: Size) -> list[Layer]:
    return [GridPool(grid), Convolution("conv", filters), Resize()]


register_operator(OperatorKind("conv1x1", _conv1x1, label="Conv\n1×1"))
register_operator(OperatorKind("sepconv3x3", _sepconv3x3, (Pair("rate"),), label="Conv\n3×3\nrate {rate}"))
register_operator(OperatorKind("avgpool", _avgpool, (Pair("grid"),), label="Pool\n{grid}"))
