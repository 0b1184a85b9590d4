"""The command line as a user meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import Dpc, Golden

import dpcdsl

EXAMPLES = Path(__file__).parents[1] / "examples"


BAD = "cell a {\n  (Y7, conv1x1, Y1)\n}\n"
GOOD = "cell a {\n  (F, conv1x1, Y1)\n}\n"


def test_check_tells_every_mistake_of_every_file(dpc: Dpc, tmp_path: Path) -> None:
    for name, text in {"bad.dpc": BAD, "good.dpc": GOOD, "worse.dpc": "cell b {\n  (F, conv, Y2)\n}\n"}.items():
        (tmp_path / name).write_text(text)
    done = dpc("check", "bad.dpc", "good.dpc", "worse.dpc", "missing.dpc")
    assert done.code == 1
    assert done.out == "good.dpc: ok, 1 cell\n"
    for place in ("bad.dpc:2:4: error: ", "worse.dpc:2:7: error: ", "worse.dpc:2:13: error: ", "missing.dpc cannot be"):
        assert place in done.err
    assert "    2 |   (Y7, conv1x1, Y1)\n      |    ^^\n" in done.err
    assert done.err.endswith("4 mistakes\n")


def test_check_json(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "bad.dpc").write_text(BAD)
    (tmp_path / "good.dpc").write_text(GOOD)
    done = dpc("check", "--json", "bad.dpc", "good.dpc")
    assert done.code == 1
    value = json.loads(done.out)
    assert value["ok"] is False
    bad, good = value["files"]
    assert [good[key] for key in ("file", "ok", "cells", "spaces", "diagnostics")] == ["good.dpc", True, ["a"], [], []]
    assert bad["diagnostics"] == [
        {
            "code": "DPC011",
            "message": "`Y7` is not defined yet; did you mean `F`?",
            "help": "branch 1 can read `F`",
            "file": "bad.dpc",
            "line": 2,
            "column": 4,
        }
    ]
    assert "bad.dpc:2:4: error:" in done.err


def test_check_reads_standard_input_and_json(dpc: Dpc) -> None:
    assert dpc("check", "-", stdin=GOOD).out == "-: ok, 1 cell\n"
    assert dpc("check", EXAMPLES / "top1_deeplab.json").code == 0
    assert "<stdin>:2:4: error:" in dpc("check", "-", stdin=BAD).err
    assert "not UTF-8" in dpc("check", "-", stdin=b"\xff\xfe").err


def test_check_respects_the_size_limit(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "good.dpc").write_text(GOOD)
    done = dpc("check", "--max-characters", 10, "good.dpc")
    assert done.code == 1
    assert "DPC004" in done.err


def test_fmt_in_place(dpc: Dpc, tmp_path: Path) -> None:
    path = tmp_path / "a.dpc"
    path.write_text("cell a {(F,conv1x1,Y1)} # note\n")
    path.chmod(0o640)
    checked = dpc("fmt", "--check", "a.dpc")
    assert checked.code == 1
    assert "-cell a {(F,conv1x1,Y1)} # note" in checked.out
    assert "+  (F, conv1x1, Y1)" in checked.out
    assert path.read_text() == "cell a {(F,conv1x1,Y1)} # note\n"
    assert dpc("fmt", "a.dpc").code == 0
    assert path.read_text() == "cell a {\n  (F, conv1x1, Y1)\n}  # note\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert dpc("fmt", "--check", "a.dpc").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.dpc"], "nothing is left beside it"


def test_fmt_goes_on_after_a_bad_file_and_leaves_it_alone(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "bad.dpc").write_text("cell {")
    (tmp_path / "a.dpc").write_text("cell a {(F,conv1x1,Y1)}")
    done = dpc("fmt", "bad.dpc", "a.dpc")
    assert done.code == 1
    assert "bad.dpc:1:6: error:" in done.err
    assert (tmp_path / "bad.dpc").read_text() == "cell {"
    assert (tmp_path / "a.dpc").read_text() == GOOD


def test_fmt_standard_input_and_crlf(dpc: Dpc, tmp_path: Path) -> None:
    assert dpc("fmt", "-", stdin="cell a {(F,conv1x1,Y1)}").out == GOOD
    (tmp_path / "crlf.dpc").write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert dpc("fmt", "--check", "crlf.dpc").code == 1
    assert dpc("fmt", "--json", "crlf.dpc").out == '{"ok": true, "changed": ["crlf.dpc"]}\n'
    assert (tmp_path / "crlf.dpc").read_bytes() == GOOD.encode()


@pytest.mark.parametrize("form", ["text", "line", "vector", "deeplab", "json"])
def test_convert_there_and_back(dpc: Dpc, form: str) -> None:
    written = dpc("convert", "top1", "--to", form)
    assert written.code == 0
    back = dpc("convert", "-", "--to", "line", stdin=written.out)
    assert back.out == str(dpcdsl.read_cell("top1")) + "\n"
    as_json = json.loads(dpc("convert", "top1", "--to", form, "--json").out)
    assert as_json["form"] == form
    assert as_json["cell"] == (written.out.rstrip("\n") if form in ("text", "line") else json.loads(written.out))


def test_convert_reads_every_kind_of_reference(dpc: Dpc, tmp_path: Path) -> None:
    line = str(dpcdsl.read_cell("top1"))
    (tmp_path / "two.dpc").write_text(f"cell one {{ {line} }} {GOOD}")
    (tmp_path / "one.dpc").write_text(f"cell one {{ {line} }}")
    for reference in (
        "one.dpc",
        "two.dpc:one",
        line,
        EXAMPLES / "top1_deeplab.json",
        "[0, 3, 1, 54, 2, 18, 1, 1, 1, 24]",
    ):
        assert dpc("convert", reference, "--to", "line").out == line + "\n"
    several = dpc("convert", "two.dpc", "--to", "line")
    assert several.code == 1
    assert "two.dpc:1:1: error: this defines 2 cells, and one is wanted" in several.err
    assert "name one of `one`, `a`" in several.err


def test_convert_refuses_what_a_form_cannot_hold(dpc: Dpc) -> None:
    done = dpc("convert", "filters 64 (F, avgpool grid 3x3, Y1)", "--to", "deeplab")
    assert (done.code, done.out) == (1, "")
    assert "DPC052" in done.err
    done = dpc("convert", "pspnet", "--to", "vector")
    assert (done.code, done.out) == (1, "")
    assert "`avgpool grid 3x3` is not among the operators of branch 3" in done.err
    assert dpc("convert", "top1", "--to", "text", "--name", "F").code == 1


def test_cost(dpc: Dpc, golden: Golden) -> None:
    golden.check("cli/cost_aspp.txt", dpc("cost", "aspp").out)
    value = json.loads(dpc("cost", "top1", "--features", "2048", "--size", "65x129", "--json").out)
    assert (value["params"], value["madds"]) == (814_080, 6_826_060_800)
    assert list(value)[:4] == ["params", "madds", "activation_bytes", "branches"]
    full = json.loads(dpc("cost", "top1", "--batch-norm", "--projection", 256, "--json").out)
    assert full["params"] > value["params"] - 500_000
    assert full["projection"]["params"] == 5 * 256 * 256 + 2 * 256


def test_explain(dpc: Dpc, golden: Golden) -> None:
    golden.check("cli/explain_top1.txt", dpc("explain", "top1").out)
    golden.check("cli/explain_aspp.txt", dpc("explain", "aspp", "--features", 2048).out)
    value = json.loads(dpc("explain", "top1", "--json").out)
    assert value["line"] == str(dpcdsl.read_cell("top1"))
    assert value["cost"]["params"] == 356_160


def test_draw(dpc: Dpc, tmp_path: Path) -> None:
    for reference in ("top1", "dpc(B=3)", "aspp_subsets", EXAMPLES / "cells.dpc:pyramid(levels=2)"):
        assert dpc("draw", reference, "-o", "a.svg").code == 0
        assert "<svg" in (tmp_path / "a.svg").read_text()
    assert (
        dpc("draw", "aspp", "--receptive-field", "--size", "17x17", "-o", "b.dot", "--json").out
        == '{"file": "b.dot"}\n'
    )
    assert dpc("draw", "top1", "-o", "a.gif").code == 1
    assert dpc("draw", "top1", "--branch", "Y1", "-o", "a.svg").code == 2


def test_init_writes_a_file_that_is_valid_and_formatted(dpc: Dpc) -> None:
    assert dpc("init", "new/place").code == 0
    assert dpc("check", "new/place/cells.dpc").code == 0
    assert dpc("fmt", "--check", "new/place/cells.dpc").code == 0
    assert dpc("explain", "new/place/cells.dpc:mine").code == 0
    again = dpc("init", "new/place")
    assert again.code == 1
    assert "exists already" in again.err


def test_plugin(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import dpcdsl\ndpcdsl.register_operator(dpcdsl.OperatorKind('cli_identity', lambda filters: []))\n"
    )
    assert dpc("cost", "(F, cli_identity, Y1)").code == 1
    done = dpc("--plugin", "mine.py", "cost", "(F, cli_identity, Y1)", "--json")
    assert json.loads(done.out)["params"] == 0
    (tmp_path / "broken.py").write_text("1 / 0\n")
    broken = dpc("--plugin", "broken.py", "doctor")
    assert broken.code == 1
    assert "the plugin broken.py cannot be imported: ZeroDivisionError" in broken.err


def test_doctor(dpc: Dpc) -> None:
    facts = json.loads(dpc("doctor", "--json").out)
    assert facts["compilers"] == "eager, torch"
    assert facts["native kernels"].startswith("active")
    assert facts["torch"].endswith("threads")
    assert facts["segmentation"] == facts["search"] == facts["cluster"] == "ready"
    assert "dpcdsl" in dpc("doctor").out


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["cost"], ["cost", "top1", "--size", "65"], ["convert", "top1", "--to", "yaml"], ["fmt"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(dpc: Dpc, arguments: list[str]) -> None:
    done = dpc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["cost", "tpo1"],
        ["cost", "missing.dpc"],
        ["cost", "."],
        ["cost", "top1", "--features", "0"],
        ["cost", "top1", "--size", "0x4"],
        ["cost", "top1", "--output-stride", "32"],
        ["explain", "dpc"],
        ["draw", "top1", "-o", "no/such/folder/a.svg"],
        ["compile", "top1", "-o", "a.tflite"],
        ["compile", "top1", "-o", "a.pt2", "--target", "eagr"],
        ["check", "\udcff.dpc"],
        ["cost", "a\0b"],
    ],
    ids=repr,
)
def test_invalid_input_exits_with_1_and_no_traceback(dpc: Dpc, arguments: list[str]) -> None:
    done = dpc(*arguments)
    assert (done.code, done.out) == (1, "")
    assert "error: " in done.err
    assert "Traceback" not in done.err


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


HEAVY = ("torch", "networkx", "graphviz", "pygraphviz", "numpy", "hypothesis", "onnx")


def test_import_is_light() -> None:
    done = python(f"import sys, dpcdsl; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", str(EXAMPLES / "cells.dpc")],
        ["fmt", "--check", str(EXAMPLES / "cells.dpc")],
        ["convert", "top1", "--to", "vector"],
        ["cost", "top1"],
        ["explain", "top1"],
        ["draw", "top1", "-o", "a.svg"],
        ["--help"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_torch_free_commands_leave_torch_alone(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dpcdsl.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit as left: assert not left.code, left.code\n"
        "print([m for m in ('torch', 'networkx', 'onnx', 'hypothesis') if m in sys.modules], file=sys.stderr)"
    )
    done = python(code, cwd=tmp_path)
    assert done.stderr.endswith("[]\n"), done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "many.dpc").write_text("".join(f"cell c{i} {{(F, conv1x1, Y1)}}\n" for i in range(3000)))
    command = f"{sys.executable} -m dpcdsl.cli fmt - < many.dpc | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "cell c0 {\n"
    assert done.stderr == ""


def test_an_interrupt_is_told_in_a_word() -> None:
    code = (
        "import dpcdsl.cli, dpcdsl.cli.views as views\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "views.cell_of = stop\n"
        "dpcdsl.cli.main(['cost', 'top1'])"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_output_is_utf8_on_a_plain_terminal() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "-m", "dpcdsl.cli", "explain", "top1"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "├─ Y2" in done.stdout.decode("utf-8")
