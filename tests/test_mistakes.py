"""Every file in tests/mistakes holds a mistake; tests/golden/mistakes holds what is said about it, read by a person."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import GOLDEN, Golden

from dpcdsl import DpcError, load
from dpcdsl.errors import CODES
from dpcdsl.interchange import cell_from_text

MISTAKES = Path(__file__).parent / "mistakes"
FILES = sorted(MISTAKES.iterdir())

pytestmark = pytest.mark.usefixtures("shipped_operators")


def told(path: Path) -> DpcError:
    with pytest.raises(DpcError) as caught:
        read(path)
    return caught.value


def read(path: Path) -> object:
    if path.suffix == ".json":
        return cell_from_text(path.read_text(encoding="utf-8"), name=path.name)
    return load(path)


def shown(error: DpcError) -> str:
    return str(error).replace(f"{MISTAKES}/", "") + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_message(path: Path, golden: Golden) -> None:
    golden.check(f"mistakes/{path.stem}.txt", shown(told(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_diagnostic_has_a_place_in_the_text(path: Path) -> None:
    for diagnostic in told(path).diagnostics:
        assert diagnostic.span is not None
        line, column = diagnostic.span.position
        lines = diagnostic.span.source.text.split("\n")
        assert 1 <= line <= len(lines)
        assert 1 <= column <= len(lines[line - 1]) + 1


def test_no_orphans() -> None:
    assert {p.stem for p in (GOLDEN / "mistakes").iterdir()} == {p.stem for p in FILES}
    assert len(FILES) >= 40


def test_every_code_is_documented_once() -> None:
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (DPC\d{3}): (.+)$", page, re.MULTILINE) == list(CODES.items())


def test_every_code_is_raised_somewhere() -> None:
    root = Path(__file__).parents[1]
    sources = [*root.glob("dpcdsl/**/*.py"), *root.glob("compilers/**/*.py")]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources if p.name != "errors.py")
    assert [code for code in CODES if f'"{code}"' not in text] == []
