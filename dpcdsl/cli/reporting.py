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
        from dpcdsl.search.report import finals_of, gather, page
        from dpcdsl.search.rerank import FINAL
        from dpcdsl.search.storage import patiently
        from dpcdsl.search.study import SearchStudy

    with SearchStudy.open(study, name) as opened:
        finals: dict[str, float] = {}
        names = {known.study_name for known in patiently(opened.storage.get_all_studies)}
        if final is not None or name + FINAL in names:
            with SearchStudy.open(study, final or name + FINAL) as last:
                finals = finals_of(last)
        findings = gather(opened, finals, top)
    write_whole(out, page(findings))
    click.echo(f"{out}: {len(findings.scores):,} trial{'' if len(findings.scores) == 1 else 's'}")
