"""The page itself: a function of what was found. All that is computed or told is made here; the scripts draw and sort.

Nothing that a study holds is ever markup: its texts are escaped, its numbers are JSON without a sign that HTML knows,
and the page's own policy lets no script run but those whose digests it names, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

import dpcdsl
from dpcdsl.search.correlations import agreement
from dpcdsl.search.reporting.findings import Findings, Share, TopCell, best_groups
from dpcdsl.search.reporting.statistics import front, histogram, rises

__all__ = ["CHARTS", "page"]

#: The library that draws the charts; its licence and its notice lie beside it.
CHARTS = "echarts/echarts.common.min.js"

_COSTS = {"params": "parameters", "madds": "multiply-adds"}
_MOST_REASONS = 50
_LONGEST_REASON = 400
_ROWS = 15  # operators and inputs that are drawn; a table has all
_TOPS = (1, 3, 5, 10, 20, 50, 100)


def page(findings: Findings) -> str:
    """HTML, in one piece."""
    theme, behaviour, charts = _part("theme.js"), _part("page.js"), _part(CHARTS)
    text = Template(_part("page.html")).substitute(
        name=_text(findings.name),
        hashes=" ".join(map(_digest, (theme, charts, behaviour))),
        style=_part("page.css"),
        theme=theme,
        body="\n".join(_body(findings)),
        data=_as_json(_data(findings)),
        licence=_part("echarts/NOTICE").strip(),
        charts=charts,
        behaviour=behaviour,
        version=_text(dpcdsl.__version__),
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can be no part of a file


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _text(value: object) -> str:
    """As it is to be read, whatever it holds."""
    return html.escape(
        "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    )


def _as_json(value: Any) -> str:
    """In a script element: nothing in it ends that."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# Numbers, as people read them


def _score(value: float | None) -> str:
    if value is None:
        return "–"
    plain = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.4f}" if plain else f"{value:.4g}"


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


# What the scripts draw


def _data(findings: Findings) -> dict[str, Any]:
    """Columns, and numbers only: a trial takes some thirty bytes."""
    edges, counts = histogram(findings.scores)
    known = _with_finals(findings)
    return {
        "number": findings.numbers,
        "score": [_rounded(score) for score in findings.scores],
        "params": findings.params,
        "madds": findings.madds,
        "edges": edges,
        "counts": counts,
        "rises": rises(findings.scores),
        "fronts": {cost: front(findings.scores, getattr(findings, cost)) for cost in _COSTS},
        "finals": {"at": known, "final": [findings.finals[place] for place in known]},
        "groups": _group_names(findings),
        "operators": _drawn_shares(findings.operators),
        "inputs": _drawn_shares(findings.inputs),
        "kinds": _drawn_shares(findings.kinds),
    }


def _rounded(score: float) -> float:
    return float(f"{score:.6g}")


def _with_finals(findings: Findings) -> list[int]:
    return [place for place, final in enumerate(findings.finals) if final is not None]


def _drawn_shares(shares: Sequence[Share]) -> dict[str, list[Any]]:
    drawn = shares[:_ROWS]
    return {
        "name": [share.name for share in drawn],
        **{part: [_rounded(getattr(share, part)) for share in drawn] for part in ("best", "tenth", "all")},
    }


def _group_names(findings: Findings) -> list[str]:
    sizes = best_groups(len(findings.scores))
    labels = ("best 1 %", "best 10 %", "all cells")
    return [f"{label} ({_times(size, 'cell')})" for label, size in zip(labels, sizes, strict=True)]


# What is written


def _body(findings: Findings) -> Iterable[str]:
    yield from _summary(findings)
    if findings.scores:
        yield from _scores(findings)
        yield from _composition(findings)
        yield from _cells(findings)
    else:
        yield '<h2>Scores</h2><p id="cells">No trial has ended with a score yet, so there is nothing to draw.</p>'
    yield from _failures(findings)


def _summary(findings: Findings) -> Iterable[str]:
    costs = findings.measures[1:]
    complete = f"{len(findings.scores):,} complete"
    if findings.again:
        complete += f", and {findings.again:,} more of cells that these have"
    facts = {
        "Space": f"<code>{_text(findings.space)}</code>",
        "Objective": f"<code>{_text(findings.objective)}</code>, maximized",
        "Minimized": " and ".join(_COSTS.get(cost, _text(cost)) for cost in costs),
        "Seed": f"{findings.seed}",
        "Trials": complete,
        "Failed": f'<a href="#failures">{findings.failed:,}</a>' if findings.failed else "none",
        "Unfinished": ", ".join(
            f"{count:,} {what}"
            for count, what in ((findings.running, "running"), (findings.waiting, "waiting"))
            if count
        ),
        "Costs": f"counted on {findings.features} channels, map {findings.size[0]}×{findings.size[1]}",
    }
    yield '<section class="summary" aria-label="Summary"><dl class="facts">'
    yield from (f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    yield "</dl><div>"
    if findings.top:
        best, final = findings.top[0], findings.best_final
        if final is None:
            yield _card("The best cell", best)
        elif final.number == best.number:
            yield _card("The best cell, by both scores", best)
        else:
            yield _card("The best cell by final score", final)
            yield _card("The best cell by the score of the search", best)
    yield "</div></section>"


def _card(title: str, cell: TopCell) -> str:
    final = "" if cell.final is None else f", final score <b>{_score(cell.final)}</b>"
    return (
        f'<article class="best"><h3>{title}</h3><div class="pair"><div class="diagram">{_svg(cell)}</div><div>'
        f"<p>Score <b>{_score(cell.score)}</b>{final}, {cell.params:,} parameters, {cell.madds:,} multiply-adds; "
        f"place {cell.place:,}, trial {cell.number:,}.</p>{_copied(cell)}</div></div></article>"
    )


def _svg(cell: TopCell) -> str:
    """Without the names of its parts, which the other diagrams on the page have too."""
    return re.sub(r'<g id="[^"]*"', "<g", cell.diagram)


def _copied(cell: TopCell) -> str:
    return (
        f'<div class="copied"><code>{_text(cell.cell)}</code>'
        f'<button type="button" class="copy" aria-label="Copy the cell of trial {cell.number}">Copy</button></div>'
    )


def _figure(
    number: int, key: str, title: str, caption: str, *, choice: str = "", below: str = "", height: int = 0
) -> str:
    style = f' style="height:{height}px"' if height else ""
    return (
        f'<figure id="figure-{key}"><div class="titled"><h3>{title}</h3>{choice}</div>'
        f'<div class="chart" data-chart="{key}" role="img" aria-labelledby="caption-{key}"{style}></div>'
        f'<figcaption id="caption-{key}"><b>Fig. {number}.</b> {caption}</figcaption>{below}</figure>'
    )


def _scores(findings: Findings) -> Iterable[str]:
    scores, numbers = np.array(findings.scores), findings.numbers
    low, median, high = np.quantile(scores, (0.25, 0.5, 0.75)).tolist()
    at = rises(findings.scores)
    yield '<h2>Scores</h2><div class="figures">'
    yield _figure(
        1,
        "distribution",
        "How the scores are distributed",
        f"Scores of {_times(len(scores), 'cell')}. The median is {_score(median)}, half of them lie from {_score(low)} "
        f"to {_score(high)}, the worst is {_score(float(scores.min()))}, the best {_score(float(scores.max()))}.",
    )
    yield _figure(
        2,
        "progress",
        "The best so far",
        f"The best score after each trial (line), and every trial (dots). It rose {_times(len(at) - 1, 'time')} after "
        f"the first, to {_score(float(scores.max()))} in trial {numbers[at[-1]]:,} of {numbers[-1] + 1:,}.",
    )
    first = next(iter(findings.measures[1:]), "params")
    buttons = "".join(
        f'<button type="button" data-cost="{cost}" aria-pressed="{str(cost == first).lower()}">'
        f"{name.capitalize()}</button>"
        for cost, name in _COSTS.items()
    )
    yield _figure(
        3,
        "cost",
        "Score against cost",
        "The line is the Pareto front: no cell is as good as one on it in score and cost, and better in one. "
        + " ".join(_front_in_words(findings, cost) for cost in _COSTS),
        choice=f'<div class="choose" role="group" aria-label="Cost">{buttons}</div>',
    )
    if known := _with_finals(findings):
        words, below = _finals_in_words(findings, known), _agreement(findings, known)
        yield _figure(4, "finals", "Score of the search against final score", words, below=below)
    yield "</div>"


def _front_in_words(findings: Findings, cost: str) -> str:
    costs: tuple[int, ...] = getattr(findings, cost)
    places = front(findings.scores, costs)
    ends = [f"{_score(findings.scores[place])} at {_short(costs[place])}" for place in (places[0], places[-1])]
    reach = ends[0] if len(places) == 1 else f"from {ends[0]} to {ends[1]}"
    return f"By {_COSTS[cost]} it has {_times(len(places), 'cell')}, {reach}."


def _pairs(findings: Findings, known: Sequence[int]) -> tuple[list[float], list[float]]:
    finals = [final for final in findings.finals if final is not None]
    return [findings.scores[place] for place in known], finals


def _finals_in_words(findings: Findings, known: Sequence[int]) -> str:
    found = agreement(*_pairs(findings, known))
    said = f"{_times(len(known), 'cell')} with a final score"
    if found.spearman is None:
        return f"{said}: too few for a correlation, or all alike."
    between = "" if found.low is None else f" (95 %: {found.low:.3f} to {found.high:.3f})"
    return f"{said}. Spearman’s ρ is {found.spearman:.3f}{between} and Kendall’s τ is {found.kendall:.3f}."


def _agreement(findings: Findings, known: Sequence[int]) -> str:
    """How many of the best are the same by both scores."""
    if not (counts := [count for count in _TOPS if count < len(known)]):
        return ""
    top = agreement(*_pairs(findings, known), top=counts).top
    head = "".join(f'<th scope="col" class="number">{count}</th>' for count in counts)
    row = "".join(f'<td class="number">{round(count * top[count])}</td>' for count in counts)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Agreement of the best"><table class="plain">'
        f'<thead><tr><th scope="row">Of so many best by either</th>{head}</tr></thead>'
        f'<tbody><tr><th scope="row">are the same</th>{row}</tr></tbody></table></div>'
    )


def _composition(findings: Findings) -> Iterable[str]:
    count = 4 + bool(_with_finals(findings))
    yield '<h2>What the best cells are made of</h2><div class="figures">'
    for number, key, title, what in (
        (count, "operators", "Operators", "branches that have the operator"),
        (count + 1, "inputs", "Inputs", "branches that read the input"),
        (count + 2, "kinds", "Kinds of operators", "branches that have an operator of the kind"),
    ):
        shares: tuple[Share, ...] = getattr(findings, key)
        drawn = min(len(shares), _ROWS)
        first = f"The {_ROWS} that the best have most often, of {len(shares)}. " if len(shares) > _ROWS else ""
        most = max(shares, key=lambda share: share.best)
        caption = (
            f"The share of {what}, by how good the cell is. {first}<code>{_text(most.name)}</code>: "
            f"{_percent(most.best)} among the best 1 %, {_percent(most.tenth)} among the best 10 %, "
            f"{_percent(most.all)} among all."
        )
        if key == "inputs":
            yield '<div class="column">'
        yield _figure(number, key, title, caption, height=96 + 25 * max(drawn, 3))
    yield "</div></div>"
    heads = "".join(f'<th scope="col" class="number">{_text(name)}</th>' for name in _group_names(findings))
    rows = [
        f'<tr><th scope="row">{title}{_text(share.name)}</th>'
        + "".join(f'<td class="number">{_percent(part)}</td>' for part in (share.best, share.tenth, share.all))
        + f'<td class="number">{share.best / share.all:.2f}</td></tr>'
        for title, shares in (("all of ", findings.kinds), ("", findings.operators), ("reads ", findings.inputs))
        for share in shares
    ]
    yield (
        "<details><summary>All kinds, operators and inputs as a table</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Kinds, operators and inputs"><table class="plain">'
        f'<thead><tr><th scope="col">Share of branches</th>{heads}<th scope="col" class="number">best 1 % ÷ all</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


_COLUMNS = (
    ("place", "Rank", "ascending"),
    ("score", "Score", "none"),
    ("final", "Final", "none"),
    ("params", "Params", "none"),
    ("madds", "MAdds", "none"),
    ("number", "Trial", "none"),
)


def _cells(findings: Findings) -> Iterable[str]:
    columns = [column for column in _COLUMNS if column[0] != "final" or _with_finals(findings)]
    rank = ""
    if len(findings.measures) > 1:
        rank = "The rank is by how few others are as good in every measure that was searched for, and better in one."
    yield (
        f'<h2 id="cells">The best cells</h2><p>{rank}</p>'
        '<form class="filters" id="filters" role="search" aria-label="Filter the cells">'
        '<label>Text in the cell; several between commas<input class="wide" id="text" type="search" '
        'autocomplete="off" spellcheck="false" placeholder="sepconv3x3 rate 6x6, avgpool"></label>'
        '<label class="half">Params at most<input id="max-params" inputmode="decimal" autocomplete="off" '
        'placeholder="0.4M"></label>'
        '<label class="half">MAdds at most<input id="max-madds" inputmode="decimal" autocomplete="off" '
        'placeholder="3G"></label>'
        f'<button type="reset">Clear</button><output id="shown">{_times(len(findings.top), "cell")}</output></form>'
    )
    heads = "".join(
        f'<th role="columnheader" scope="col" class="number" aria-sort="{order}">'
        f'<button type="button" data-column="{key}">{label}</button></th>'
        for key, label, order in columns
    )
    yield (
        '<div class="scroll"><table class="cells" role="table" aria-label="The best cells"><thead role="rowgroup">'
        f'<tr role="row">{heads}<th role="columnheader" scope="col" class="cell"><span>Cell</span></th></tr></thead>'
        '<tbody role="rowgroup" id="rows">'
    )
    yield from (_row(cell, columns) for cell in findings.top)
    yield '</tbody></table></div><p id="none" hidden>No cell is like that.</p>'


def _row(cell: TopCell, columns: Sequence[tuple[str, str, str]]) -> str:
    shown = {
        "place": f"{cell.place:,}",
        "score": _score(cell.score),
        "final": _score(cell.final),
        "params": f"{cell.params:,}",
        "madds": f"{cell.madds:,}",
        "number": f"{cell.number:,}",
    }
    values = "".join(
        f' data-{key}="{"" if getattr(cell, key) is None else repr(getattr(cell, key))}"' for key, _, _ in columns
    )
    numbers = "".join(
        f'<td role="cell" class="number" data-label="{label}">{shown[key]}</td>' for key, label, _ in columns
    )
    return (
        f'<tr role="row"{values}>{numbers}<td role="cell" class="cell"><div class="pair">'
        f'<div class="diagram">{_svg(cell)}</div>{_copied(cell)}</div></td></tr>'
    )


def _failures(findings: Findings) -> Iterable[str]:
    if not findings.failures:
        return
    yield f'<h2 id="failures">Failed trials</h2><p>{_times(findings.failed, "trial")} of cells that have no score:</p>'
    yield (
        '<div class="scroll" tabindex="0" role="region" aria-label="Failed trials"><table class="plain"><thead><tr>'
        '<th scope="col" class="number">Times</th><th scope="col">Reason</th></tr></thead><tbody>'
    )
    for reason, count in findings.failures[:_MOST_REASONS]:
        said = reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
        yield f'<tr><td class="number">{count:,}</td><td>{_text(said)}</td></tr>'
    if rest := findings.failures[_MOST_REASONS:]:
        count = sum(times for _, times in rest)
        yield f'<tr><td class="number">{count:,}</td><td>{_times(len(rest), "other reason")}</td></tr>'
    yield "</tbody></table></div>"
