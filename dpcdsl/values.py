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

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise _as_dpc_error(cls.__name__, error) from None

    def __getstate__(self) -> dict[Any, Any]:
        # What is worked out and kept beside the fields (a hash, which differs from process to process) stays here.
        state = super().__getstate__()
        kept = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": kept}


def _as_dpc_error(title: str, error: ValidationError) -> DpcError:
    return DpcError(
        Diagnostic("DPC018", detail["msg"][:1].lower() + detail["msg"][1:], place=_path(title, detail["loc"]))
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _path(title: str, location: tuple[int | str, ...]) -> str:
    return title.lower() + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
