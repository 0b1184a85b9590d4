"""``dpc rerank`` and ``dpc fidelity``: what the cheap score is worth, by the dear one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpcdsl.cli.common import json_option, print_json, space_argument, space_of, where_option
from dpcdsl.cli.searches import (
    fleet_options,
    name_option,
    running,
    searching,
    storage_option,
    training_objective,
    watching,
    ways_of,
)
from dpcdsl.cli.training import training_options
from dpcdsl.explain import table
from dpcdsl.files import write_whole
from dpcdsl.plots import plot_kind

if TYPE_CHECKING:
    from dpcdsl.search.comparison import Fidelity
    from dpcdsl.search.reranking import Finalist, Reranking


@click.command("rerank")
@click.argument("storage", metavar="STUDY")
@name_option("search")
@click.option("--top", type=click.IntRange(1), default=50, show_default=True, help="How many of the best.")
@click.option(
    "--objective",
    default="training",
    show_default=True,
    metavar="training|MODULE:FUNCTION",
    help="The score that counts in the end.",
)
@click.option("--final", metavar="NAME", help="Of the study that keeps it; NAME.final by default.")
@click.option("--data", metavar="ROOT", help="The data set's folder; see `dpc data check -h`.")
@click.option("--train", "trains", default="train", show_default=True, metavar="SPLIT")
@click.option("--held-out", default="val", show_default=True, metavar="SPLIT")
@click.option("-o", "--out", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Of checkpoints and card.")
@training_options
@click.option("--readers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images.")
@click.option("--seed", type=click.IntRange(0), help="Of the trainings; the study's by default.")
@fleet_options
@json_option
def rerank_command(
    storage: str,
    name: str,
    top: int,
    objective: str,
    final: str | None,
    data: str | None,
    trains: str,
    held_out: str,
    folder: Path | None,
    seed: int | None,
    grace: float,
    workers: int,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the whole model for the best cells of STUDY, a FILE or URL, and rank them again.

    The same command goes on where one has stopped, each training from its last checkpoint, and a larger --top adds to
    what is there. DIR/winner.txt and DIR/winner.svg are the winner's card.
    """
    with searching():
        from dpcdsl.search.objective import NamedObjective, Objective
        from dpcdsl.search.reranking import rerank

    if objective == "training":
        if data is None or folder is None:
            raise click.UsageError("A training needs --data ROOT and -o DIR.")
        chosen: Objective = training_objective(data, str(folder), train=trains, held_out=held_out, **options)
    else:
        chosen = NamedObjective(objective)
    with watching() as report:
        found = rerank(
            storage,
            chosen,
            top=top,
            name=name,
            final=final,
            seed=seed,
            report=report,
            **running(workers, address, cpus, gpus, grace),
        )
    if as_json:
        print_json(_as_json(found))
    else:
        click.echo(_table(found.finalists))
        click.echo(f"\nproxy against final: {found.agreement}")
    if found.winner is not None and folder is not None:
        card = _card(found, found.winner)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "winner.txt", card)
        _draw(found.winner, folder / "winner.svg")
        if not as_json:
            click.echo(f"\n{card}{folder / 'winner.txt'}\n{folder / 'winner.svg'}")


def _table(finalists: Sequence[Finalist]) -> str:
    rows = [["final", "score", "proxy", "score", "trial", "params", "madds", "cell"]]
    for one in finalists:
        proxy, final = one.scores
        record = one.proxy.record
        assert record is not None
        last = one.final.record
        rows.append(
            [
                "" if one.final_place is None else str(one.final_place),
                f"{final:.4f}" if final is not None else f"{last.failure if last else ''}",
                str(one.proxy_place),
                f"{proxy:.4f}",
                str(one.proxy.number),
                f"{record.costs['params']:,}",
                f"{record.costs['madds']:,}",
                record.cell,
            ]
        )
    return table(rows, right=(0, 1, 2, 3, 4, 5, 6))


def _as_json(found: Reranking) -> dict[str, Any]:
    finalists = []
    for one in found.finalists:
        (proxy, final), record, last = one.scores, one.proxy.record, one.final.record
        assert record is not None
        finalists.append(
            {
                "cell": record.cell,
                "id": record.id,
                "final": {"place": one.final_place, "score": final, "trial": one.final.number},
                "proxy": {"place": one.proxy_place, "score": proxy, "trial": one.proxy.number},
                "costs": record.costs,
                "failure": last.failure if last else None,
                "notes": last.notes if last else {},
            }
        )
    return {"finalists": finalists, "agreement": found.agreement.to_json()}


def _card(found: Reranking, winner: Finalist) -> str:
    """All that a paper would say of it."""
    from dpcdsl.explain import explain
    from dpcdsl.syntax import parse_cell

    record, last = winner.proxy.record, winner.final.record
    assert record is not None
    assert last is not None
    proxy, final = winner.scores
    facts = [
        ["", ""],
        ["final score", f"{final:.4f}, the best of {sum(one.final_place is not None for one in found.finalists)}"],
        ["proxy score", f"{proxy:.4f}, place {winner.proxy_place}"],
        ["trials", f"{winner.proxy.number} by the proxy, {winner.final.number} in the end"],
        ["checkpoint", str(last.notes.get("checkpoint", "none"))],
    ]
    parts = [
        explain(parse_cell(record.cell), name="winner", features=found.plan.features, size=found.plan.size),
        table(facts),
    ]
    if norms := last.notes.get("branches"):
        rows = [["branch", "operator", "L1 norm", "share"]]
        rows += [[one["name"], one["operator"], f"{one['norm']:,.1f}", f"{one['share']:.1%}"] for one in norms]
        parts.append(table(rows, right=(2, 3)))
    return "\n\n".join(parts) + "\n"


def _draw(winner: Finalist, path: Path) -> None:
    from dpcdsl.diagram import draw
    from dpcdsl.syntax import parse_cell

    assert winner.proxy.record is not None
    draw(parse_cell(winner.proxy.record.cell)).save(path)


@click.command("fidelity")
@space_argument
@click.argument("ways", metavar="WAYS.toml", type=click.Path(path_type=Path))
@where_option
@click.option("--count", type=click.IntRange(3), help="Cells that are drawn; by default all of a small space.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw, and of evaluations.")
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="A plot: .png, .svg or .pdf.")
@storage_option
@name_option("fidelity")
@fleet_options
@json_option
def fidelity_command(
    space: str,
    ways: Path,
    where: tuple[str, ...],
    count: int | None,
    seed: int,
    out: Path | None,
    storage: str,
    name: str,
    grace: float,
    workers: int,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    as_json: bool,
) -> None:
    """Score the same cells of SPACE in several ways, and compare every two: does a proxy rank them as the real thing?

    WAYS.toml has a table for each way, which is named by it: objective = "proxy" with a cache and the options of `dpc
    proxy`; or "training" with data, out and the options of `dpc train`; or "module:function". The same command goes on
    where one has stopped.
    """
    with searching():
        from dpcdsl.search.comparison import drawn_cells, fidelity, plot_fidelity

    if out is not None:
        plot_kind(out)  # before hours of work, and not after
    named = space_of(space, where)
    objectives = ways_of(ways)
    cells = drawn_cells(named.space, count, seed)
    with watching() as report:
        found = fidelity(
            storage,
            named.space,
            cells,
            objectives,
            name=name,
            seed=seed,
            report=report,
            **running(workers, address, cpus, gpus, grace),
        )
    if out is not None:
        plot_fidelity(found, out)
    if as_json:
        print_json(found.to_json())
        return
    click.echo(_scores(found))
    for (one, other), agree in found.pairs().items():
        click.echo(f"\n{one} against {other}: {agree}")


def _scores(found: Fidelity) -> str:
    rows = [[*found.scores, "cell"]]
    for place, cell in enumerate(found.cells):
        scores = (of[place] for of in found.scores.values())
        rows.append([*("" if score is None else f"{score:.4f}" for score in scores), cell])
    return table(rows, right=tuple(range(len(found.scores))))
