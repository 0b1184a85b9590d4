"""Documents: what a text defines and where, and what it takes from other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpcdsl import DpcError, load, parse, read_cell, read_space, zoo

TEXT = """\
from zoo import dpc
cell first {
  (F,  conv1x1, Y1)
  (Y1, conv1x1, _)
}
ops few = conv1x1 | avgpool grid 1x1
space second(B = 2) { B * (any, few, _) }
space third = dpc(B=2) where depth <= 1
"""
CELL = "cell a { (F, conv1x1, Y1) }\n"


def test_definitions_stand_in_order_with_their_places() -> None:
    document = parse(TEXT, name="file.dpc")
    assert [(d.name, d.noun) for d in document] == [
        ("first", "cell"),
        ("few", "operator set"),
        ("second", "space"),
        ("third", "space"),
    ]
    for definition in document:
        assert TEXT[definition.span.start : definition.span.end] == definition.name
        assert definition.span.source.name == "file.dpc"
    assert [TEXT[s.start : s.end] for s in document["first"].branch_spans] == ["(F,  conv1x1, Y1)", "(Y1, conv1x1, _)"]
    assert str(document["first"].span) == "file.dpc:2:6"
    assert (len(document), list(document.cells), list(document.spaces)) == (4, ["first"], ["second", "third"])
    assert len(document.operator_sets["few"]) == 2


def test_asking_for_the_wrong_thing_is_told() -> None:
    document = parse(TEXT, name="file.dpc")
    for code, ask in {
        "DPC061": lambda: document["frist"],
        "DPC032": lambda: document.cell("second"),
        "DPC034": lambda: document.space("second", C=3),
    }.items():
        with pytest.raises(DpcError) as caught:
            ask()
        assert caught.value.codes == (code,)
    with pytest.raises(DpcError, match="did you mean `first`"):
        document.cell("frist")
    with pytest.raises(DpcError):
        document.space("few")
    with pytest.raises(DpcError, match="2 spaces, and one is wanted"):
        document.space()
    assert document.cell() == document.cell("first")
    assert parse(CELL).space() == parse(CELL).space("a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "cells.dpc").write_text(CELL + "ops few = conv1x1\n")
    (tmp_path / "sub" / "more.dpc").write_text('from "../cells.dpc" import a, few as some\ncell b { (F, some, Y1) }\n')
    return tmp_path


def test_imports_are_looked_for_beside_the_file(folder: Path) -> None:
    (folder / "main.dpc").write_text(
        'from "sub/more.dpc" import b as mine\nfrom "cells.dpc" import a\nspace s = mine\nspace t = a\n'
    )
    document = load(folder / "main.dpc")
    assert list(document.definitions) == ["s", "t"], "imported names are not exported"
    assert document.space("s") == document.space("t")
    assert parse((folder / "main.dpc").read_text(), folder=folder).space("s") == document.space("s")


def test_what_an_import_leads_to_is_told(folder: Path) -> None:
    (folder / "bad.dpc").write_text("cell c {\n  (Y3, conv1x1, Y1)\n}\n")
    (folder / "latin.dpc").write_bytes(b"# caf\xe9\n")
    (folder / "one.dpc").write_text('from "two.dpc" import x\n')
    (folder / "two.dpc").write_text('from "./sub/../one.dpc" import x\n')
    os.mkfifo(folder / "pipe.dpc")
    for file, code, words in [
        ("nowhere.dpc", "DPC035", "cannot be read: no such file"),
        ("sub", "DPC035", "is not a file"),
        ("pipe.dpc", "DPC035", "is not a file"),
        ("latin.dpc", "DPC035", "not UTF-8 text: byte 5, line 1"),
        ("one.dpc", "DPC036", "one.dpc → two.dpc → one.dpc"),
        ("bad.dpc", "DPC011", "bad.dpc:2:4: error: `Y3`"),
    ]:
        (folder / "main.dpc").write_text(f'from "{file}" import x\n')
        with pytest.raises(DpcError) as caught:
            load(folder / "main.dpc")
        assert caught.value.codes[0] == code, file
        assert words in str(caught.value), str(caught.value)


def test_a_long_chain_of_imports_ends(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.dpc").write_text(
            f'from "{number + 1}.dpc" import a\ncell c{number} {{ (F, conv1x1, _) }}\n'
        )
    (tmp_path / "40.dpc").write_text(CELL)
    with pytest.raises(DpcError) as caught:
        load(tmp_path / "0.dpc")
    assert caught.value.codes[0] == "DPC036"


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.dpc", Path("a\0b.dpc"), Path("/dev/zero")):
        with pytest.raises(DpcError) as caught:
            load(path)
        assert caught.value.codes == ("DPC060",)
    (tmp_path / "large.dpc").write_text(CELL)
    with pytest.raises(DpcError) as caught:
        load(tmp_path / "large.dpc", max_characters=10)
    assert caught.value.codes == ("DPC004",)


def test_references(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    a = load("cells.dpc").cell("a")
    (folder / "a.json").write_text('[{"op": "conv", "kernel": 1, "input": -7}]')
    for reference in ("cells.dpc", "cells.dpc:a", "a.json", "./a.json", "(F, conv1x1, _)", "[0, 0]", Path("cells.dpc")):
        assert read_cell(reference) == a
    (folder / "top1").write_text(CELL)
    assert read_cell("top1") == zoo()["top1"].value, "the zoo comes before a file without an ending"
    (folder / "spaces.dpc").write_text(TEXT)
    assert read_space("spaces.dpc:second(B=3) where depth <= 2").constraints
    assert len(read_space("spaces.dpc:second(B=3)").slots) == 3
    assert read_space("cells.dpc").slots[0].inputs is None
    for wrong in ("spaces.dpc:few", "spaces.dpc:none", "dpc(B=3", "dpc where", "paper", "", " ", "no such thing"):
        with pytest.raises(DpcError):
            read_space(wrong)


def test_the_zoo() -> None:
    assert {name for name, d in zoo().items() if d.noun == "cell"} == {"top1", "aspp", "pspnet", "denseaspp"}
    assert {name for name, d in zoo().items() if d.noun == "space"} == {"dpc", "aspp_subsets"}
    assert len(zoo()["paper"].value) == 81  # type: ignore[arg-type]
    assert read_cell("top1") in read_space("dpc")
    for name in ("aspp", "top1"):
        assert read_cell(name) in read_space("dpc")
    assert all("," in d.span.source.text and "#" in d.span.source.text for d in zoo().values()), "sources are named"
