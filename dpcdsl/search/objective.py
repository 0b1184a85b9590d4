"""What a search maximizes: a callable that is given a cell and returns a number."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, shown

__all__ = ["Attempt", "NamedObjective", "Objective", "identity_of"]


@dataclass(frozen=True)
class Attempt:
    """What an objective is told beside the cell. seed: the study's, the same for all cells."""

    number: int
    seed: int
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Keeps a JSON value with the trial. Raises TypeError or ValueError if it is none."""
        self.notes[name] = json.loads(json.dumps(value))


#: The larger the better. It may have an ``identity``: JSON values that say what it computes, and a study that was begun
#: with it goes on with nothing else; by default it is where the callable is defined. An exception makes the trial a
#: failure; the search goes on.
Objective: TypeAlias = Callable[[Cell, Attempt], float]


def identity_of(objective: Objective) -> dict[str, Any]:
    """What a study keeps of its objective."""
    given = getattr(objective, "identity", None)
    if isinstance(given, dict):
        return given
    at = objective if hasattr(objective, "__qualname__") else type(objective)
    return {"objective": f"{at.__module__}:{at.__qualname__}"}


@dataclass(frozen=True)
class NamedObjective:
    """A callable by its name, ``module:function`` or ``file.py:function``: each process imports it for itself.

    Raises :class:`DpcError`: DPC060 if that fails, DPC062 if it is not a callable.
    """

    reference: str

    def __post_init__(self) -> None:
        module, _, name = self.reference.rpartition(":")
        if not module or not name:
            raise DpcError.of(
                "DPC062",
                f"{shown(self.reference)} is not an objective",
                hint="write `proxy`, or `module:function`, or `file.py:function`",
            )
        if module.endswith(".py"):  # wherever the process that imports it is
            object.__setattr__(self, "reference", f"{Path(module).absolute()}:{name}")
        _ = self.function

    @cached_property
    def function(self) -> Objective:
        module, _, name = self.reference.rpartition(":")
        said = Path(module).name if module.endswith(".py") else shown(module)
        try:
            found = getattr(_imported(module), name, None)
        except DpcError:
            raise
        except Exception as error:
            raise DpcError.of("DPC060", f"{said} cannot be imported: {type(error).__name__}: {error}") from None
        if not callable(found):
            raise DpcError.of("DPC062", f"{said} has no function {name}")
        return found  # type: ignore[no-any-return]

    @property
    def identity(self) -> dict[str, Any]:
        return identity_of(self.function)

    def __call__(self, cell: Cell, attempt: Attempt) -> float:
        return self.function(cell, attempt)

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedObjective, (self.reference,)


def _imported(module: str) -> Any:
    if not module.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(module)
    path = Path(module)
    if not path.is_file():
        raise DpcError.of("DPC060", "there is no such file", place=module)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, found)
    spec.loader.exec_module(found)
    return found
