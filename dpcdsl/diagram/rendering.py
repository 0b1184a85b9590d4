"""From DOT text to a picture: the one place that runs Graphviz."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole

__all__ = ["FONT", "LARGEST_SIDE", "Diagram", "marked_up"]

#: Families in the order of preference; text stays text in SVG, so the reader's machine chooses.
FONT = "Helvetica,Arial,sans-serif"
#: No side of a PNG is longer, in pixels; a drawing that would be is scaled down.
LARGEST_SIDE = 10_000

_SECONDS = 120

# The Graphviz inside pygraphviz keeps its state in globals and writes its and Fontconfig's warnings to file descriptor
# 2, so it runs in a process of its own, as `dot` does: safe among threads, silent, and a crash of it is only an error.
_BUNDLED = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
picture = graph.draw(format=sys.argv[1], prog=graph.graph_attr.get("layout") or "dot", args=" ".join(sys.argv[2:]))
sys.stdout.buffer.write(picture)
"""


@dataclass(frozen=True)
class Diagram:
    """A drawing as DOT text. The same cell gives the same text, everywhere and always.

    dot: the text, which any Graphviz can read. title: what a screen reader says in place of the picture.

    Pictures are made by ``dot`` where it is on the path, else by the Graphviz inside pygraphviz; :class:`DpcError`
    DPC063 where there is neither, or where they fail.
    """

    dot: str = field(repr=False)
    title: str

    def svg(self) -> str:
        """An ``<svg>`` element with its text as text, on white, ready for a page or a notebook."""
        return _tidied(_rendered(self.dot, "svg").decode(), self.title)

    def png(self, dpi: int = 150) -> bytes:
        """A PNG with ``dpi`` pixels an inch (10 to 1200); at most :data:`LARGEST_SIDE` pixels a side."""
        if not 10 <= dpi <= 1200:
            raise DpcError.of("DPC062", f"dpi must be from 10 to 1200, not {dpi}", hint="150 suits a screen, 300 paper")
        side = LARGEST_SIDE / dpi
        return _rendered(self.dot, "png", f"-Gdpi={dpi}", f"-Gsize={side:.4f},{side:.4f}")

    def pdf(self) -> bytes:
        """A PDF of one page, as large as the drawing."""
        return _rendered(self.dot, "pdf")

    def save(self, path: str | Path, *, dpi: int = 150) -> None:
        """Write the file, whole or not at all, in the format that its suffix names: .svg, .png, .pdf or .dot.

        dpi: for .png alone.

        Raises :class:`DpcError`: DPC063 for another suffix, DPC060 if the file cannot be written.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".svg":
                data: str | bytes = '<?xml version="1.0" encoding="UTF-8"?>\n' + self.svg()
            case ".png":
                data = self.png(dpi)
            case ".pdf":
                data = self.pdf()
            case ".dot":
                data = self.dot
            case suffix:
                raise DpcError.of(
                    "DPC063",
                    f"{path} cannot be drawn: " + (f"`{suffix}` is no format of diagrams" if suffix else "no suffix"),
                    hint="end its name in .svg, .png, .pdf or .dot",
                )
        write_whole(path, data)

    def _repr_svg_(self) -> str:
        return self.svg()


def marked_up(text: str) -> str:
    """``text`` for an HTML-like label: as it is to be read, whatever it holds, and never as markup."""
    # Graphviz looks for its escapes (`\N` is the node's name) even here.
    return html.escape(_printable(text)).replace("\\", "\\\\")


def _printable(text: str) -> str:
    # XML has no way to write most control characters and lone surrogates.
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rendered(dot: str, picture: str, *options: str) -> bytes:
    """The DOT text in the format ``picture``, by the first Graphviz that can."""
    failures = []
    for name, command in _graphvizes():
        try:
            done = subprocess.run(
                [*command, picture if name == "pygraphviz" else f"-T{picture}", *options],
                input=dot.encode(),
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            failures.append(f"{name} took more than {_SECONDS} seconds")
        except OSError as error:
            failures.append(f"{name} does not start: {error}")
        else:
            if done.returncode == 0 and done.stdout:
                return done.stdout
            said = done.stderr.decode(errors="replace").strip().splitlines()
            failures.append(f"{name} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    raise DpcError.of(
        "DPC063",
        f"no {picture.upper()} could be drawn: " + ("; ".join(failures) or "there is no Graphviz here"),
        hint='install Graphviz (the program `dot`) or `pip install "pygraphviz>=2"`; saving as .dot needs neither',
    )


def _graphvizes() -> Iterator[tuple[str, list[str]]]:
    """Names and commands of the Graphvizes of this machine."""
    if program := shutil.which("dot"):
        yield "dot", [program]
    if sys.executable and find_spec("pygraphviz"):
        yield "pygraphviz", [sys.executable, "-P", "-c", _BUNDLED]


def _tidied(svg: str, title: str) -> str:
    """Graphviz's SVG as one element: no prologue, no comments (they name its version), one title.

    Graphviz titles every part by its name in DOT, which would pop up under the mouse.
    """
    svg = re.sub(r"<!--.*?-->\n?|<title>[^<]*</title>\n?", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = "".join(map(_centred, re.split(r'(?=<g id=")', svg)))
    head, _, rest = svg.partition(">")
    title = html.escape(_printable(textwrap.shorten(title, 500, placeholder=" …")))
    # The picture may be wider than a notebook: it shrinks with its frame, and its text with it.
    return f'{head} role="img" style="max-width:100%;height:auto">\n<title>{title}</title>{rest}'


def _centred(group: str) -> str:
    """A box with its lines anchored at their middle.

    Graphviz anchors the lines of an HTML-like label at their left, as wide as they are in the font it has. The reader's
    font may be narrower.
    """
    shape = re.search(r' (?:d|points)="([^"]*)"', group)
    if shape is None:
        return group
    xs = [float(x) for x in re.findall(r"(-?[\d.]+),", shape[1])]
    middle = (min(xs) + max(xs)) / 2
    return re.sub(r'text-anchor="start" x="[^"]*"', f'text-anchor="middle" x="{middle:.2f}"', group)
