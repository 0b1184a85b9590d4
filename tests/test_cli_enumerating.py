"""The commands that count, sample, enumerate, rank and compare, as a user meets them."""

from __future__ import annotations

import csv
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Dpc, Golden

import dpcdsl
from dpcdsl.cell import distance

TINY = "space tiny {\n  (F, conv1x1 | avgpool grid 1x1, Y1)\n  2 * (any, conv1x1 | avgpool grid 1x1, _)\n}\n"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.dpc"
    path.write_text(TINY, encoding="utf-8")
    return path


def lines(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")


def test_count(dpc: Dpc, tiny: Path) -> None:
    assert dpc("count", "dpc").out == "418,414,128,120\n"
    assert json.loads(dpc("count", "dpc", "--json").out) == {"count": 418414128120}
    assert dpc("count", tiny).out == "48\n"
    assert dpc("count", "tiny.dpc:tiny", "--up-to", "isomorphism").out == "26\n"
    assert dpc("count", "-", stdin=TINY).out == "48\n"
    assert dpc("count", "tiny.dpc:tiny", "--up-to", "function", "--at", "1x1").out == "4\n"
    assert dpc("count", "top1").out == "1\n"
    assert dpc("count", tiny, "--where", "depth <= 2", "--where", "uses(conv1x1) == 0").out == "5\n"


def test_count_where_takes_names_of_the_file(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "a.dpc").write_text(TINY + "cell mine {\n  (F, conv1x1, _)\n}\n")
    assert dpc("count", "a.dpc:tiny", "--where", "distance(mine) <= 4").code == 0
    told = dpc("count", "a.dpc:tiny", "--where", "distance(yours) <= 4")
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("--where:1:10: error: `yours` is not defined")


def test_histogram(dpc: Dpc, golden: Golden) -> None:
    golden.check("cli/histogram_depth.txt", dpc("count", "dpc", "--histogram", "depth").out)
    golden.check("cli/histogram_params.txt", dpc("count", "dpc", "--histogram", "params(F=320)", "--bins", "6").out)
    value = json.loads(dpc("count", "dpc", "--histogram", "params(F=320)", "--json").out)
    assert value["measure"] == "params(F=320)"
    assert sum(count for _, count in value["histogram"]) == value["count"] == 418414128120
    assert [v for v, _ in value["histogram"]] == sorted(v for v, _ in value["histogram"])
    classes = json.loads(dpc("count", "dpc", "--histogram", "depth", "--up-to", "isomorphism", "--json").out)
    assert (classes["count"], classes["histogram"][-1]) == (37_888_452_756, [5, 81**5])
    assert "0 cells" in dpc("count", "dpc where depth > 9", "--histogram", "depth").out


def test_sample(dpc: Dpc) -> None:
    out = dpc("sample", "dpc", "-n", "5", "--seed", "3").out
    cells = [dpcdsl.parse_cell(line) for line in lines(out)]
    assert cells == dpcdsl.enumerator(dpcdsl.read_space("dpc")).sample(5, 3)
    assert dpc("sample", "dpc", "-n", "2", "--seed", "3").out == "".join(f"{cell}\n" for cell in cells[:2])
    value = json.loads(dpc("sample", "dpc", "-n", "2", "--seed", "3", "--to", "vector", "--json").out)
    assert value["count"] == 418414128120
    assert [dpcdsl.from_vector(one["cell"]) for one in value["cells"]] == cells[:2]
    assert dpc("sample", "dpc", "-n", "0").out == ""
    text = dpc("sample", "dpc", "-n", "2", "--seed", "3", "--to", "text").out
    assert [dpcdsl.parse_cell(part) for part in text.split("\n\n")] == cells[:2]


@pytest.mark.parametrize("form", ["line", "vector", "id", "deeplab", "json"])
def test_what_is_sampled_can_be_read_back(dpc: Dpc, form: str) -> None:
    space = "dpc where depth <= 3 or uses(avgpool) > 1"
    wanted = lines(dpc("sample", space, "-n", "3", "--where", "params(F=320) < 0.4M").out)
    found = lines(dpc("sample", space, "-n", "3", "--where", "params(F=320) < 0.4M", "--to", form).out)
    assert [dpc("convert", one, "--to", "line").out.rstrip("\n") for one in found] == wanted


def test_sample_without_replacement_and_in_shards(dpc: Dpc, tiny: Path) -> None:
    everything = lines(dpc("sample", tiny, "-n", "48", "--without-replacement", "--to", "vector").out)
    assert len(set(everything)) == 48
    parts = [lines(dpc("sample", tiny, "-n", "16", "--shard", f"{i}/3", "--to", "vector").out) for i in range(3)]
    assert [cell for row in zip(*parts, strict=True) for cell in row] == everything
    told = dpc("sample", tiny, "-n", "49", "--without-replacement")
    assert (told.code, told.out) == (1, "")
    assert "[DPC074]" in told.err


def test_enumerate(dpc: Dpc, tiny: Path) -> None:
    everything = lines(dpc("enumerate", tiny, "--to", "vector").out)
    assert len(everything) == 48
    assert [json.loads(line) for line in everything] == sorted(json.loads(line) for line in everything)
    assert lines(dpc("enumerate", tiny, "--to", "vector", "--start", "40", "--limit", "3").out) == everything[40:43]
    assert lines(dpc("enumerate", tiny, "--to", "vector", "--shard", "1/5").out) == everything[1::5]
    shuffled = lines(dpc("enumerate", tiny, "--to", "vector", "--shuffle", "4").out)
    assert sorted(shuffled) == sorted(everything) != shuffled
    assert len(lines(dpc("enumerate", tiny, "--up-to", "isomorphism").out)) == 26
    assert lines(dpc("enumerate", "dpc(B=40)", "--limit", "1").out)[0].startswith("(F, conv1x1, Y1) (F, conv1x1, Y2)")


def test_rank_and_unrank(dpc: Dpc, tiny: Path) -> None:
    assert dpc("rank", "top1").out == "19825144575\n"
    told = json.loads(dpc("rank", "top1", "--json").out)
    assert told == {
        "rank": 19825144575,
        "count": 418414128120,
        "space": "dpc",
        "id": dpc("convert", "top1", "--to", "id").out.rstrip("\n"),
    }
    assert dpc("unrank", "dpc", "19825144575").out == dpc("convert", "top1", "--to", "line").out
    assert dpc("rank", "(F, conv1x1, Y1) (F, conv1x1, Y2) (Y2, conv1x1, Y3)", "--space", tiny).out == "4\n"
    assert dpc("unrank", tiny, "4", "--to", "vector").out == "[0, 0, 0, 0, 2, 0]\n"
    classes = int(dpc("rank", "top1", "--up-to", "isomorphism").out)
    assert dpc("unrank", "dpc", str(classes), "--up-to", "isomorphism").out == dpc("canonical", "top1").out
    told = json.loads(dpc("unrank", "dpc", "0", "--to", "vector", "--json").out)
    assert told == {"rank": 0, "cell": [0] * 10}


def test_neighbours(dpc: Dpc, tiny: Path) -> None:
    assert dpc("neighbours", "top1", "--count").out == "410\n"
    assert json.loads(dpc("neighbours", "top1", "--count", "--radius", "2", "--json").out) == {"count": 68445}
    centre = dpcdsl.parse_cell("(F, conv1x1, Y1) (F, conv1x1, Y2) (Y2, conv1x1, Y3)")
    near = lines(dpc("neighbours", centre, "--space", tiny).out)
    space = dpcdsl.load(tiny).space("tiny")
    assert near == [str(cell) for cell in dpcdsl.enumerator(space) if distance(cell, centre) == 1]
    drawn = lines(dpc("neighbours", centre, "--space", tiny, "--sample", "4", "--to", "id").out)
    # An ID among the neighbours is one of the space, not of the neighbourhood.
    assert [distance(dpcdsl.read_cell(one), centre) for one in drawn] == [1] * 4


def test_distance_canonical_diff(dpc: Dpc, golden: Golden) -> None:
    assert dpc("distance", "top1", "aspp").out == "9\n"
    assert json.loads(dpc("distance", "top1", "top1", "--json").out) == {"distance": 0, "isomorphic": True}
    canonical = dpc("canonical", "top1").out
    assert json.loads(dpc("canonical", canonical, "--json").out) == {"cell": canonical.rstrip("\n"), "changed": False}
    assert dpc("canonical", "top1", "--to", "text").out.startswith("cell top1 {\n")
    golden.check("cli/diff_top1_aspp.txt", dpc("diff", "top1", "aspp").out)
    golden.check("cli/diff_lengths.txt", dpc("diff", "top1", "(F, sepconv3x3 rate 1x6, Y1) (F, conv1x1, Y2)").out)
    golden.check("cli/diff_order.txt", dpc("diff", "top1", canonical).out)
    told = json.loads(dpc("diff", "top1", "aspp", "--json").out)
    assert told["distance"] == 9
    assert [branch["equal"] for branch in told["branches"]] == [False] * 5
    assert told["params"] == {"a": 356160, "b": 418240}


def test_a_table_of_cells(dpc: Dpc, tmp_path: Path) -> None:
    done = dpc("enumerate", "aspp_subsets", "-o", "a.csv", "--features", "2048", "--size", "33x33")
    assert (done.code, done.out, done.err) == (0, "", "a.csv: 31 cells\n")
    with (tmp_path / "a.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    whole = next(row for row in found if row["branches"] == "5")
    assert int(whole["params"]) == 2_676_736
    assert json.loads(dpc("sample", "dpc", "-n", "3", "-o", "b.jsonl", "--json").out) == {"file": "b.jsonl", "cells": 3}
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 3
    told = dpc("sample", "dpc", "-o", "c.txt")
    assert told.code == 1
    assert told.err == (
        "error: c.txt cannot be written: its ending does not say how [DPC060]\n"
        "    help: use one of .csv, .jsonl, .parquet\n"
    )
    assert not (tmp_path / "c.txt").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["count"],
        ["count", "dpc", "--at", "33"],
        ["count", "dpc", "--up-to", "species"],
        ["sample", "dpc", "-n", "-1"],
        ["sample", "dpc", "--shard", "3/3"],
        ["sample", "dpc", "--shard", "1"],
        ["unrank", "dpc", "x"],
        ["neighbours", "top1", "--radius", "0"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_wrong_usage(dpc: Dpc, arguments: list[str]) -> None:
    done = dpc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["count", "nowhere"], "DPC061"),
        (["count", "dpc", "--up-to", "function"], "DPC062"),
        (["count", "dpc", "--at", "3x3"], "DPC062"),
        (["count", "dpc", "--where", "price < 3"], "DPC040"),
        (["count", "dpc", "--where", ""], "DPC003"),
        (["count", "dpc", "--histogram", "price"], "DPC040"),
        (["count", "dpc", "--histogram", "depth <= 3"], "DPC002"),
        (["count", "dpc where distance(top1) <= 5", "--up-to", "isomorphism"], "DPC070"),
        (["unrank", "dpc", "418414128120"], "DPC071"),
        (["unrank", "dpc where depth > 9", "0"], "DPC074"),
        (["enumerate", "dpc", "--start", "418414128121"], "DPC071"),
        (["rank", "top1", "--space", "aspp_subsets"], "DPC055"),
        (["rank", "pspnet"], "DPC055"),
        (["convert", "dpc@0123456789ab:3", "--to", "line"], "DPC072"),
        (["convert", "@0123456789ab:3", "--to", "line"], "DPC073"),
        (["sample", "dpc", "-o", "no/such/folder.csv"], "DPC060"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_invalid_input(dpc: Dpc, arguments: list[str], code: str) -> None:
    done = dpc(*arguments)
    assert (done.code, done.out) == (1, "")
    assert f"[{code}]" in done.err
    assert "Traceback" not in done.err


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """Something that takes seconds says on the terminal how far it is, and wipes that away in the end."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "dpcdsl.cli", "sample", "dpc", "-n", "40000", "-o", "a.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        told = b""
        with open(mine, "rb", buffering=0) as terminal:  # noqa: PTH123 (a descriptor)
            while True:
                try:
                    told += terminal.read(1000)
                except OSError:  # the other end is closed
                    break
        assert process.wait(60) == 0
    assert b"writing" in told
    assert b"s left" in told
    assert told.rstrip().endswith(b"a.jsonl: 40,000 cells")
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) == 40000


def test_an_interrupted_table_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("what was there")
    command = [sys.executable, "-m", "dpcdsl.cli", "enumerate", "dpc", "-o", "a.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        process.send_signal(2)
        try:
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()  # one that does not hear of it would go on for ever
    assert process.returncode == 130
    assert told.strip() == b"interrupted"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


def complete(words: str) -> list[str]:
    env = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_DPC_COMPLETE": "bash_complete"}
    program = Path(sys.executable).with_name("dpc")
    done = subprocess.run([program], env=env, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_shell_completion(dpc: Dpc) -> None:
    assert complete("dpc cou") == ["plain,count"]
    assert complete("dpc cost to") == ["plain,top1", "file,to"]
    assert complete("dpc count as") == ["plain,aspp", "plain,aspp_subsets", "file,as"]
    assert complete("dpc sample dpc --up-to is") == ["plain,isomorphism"]
    for shell in ("bash", "zsh", "fish"):
        script = dpc("completion", shell).out
        assert "_DPC_COMPLETE" in script
    if shutil.which("bash"):
        script = dpc("completion", "bash").out
        done = subprocess.run(["bash", "-c", script + "\ncomplete -p dpc"], capture_output=True, text=True, check=True)
        assert "dpc" in done.stdout


def run(command: str) -> subprocess.CompletedProcess[str]:
    """A line of a real shell, where `dpc` is this one."""
    program = f"{sys.executable} -m dpcdsl.cli"
    return subprocess.run(
        ["sh", "-c", command.replace("dpc ", f"{program} ", 1)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_a_word() -> None:
    for command in ("dpc count dpc > /dev/full", "dpc enumerate dpc > /dev/full", "dpc rank top1 --json > /dev/full"):
        done = run(command)
        assert done.returncode == 1
        assert done.stderr == "error: standard output cannot be written: no space left on device [DPC060]\n"


def test_closed_streams() -> None:
    done = run("dpc sample dpc -n 3 <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_what_never_ends_begins_at_once() -> None:
    for command in (
        "dpc sample dpc -n 1000000000000 | head -n 2",
        "dpc sample 'dpc(B=30)' -n 2000000000 --without-replacement | head -n 2",
        "dpc neighbours top1 --radius 10 --sample 100000000000 | head -n 2",
        "dpc enumerate dpc | head -n 2",
    ):
        assert len(lines(run(command).stdout)) == 2
    assert run("dpc enumerate dpc --json | head -c 30").stdout == '{"count": 418414128120, "cells"'[:30]


def test_an_id_brings_its_own_space(dpc: Dpc) -> None:
    told = dpc("enumerate", "aspp_subsets", "--start", "3", "--limit", "1", "--to", "id").out.rstrip("\n")
    assert dpc("rank", told).out == "3\n"
    assert dpc("neighbours", told, "--count").out == dpc("neighbours", told, "--space", "aspp_subsets", "--count").out
    told = dpc("sample", "dpc\nwhere  depth <= 2", "--where", "depth >= 2", "--to", "id").out
    assert dpc("convert", told, "--to", "line").code == 0


def test_a_negative_rank_is_told_as_one(dpc: Dpc) -> None:
    done = dpc("unrank", "dpc", "-1")
    assert done.code == 2
    assert "-1 is not in the range x>=0" in done.err


def test_functions_under_other_conventions(dpc: Dpc) -> None:
    here = ("--up-to", "function", "--at", "33x33")
    assert dpc("count", "dpc", *here, "--output-stride", "8").out == "13,627,255,818\n"
    doubled = dpcdsl.count(
        dpcdsl.read_space("dpc"), "function", at=(33, 33), conventions=dpcdsl.Conventions(output_stride=8)
    )
    assert doubled == 13_627_255_818
    rank = dpc("rank", "top1", *here, "--output-stride", "8").out.rstrip("\n")
    assert dpc("unrank", "dpc", rank, *here, "--output-stride", "8").code == 0
    assert dpc("sample", "dpc", "--output-stride", "8").code == 2
    assert dpc("sample", "dpc", "--output-stride", "8", "-o", "a.csv").code == 0
