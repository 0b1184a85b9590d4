"""The base of every public value: frozen, hashable, checked once when it is made, with a JSON schema."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dpcdsl.errors import Diagnostic, DpcError

__all__ = ["Value"]


class Value(BaseModel):
    """An immutable pydantic model whose every complaint is a :class:`DpcError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _as_dpc_error(type(self).__name__, error) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise _as_dpc_error(cls.__name__, error) from None


def _as_dpc_error(title: str, error: ValidationError) -> DpcError:
    return DpcError(
        Diagnostic("DPC018", detail["msg"][:1].lower() + detail["msg"][1:], place=_path(title, detail["loc"]))
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _path(title: str, location: tuple[int | str, ...]) -> str:
    return title.lower() + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
