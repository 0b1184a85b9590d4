"""``dpc report``: a study on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpcdsl.cli.searching import searching
from dpcdsl.files import write_whole

if TYPE_CHECKING:
    from dpcdsl.search.study import SearchStudy

#: Added to the name of a study: that of the one which has the final scores of its cells.
_FINAL = ".final"


@click.command("report")
@click.argument("study", metavar="STUDY")
@click.option("--name", default="search", show_default=True, help="Of the study, of which a storage has many.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="One file, that needs nothing else.",
)
@click.option("--top", type=click.IntRange(1), default=100, show_default=True, help="How many of the best are shown.")
def report_command(study: str, name: str, out: Path, top: int) -> None:
    """Write a page about STUDY, a FILE or URL that `dpc search` has filled.

    If the storage has a study NAME.final too, its scores are the final ones of the same cells.
    """
    with searching():
        from dpcdsl.search.report import gather, page
        from dpcdsl.search.study import SearchStudy

    with SearchStudy.open(study, name) as opened:
        findings = gather(opened, _finals(study, opened), top)
    write_whole(out, page(findings))
    click.echo(f"{out}: {len(findings.scores):,} trial{'' if len(findings.scores) == 1 else 's'}")


def _finals(where: str, study: SearchStudy) -> dict[str, float]:
    """Final scores by the class of the cell; none where there is no such study."""
    from dpcdsl.search.report import finals_of
    from dpcdsl.search.storage import patiently
    from dpcdsl.search.study import SearchStudy

    name = study.name + _FINAL
    if name not in {known.study_name for known in patiently(study.storage.get_all_studies)}:
        return {}
    with SearchStudy.open(where, name) as opened:
        return finals_of(opened)
