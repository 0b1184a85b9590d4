"""The pages under docs, and README.md, do as they say: every example is read or run, and every link leads somewhere.

What a fence means here (words behind the language are options of the block):

- ``dpc``: parses, and is laid out as `dpc fmt` does it, unless it is ``unformatted``.
- ``json``: a cell.
- ``python``: passes as a doctest if it has prompts, else runs.
- ``console``: each line ``$ dpc …`` runs and exits with 0, or with N where the line ends in ``# exit N``; what is shown
  below it is what it prints, where ``…`` stands for anything. Nothing shown is not compared. ``cat``, pipes and ``<``
  and ``>`` with a file work too; lines of other programs are skipped.
- ``text``: free; under a heading ``## DPC…`` it is a mistake of that code.
- Any block with a file name, as in ``dpc mine.dpc``, is also that file. A block with ``needs torch`` is skipped where
  there is no torch, and so is a ``python`` block that imports torch.

The blocks of a page run in order, in one folder and one Python namespace.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dpcdsl import DpcError, format_text, operators, parse, syntax, zoo
from dpcdsl.cell import MAX_BRANCHES, MAX_FILTERS
from dpcdsl.cli import main
from dpcdsl.constraints import LARGEST_BOUND, MEASURES
from dpcdsl.cost import MAX_FEATURES, operator_cost
from dpcdsl.interchange import cell_from_text
from dpcdsl.space import MAX_OPERATORS
from dpcdsl.syntax import MAX_CHARACTERS, MAX_DEPTH, branches, context, resolve

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (*ROOT.glob("docs/**/*.md"), ROOT / "README.md") if path.is_file())
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^ *(?P=ticks) *$\n?", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, its text, and the line of the page where the text begins."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        return next((word for word in self.words if re.fullmatch(r"[\w/-]+\.\w+", word)), None)

    @property
    def needs(self) -> list[str]:
        """Modules without which the block cannot run."""
        imported = re.findall(r"^(?:>>> )?(?:import|from) (torch|onnx|onnxruntime)\b", self.text, re.M)
        return [*self.words[self.words.index("needs") + 1 :], *imported] if "needs" in self.words else imported


def blocks_of(text: str) -> Iterator[Block]:
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        line = text.count("\n", 0, match.start("body")) + 1
        yield Block(language, tuple(words), textwrap.dedent(match["body"]), line)


def without_blocks(text: str) -> str:
    return _FENCE.sub("\n", text)


@dataclass
class Page:
    """Reads and runs the blocks of one page in the working folder, and gathers what is wrong with them."""

    name: str
    text: str
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self) -> None:
        if re.search(r"^ *```", without_blocks(self.text), re.M):
            self.failures.append(f"{self.name}: a fence is not closed")
        kinds: dict[str, Callable[[Block], None]] = {
            "dpc": self.run_dpc,
            "json": self.run_json,
            "python": self.run_python,
            "console": self.run_console,
        }
        for block in blocks_of(self.text):
            if block.file is not None:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.text, encoding="utf-8")
            missing = [name for name in block.needs if importlib.util.find_spec(name) is None]
            if missing:
                self.skipped.append(f"{self.name}:{block.line} needs {' and '.join(missing)}")
            elif block.language in kinds:
                kinds[block.language](block)

    def fail(self, block: Block, what: str) -> None:
        self.failures.append(f"{self.name}:{block.line}: {what}")

    def run_dpc(self, block: Block) -> None:
        try:
            parse("\n" * (block.line - 1) + block.text, name=self.name)
            formatted = format_text(block.text)
        except DpcError as error:
            self.fail(block, str(error))
            return
        if formatted != block.text and "unformatted" not in block.words:
            self.fail(block, f"dpc fmt would write\n{formatted}")

    def run_json(self, block: Block) -> None:
        try:
            cell_from_text(block.text, name=self.name)
        except DpcError as error:
            self.fail(block, str(error))

    def run_python(self, block: Block) -> None:
        if ">>>" in block.text:
            test = doctest.DocTestParser().get_doctest(block.text, self.namespace, self.name, self.name, block.line - 1)
            told = io.StringIO()
            runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
            if runner.run(test, out=told.write, clear_globs=False).failed:
                self.fail(block, told.getvalue())
            self.namespace.update(test.globs)
            return
        try:
            exec(compile("\n" * (block.line - 1) + block.text, self.name, "exec"), self.namespace)
        except Exception:
            self.fail(block, traceback.format_exc())

    def run_console(self, block: Block) -> None:
        for command, shown in commands_of(block.text):
            wanted = re.search(r"\s#\s*exit (\d+)\s*$", command)
            words = shlex.split(command, comments=True)
            if words[:1] not in (["dpc"], ["cat"]):
                continue
            code, printed = run_pipeline(words)
            if code != int(wanted[1] if wanted else 0):
                self.fail(block, f"`{command}` exits with {code} and prints\n{printed}")
            elif shown.strip() and not matches(shown, printed):
                self.fail(block, f"`{command}` prints\n{printed}")


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what is shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, shown = part.replace("\\\n", " ").partition("\n")
        yield command, shown


def run_pipeline(words: Sequence[str]) -> tuple[int, str]:
    """The exit code of the last program, and everything that would be seen."""
    stages: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    seen, code, piped = io.StringIO(), 0, ""
    for number, stage in enumerate(stages):
        target = None
        if ">" in stage:
            at = stage.index(">")
            target = Path(stage[at + 1])
            del stage[at : at + 2]
        if "<" in stage:
            at = stage.index("<")
            piped = Path(stage[at + 1]).read_text(encoding="utf-8")
            del stage[at : at + 2]
        last = number == len(stages) - 1
        output = seen if last and target is None else io.StringIO()
        code = run_program(stage, piped, output, seen)
        piped = output.getvalue()
        if target is not None:
            target.write_text(piped, encoding="utf-8")
    return code, seen.getvalue()


def run_program(words: Sequence[str], stdin: str, stdout: io.StringIO, stderr: io.StringIO) -> int:
    program, *arguments = words
    if program == "cat":
        stdout.write("".join(Path(argument).read_text(encoding="utf-8") for argument in arguments))
        return 0
    assert program == "dpc", f"`{program}` cannot run here"
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdin = before
    return 0


def matches(shown: str, printed: str) -> bool:
    def trimmed(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").split("\n")).strip("\n")

    pattern = ".*".join(map(re.escape, trimmed(shown).split("…")))
    return re.fullmatch(pattern, trimmed(printed), re.S) is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and only the library's own operators. What a page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    own = {name: kind for name, kind in operators.kinds().items() if kind.layers.__module__ == operators.__name__}
    monkeypatch.setattr(operators, "_registry", own)
    yield tmp_path
    for cached in (branches.plain_branch, operators._layers, operator_cost):
        cached.cache_clear()


def verdict(page: Page) -> None:
    if os.environ.get("DPCDSL_REQUIRE") == "all":
        page.failures += page.skipped
    assert not page.failures, "\n\n".join(page.failures)
    if page.skipped:
        pytest.skip("; ".join(page.skipped))


@each_page
@pytest.mark.usefixtures("folder")
def test_every_example_holds(page: Path) -> None:
    examples = Page(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
    examples.run()
    verdict(examples)


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [target for target in links_of(page.read_text(encoding="utf-8")) if not leads(page, target)] == []


def links_of(text: str) -> list[str]:
    """The targets of a page's links and pictures that are not on the web."""
    prose = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose)
    named = re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.M)
    attributes = re.findall(r'(?:href|src)="([^"]+)"', prose)
    return [t for t in (*inline, *named, *attributes) if not re.match(r"(https?|mailto):", t)]


def leads(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    found = page.parent / path if path else page
    if not found.exists() or not found.resolve().is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors_of(found.read_text(encoding="utf-8"))


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    titles = re.findall(r"^#+ +(.+?) *#*$", without_blocks(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# docs/errors.md


def sections_of_errors() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (DPC\d{3}): .+$", page, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("code", "section"), sections_of_errors(), ids=lambda value: value[:6])
@pytest.mark.usefixtures("folder")
def test_every_section_on_a_mistake(code: str, section: str) -> None:
    prose = [part for part in re.split(r"\n\s*\n", without_blocks(section)) if part.strip()]
    assert len(prose) == 1, "a section is one paragraph, then examples"
    for block in blocks_of(section):
        if block.language == "text":
            with pytest.raises(DpcError) as caught:
                cell_from_text(block.text) if block.text[0] in "[{" else parse(block.text)
            assert set(caught.value.codes) == {code}, str(caught.value)
        if block.language == "console":
            assert f"[{code}]" in block.text


# docs/language.md


def language() -> str:
    return (ROOT / "docs" / "language.md").read_text(encoding="utf-8")


def rows_below(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of docs/language.md, without its head."""
    below = language().split(f"\n{heading}\n")[1]
    table = re.search(r"^\|.*\n\| *---.*\n((?:\|.*\n)+)", below, re.M)
    assert table is not None
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[1].splitlines()]


def test_limits_are_those_of_the_code() -> None:
    limits = [
        MAX_BRANCHES,
        MAX_FILTERS,
        MAX_OPERATORS,
        context._BUDGET,
        operators.LARGEST_INTEGER,
        LARGEST_BOUND,
        30,
        MAX_FEATURES,
        MAX_DEPTH,
        resolve._MAX_CONDITIONS,
        syntax._MAX_IMPORTS,
        MAX_CHARACTERS,
    ]
    assert [limit for _, limit in rows_below("## Limits")] == [
        "10^30" if limit == 10**30 else f"{limit:,}" for limit in limits
    ]


@pytest.mark.usefixtures("folder")
def test_tables_are_complete() -> None:
    def names(heading: str) -> list[str]:
        return re.findall(r"^`(\w+)", "\n".join(row[0] for row in rows_below(heading)), re.M)

    assert names("## Operators") == list(operators.kinds())
    assert names("## Conditions") == list(MEASURES)
    assert [first for first, *_ in rows_below("## Conditions")] == [f"`{m}`" for m in MEASURES.values()]
    assert names("## The zoo") == list(zoo())
    assert [kind for _, kind, _ in rows_below("## The zoo")] == [definition.noun for definition in zoo().values()]


def test_reserved_words_are_listed() -> None:
    sentence = re.search(r"words of the language cannot be names: (.*?);", language(), re.S)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == operators.RESERVED_WORDS - {"F"}


# The checks above, on pages that are wrong


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```dpc\n(F, conv1x1, Y2)\n```", "page.md:2:14: error: branch 1 writes"),
        ("```dpc\n(F,conv1x1,Y1)\n```", "dpc fmt would write"),
        ('```json\n{"branches": []}\n```', "needs at least one branch"),
        ("```python\n>>> 1 + 1\n3\n```", "Got:\n    2"),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```console\n$ dpc check nowhere.dpc\n```", "exits with 1"),
        ("```console\n$ dpc convert top1 --to vector  # exit 1\n```", "exits with 0"),
        ("```console\n$ dpc convert top1 --to vector\n[1, …]\n```", "prints\n[0, 3"),
        ("```console\n$ dpc convert top1 --to text\ncell top1 {\n```", "prints\ncell top1 {\n  (F,"),
        ("```dpc\n(F, conv1x1, Y1)\n", "a fence is not closed"),
    ],
)
def test_a_wrong_example_is_found(block: str, complaint: str) -> None:
    page = Page("page.md", block)
    page.run()
    assert len(page.failures) == 1
    assert complaint in page.failures[0]


@pytest.mark.usefixtures("folder")
def test_blocks_share_a_folder_and_a_namespace() -> None:
    page = Page(
        "page.md",
        """
```dpc unformatted sub/a.dpc
cell a{(F,conv1x1,Y1)}
```

1. In a list:

   ```console
   $ pip install something-else
   Collecting …
   $ dpc fmt sub/a.dpc
   $ cat sub/a.dpc | dpc convert - --to json > a.json
   $ dpc convert \\
       - --to line < a.json
   (F, conv1x1, Y1)
   ```

```python
from pathlib import Path
```

```python
>>> import dpcdsl
>>> len(dpcdsl.from_json(Path("a.json").read_text()))
1
```

```console needs no_such_module
$ dpc fail
```
""",
    )
    page.run()
    assert page.failures == []
    assert page.skipped == ["page.md:29 needs no_such_module"]


def test_links_are_found() -> None:
    text = (
        '[a](b.md#c) ![d](e.svg) `[no](f)` [g](https://h) [i][j]\n\n[j]: k.md\n\n```\n[no](l)\n```\n<img src="m.png">'
    )
    assert links_of(text) == ["b.md#c", "e.svg", "k.md", "m.png"]
    assert not leads(ROOT / "docs" / "language.md", "nowhere.md")
    assert not leads(ROOT / "docs" / "language.md", "#nowhere")
    assert leads(ROOT / "docs" / "language.md", "errors.md#dpc001-unexpected-character")
    assert not leads(ROOT / "docs" / "language.md", "../..")


@pytest.mark.usefixtures("folder")
def test_examples_in_docstrings() -> None:
    attempted = 0
    for path in sorted((ROOT / "dpcdsl").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if ">>> " in path.read_text(encoding="utf-8") and not name.endswith("__main__"):
            outcome = doctest.testmod(importlib.import_module(name))
            assert not outcome.failed, name
            attempted += outcome.attempted
    assert attempted >= 5
