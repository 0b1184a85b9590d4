"""``dpc report``: a study on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpcdsl.cli.searches import name_option, searching
from dpcdsl.files import write_whole

if TYPE_CHECKING:
    pass


@click.command("report")
@click.argument("study", metavar="STUDY")
@name_option("search")
@click.option("--final", metavar="NAME", help="Of the study of final scores; NAME.final, if there is one, by default.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="One file, that needs nothing else.",
)
@click.option("--top", type=click.IntRange(1), default=100, show_default=True, help="How many of the best are shown.")
def report_command(study: str, name: str, final: str | None, out: Path, top: int) -> None:
    """Write a page about STUDY, a FILE or URL that `dpc search` has filled.

    Where `dpc rerank` has found final scores, they are set against the others.
    """
    with searching():
        from dpcdsl.search.reporting import findings_of, page

    findings = findings_of(study, name, final=final, top=top)
    write_whole(out, page(findings))
    click.echo(f"{out}: {len(findings.scores):,} trial{'' if len(findings.scores) == 1 else 's'}")
