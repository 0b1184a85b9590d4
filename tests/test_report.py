"""The report of a search: what it gathers, by oracles, and the page, in a real browser whose every message is told."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from support import Dpc

import dpcdsl
from dpcdsl import Cell, strategies
from dpcdsl.search.objective import Attempt
from dpcdsl.search.records import Record
from dpcdsl.search.reporting import Findings, finals_of, gather, page, report
from dpcdsl.search.reporting.findings import _BRANCH, Share, TopCell, best_groups
from dpcdsl.search.reporting.statistics import front, histogram, rises
from dpcdsl.search.study import Plan, SearchStudy
from dpcdsl.search.worker import Terms, work

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DPC = dpcdsl.read_space("dpc")
CELLS = dpcdsl.enumerator(DPC)
HOSTILE = "</script ></script><img src=x onerror=\"window.hurt=1\"><!-- ]]> & 'quoted' <script>window.hurt=1</script>"
CHARTS = ["distribution", "progress", "cost", "finals", "operators", "inputs", "kinds"]


def score(cell: Cell, _: Attempt) -> float:
    return sum(len(str(branch.operator)) for branch in cell.branches) / 100


@pytest.fixture
def study(tmp_path: Path) -> Iterator[SearchStudy]:
    plan = Plan.of(DPC, {"objective": "of the tests"}, "dpc", seed=3)
    with SearchStudy.begin(str(tmp_path / "s.db"), plan) as begun:
        yield begun


def ended(study: SearchStudy, rank: int, score: float | None, **fields: Any) -> Record:
    """A trial that has ended in some way."""
    record = study.record_of(rank)
    number = study.add(record, TrialState.RUNNING)
    scores = None if score is None else {"score": score, **{name: record.costs[name] for name in study.plan.minimize}}
    record = record.but(scores=scores, **fields)
    assert study.finish(number, record)
    return record


# What is gathered


def test_each_class_counts_once_and_failures_by_their_reasons(study: SearchStudy) -> None:
    best = ended(study, 5, 0.9)
    ended(study, 6, 0.5)
    ended(study, 5, 0.9, reused=0)  # proposed again
    ended(study, 7, None, failure="it fell")
    ended(study, 8, None, failure="it fell")
    ended(study, 9, None, failure="it broke")
    ended(study, 6, None, withdrawn="trial 1 is of the same cell")
    lost = study.add(study.record_of(10), TrialState.RUNNING)
    assert study.give_up(lost)
    ended(study, 10, 0.7, first=7, attempt=2)
    study.add(study.record_of(11), TrialState.WAITING)
    study.add(study.record_of(12), TrialState.RUNNING)
    found = gather(study, {best.key: 0.8, "another": 1.0})
    assert found.numbers == (0, 1, 7)
    assert found.scores == (0.9, 0.5, 0.7)
    assert found.again == 1
    assert found.failures == (("it fell", 2), ("it broke", 1))
    assert found.failed == 3
    assert (found.running, found.waiting) == (1, 1)
    assert [cell.number for cell in found.top] == [0, 7, 1]
    assert [cell.place for cell in found.top] == [1, 2, 3]
    assert found.finals == (0.8, None, None)
    assert found.best_final == found.top[0]
    assert found.top[0].cell == best.cell
    assert (found.top[0].params, found.top[0].madds) == (best.costs["params"], best.costs["madds"])
    assert "<svg" in found.top[0].diagram
    assert [len(gather(study, top=top).top) for top in (1, 2, 3, 4)] == [1, 2, 3, 3]


def test_the_best_by_final_score_is_shown_though_it_is_not_among_the_top(study: SearchStudy) -> None:
    records = [ended(study, rank, rank / 10) for rank in range(6)]
    finals = {records[0].key: 0.9, records[1].key: 0.9, records[2].key: 0.1}
    found = gather(study, finals, top=2)
    assert [cell.number for cell in found.top] == [5, 4]
    assert found.best_final is not None
    assert (found.best_final.number, found.best_final.place, found.best_final.final) == (
        0,
        6,
        0.9,
    )  # of equals the first


@pytest.mark.parametrize("minimize", [(), ("params",), ("params", "madds")])
def test_the_order_is_that_of_the_study(tmp_path: Path, minimize: tuple[str, ...]) -> None:
    with SearchStudy.begin(str(tmp_path / "s.db"), Plan.of(DPC, {"objective": "x"}, minimize=minimize)) as study:
        work(study, score, "near-best", Terms(40))
        found = gather(study, top=7)
        assert [cell.number for cell in found.top] == [seen.number for seen in study.best(7)]
        assert [found.numbers[place] for place in found.order] == [seen.number for seen in study.best(40)]
        assert found.measures == ("score", *minimize)


def test_shares_are_of_the_branches_of_the_best_and_of_all(study: SearchStudy) -> None:
    ranks = CELLS.sample_ranks(125, seed=2).tolist()
    for place, rank in enumerate(ranks):
        ended(study, rank, -place / 10)
    found = gather(study, top=1)
    assert best_groups(125) == (2, 13, 125)
    branches = [
        [branch for rank in ranks[:count] for branch in CELLS.unrank(rank).branches] for count in best_groups(125)
    ]
    for shares, name in (
        (found.operators, lambda branch: str(branch.operator)),
        (found.kinds, lambda branch: branch.operator.kind),
        (found.inputs, lambda branch: f"Y{branch.input}" if branch.input else "F"),
    ):
        names = [list(map(name, group)) for group in branches]
        assert {share.name for share in shares} == set(names[2])
        for share in shares:
            wanted = [group.count(share.name) / len(group) for group in names]
            assert [share.best, share.tenth, share.all] == pytest.approx(wanted)
        assert [share.best for share in shares] == sorted((share.best for share in shares), reverse=True)


@given(strategies.cells())
def test_branches_are_read_off_the_text_of_any_cell(cell: Cell) -> None:
    found = [(read, kind + parameters, kind) for read, kind, parameters in _BRANCH.findall(str(cell))]
    assert found == [
        (f"Y{branch.input}" if branch.input else "F", str(branch.operator), branch.operator.kind)
        for branch in cell.branches
    ]


def test_branches_have_all_their_parameters() -> None:
    assert _BRANCH.findall("filters 64 (F, blur size 3 rate 1x2, Y1) (Y1, plain, Y2)") == [
        ("F", "blur", " size 3 rate 1x2"),
        ("Y1", "plain", ""),
    ]


# Numbers

scores = st.lists(st.integers(-20, 20).map(lambda n: n / 4), max_size=30)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_a_front_is_of_what_no_other_beats(pairs: list[tuple[int, int]]) -> None:
    def beaten(place: int) -> bool:
        mine, cost = pairs[place]
        for other, (score, price) in enumerate(pairs):
            if score >= mine and price <= cost and ((score, price) != (mine, cost) or other < place):
                return True
        return False

    found = front([score for score, _ in pairs], [cost for _, cost in pairs])
    assert sorted(found) == [place for place in range(len(pairs)) if not beaten(place)]
    assert [pairs[place][1] for place in found] == sorted(pairs[place][1] for place in found)


@given(st.lists(st.floats(-1e9, 1e9), max_size=60))
def test_a_histogram_has_every_value_in_its_bin(values: list[float]) -> None:
    edges, counts = histogram(values)
    assert sum(counts) == len(values)
    assert edges == sorted(set(edges))
    if values:
        assert len(edges) == len(counts) + 1 <= 63
        assert edges[0] <= min(values)
        assert edges[-1] >= max(values)
        for place, count in enumerate(counts[:-1]):
            assert count == sum(edges[place] <= value < edges[place + 1] for value in values)


@pytest.mark.parametrize(
    "values", [[0.0, 5e-324], [-1e308, 1e308, 1e308], [1e16, 1e16 + 2], [0.1 + 0.2, 0.3], [7.0] * 9, [0.0]]
)
def test_a_histogram_of_extremes(values: list[float]) -> None:
    edges, counts = histogram(values)
    assert sum(counts) == len(values)
    assert edges[0] <= min(values) <= max(values) <= edges[-1]


@given(scores)
def test_rises_are_better_than_all_before(values: list[float]) -> None:
    assert rises(values) == [place for place, value in enumerate(values) if all(value > old for old in values[:place])]


# The command


def test_dpc_report(dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "o.py").write_text("def score(cell, attempt):\n    return len(str(cell)) / 100\n")
    done = dpc("search", "dpc", "--objective", "o.py:score", "--trials", 12)
    assert done.code == 0, done.err
    done = dpc("report", "search.db", "--top", 5)
    assert (done.code, done.out) == (0, "report.html: 12 trials\n")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<tr role="row" data-place') == 5
    assert "figure-finals" not in text
    with SearchStudy.open("search.db") as study:
        best = study.best(3)
        plan = study.plan
        records = [seen.record for seen in best if seen.record]
    with SearchStudy.begin(
        "search.db", plan.model_copy(update={"objective": {"objective": "final"}}), "search.final"
    ) as f:
        for record, final in zip(records, (0.5, 0.25, 0.75), strict=True):
            ended(f, record.rank, final)
        assert finals_of(f) == dict(zip((record.key for record in records), (0.5, 0.25, 0.75), strict=True))
    done = dpc("report", "search.db", "-o", "two.html")
    assert (done.code, done.out) == (0, "two.html: 12 trials\n")
    text = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "figure-finals" in text
    assert text == report("search.db")
    other = dpc("report", "search.db", "--final", "another")
    assert (other.code, "there is no study another" in other.err) == (1, True)
    assert "Spearman’s ρ is -0.500 and Kendall’s τ is -0.333." in text


@pytest.mark.usefixtures("study")
def test_dpc_report_refuses(dpc: Dpc, tmp_path: Path) -> None:
    done = dpc("report", "nowhere.db")
    assert done.code == 1
    assert "there is no such file [DPC098]" in done.err
    done = dpc("report", "s.db", "--name", "other")
    assert done.code == 1
    assert "there is no study other [DPC098]" in done.err
    done = dpc("report", "s.db", "-o", "no/where.html")
    assert done.code == 1
    assert "no/where.html cannot be written" in done.err
    assert dpc("report", "s.db").out == "report.html: 0 trials\n"
    assert not list(tmp_path.glob(".*.part"))


# The page


def shown_cell(place: int, number: int, rank: int, score: float, final: float | None = None) -> TopCell:
    cell = CELLS.unrank(rank)
    costs = dpcdsl.cost(cell)
    svg = '<svg width="400pt" height="200pt" viewBox="0 0 400 200" role="img"><title>drawn</title></svg>'
    return TopCell(place, number, str(cell), svg, score, final, costs.params, costs.madds)


def made(trials: int, top: int = 20, finals: int = 12) -> Findings:
    """Findings of no study, made up in a moment."""
    numbers = tuple(range(trials))
    scores = tuple(0.7 + 0.05 * math.sin(number * number) for number in numbers)
    order = tuple(sorted(numbers, key=lambda number: (-scores[number], number)))
    final = {number: 0.8 + 0.01 * math.cos(number) for number in order[:finals]}
    ranks = CELLS.sample_ranks(max(1, min(top, trials)), seed=1).tolist()
    cells = [
        shown_cell(place, number, rank, scores[number], final.get(number))
        for place, (number, rank) in enumerate(zip(order[:top], ranks, strict=False), 1)
    ]
    shares = tuple(Share(f"sepconv3x3 rate {n}x{n}", 0.1 / n, 0.07 / n, 0.05 / n) for n in range(1, 82))
    return Findings(
        name="made up",
        space=f"dpc: {DPC}",
        objective="of the tests",
        measures=("score",),
        seed=0,
        features=320,
        size=(65, 129),
        again=0,
        running=0,
        waiting=0,
        failures=(("RuntimeError: out of memory", 3),),
        numbers=numbers,
        scores=scores,
        params=tuple(300_000 + (number * 7919) % 200_000 for number in numbers),
        madds=tuple(2_500_000_000 + (number * 104_729) % 1_000_000_000 for number in numbers),
        finals=tuple(map(final.get, numbers)),
        order=order,
        kinds=(Share("sepconv3x3", 0.7, 0.6, 0.5), Share("conv1x1", 0.3, 0.4, 0.5)),
        operators=shares,
        inputs=tuple(Share(name, 0.3, 0.2, 0.2) for name in ("F", "Y1", "Y2", "Y3", "Y4")),
        top=tuple(cells),
        best_final=next((cell for cell in cells if cell.final is not None), None),
    )


@pytest.fixture(scope="module")
def browser(needs: Callable[[str], str]) -> Iterator[Browser]:
    chromium = needs("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        reason = "playwright is not installed (the extra `dev` brings it)"
        if os.environ.get("DPCDSL_REQUIRE") == "all":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


#: Opens a page of these findings; options are of the browser's context.
Opener = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """In the end it is an error if any page has said anything to the console, or has asked for anything."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(findings: Findings, script: str = "", **options: Any) -> Page:
        file = tmp_path / "report.html"
        file.write_text(page(findings), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        tab.on("request", lambda request: asked.append(request.url))
        if script:
            tab.add_init_script(script)
        tab.goto(file.as_uri())
        assert asked == [file.as_uri()]
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith("file:") and url.endswith("/report.html") for url in asked), asked


def until(tab: Page, condition: str) -> None:
    """Waits for an expression of JavaScript: the page lets no one wait in it, who would have to evaluate text there."""
    for _ in range(400):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"it never came to this: {condition}")


def draw_all(tab: Page) -> None:
    for chart in tab.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
    until(tab, "document.querySelectorAll('[data-chart]:not([data-drawn])').length === 0")
    tab.wait_for_timeout(100)  # large ones are drawn a part a frame


def places(tab: Page) -> list[int]:
    """The ranks of the rows that are seen, from top to bottom."""
    found = tab.evaluate("[...document.querySelectorAll('#rows tr')].filter(r => !r.hidden).map(r => r.dataset.place)")
    return list(map(int, found))


INK = """chart => {
  const canvas = chart.querySelector("canvas");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let inked = 0;
  for (let at = 3; at < data.length; at += 4) inked += data[at] > 0;
  return inked / (canvas.width * canvas.height);
}"""


def test_charts_are_drawn_and_told(opened: Opener) -> None:
    tab = opened(made(500))
    assert tab.title() == "made up: report of a search"
    draw_all(tab)
    charts = tab.locator("[data-chart]")
    assert [chart.get_attribute("data-chart") for chart in charts.all()] == CHARTS
    for chart in charts.all():
        assert chart.evaluate(INK) > 0.005
        said = tab.locator(f"#{chart.get_attribute('aria-labelledby')}").inner_text()
        assert re.match(r"Fig\. \d\. .{60,}", said, re.S)
        chart.hover()
    assert re.search(r"12 cells with a final score\. Spearman’s ρ is \S+ \(95 %: \S+ to \S+\) and", tab.content())
    failed = tab.locator("#failures ~ .scroll").inner_text()
    assert "3\tRuntimeError: out of memory" in failed
    assert len(tab.locator("details tbody tr").all()) == 2 + 81 + 5


def test_the_cost_is_chosen(opened: Opener) -> None:
    tab = opened(replace(made(300), measures=("score", "madds")))
    draw_all(tab)
    params, madds = tab.get_by_role("button", name="Parameters"), tab.get_by_role("button", name="Multiply-adds")
    assert [each.get_attribute("aria-pressed") for each in (params, madds)] == ["false", "true"]
    picture = "document.querySelector('[data-chart=cost] canvas').toDataURL()"
    before = tab.evaluate(picture)
    params.focus()
    tab.keyboard.press("Enter")
    assert [each.get_attribute("aria-pressed") for each in (params, madds)] == ["true", "false"]
    until(tab, f"{picture} !== {json.dumps(before)}")


def test_columns_sort(opened: Opener) -> None:
    findings = made(100)
    tab = opened(findings)
    tab.get_by_role("button", name="Score").click()  # by the rank it is sorted already
    for column, key, first in [
        ("Rank", "place", 1),
        ("Score", "score", -1),
        ("Final", "final", -1),
        ("Params", "params", 1),
        ("MAdds", "madds", 1),
        ("Trial", "number", 1),
    ]:
        tab.get_by_role("button", name=column, exact=True).focus()
        for sign in (first, -first):
            tab.keyboard.press("Enter" if sign > 0 else "Space")

            def wanted(cell: TopCell, key: str = key, sign: int = sign) -> tuple[bool, float, int]:
                value = getattr(cell, key)
                return value is None, sign * (value or 0), cell.place

            assert places(tab) == [cell.place for cell in sorted(findings.top, key=wanted)]
            order = "ascending" if sign > 0 else "descending"
            heads = tab.locator("th[aria-sort]").all()
            states = {head.inner_text().strip(): head.get_attribute("aria-sort") for head in heads}
            assert states.pop(column) == order
            assert set(states.values()) == {"none"}


def test_filters(opened: Opener) -> None:
    findings = made(100)
    tab = opened(findings)
    total = len(findings.top)

    def check(wanted: Callable[[TopCell], bool]) -> None:
        left = [cell.place for cell in findings.top if wanted(cell)]
        assert 0 < len(left) < total
        assert places(tab) == left
        assert tab.locator("#shown").inner_text() == f"{len(left)} of {total} cells"

    text = tab.get_by_label("Text in the cell")
    text.focus()
    tab.keyboard.type("AVGPOOL")
    check(lambda cell: "avgpool" in cell.cell)
    text.fill("avgpool, (Y1,")
    check(lambda cell: "avgpool" in cell.cell and "(Y1," in cell.cell)
    tab.keyboard.press("Enter")  # sends nothing, and leads nowhere
    tab.get_by_role("button", name="Clear").click()
    until(tab, "document.querySelector('#shown').textContent === '20 cells'")
    assert len(places(tab)) == total
    limit = sorted(cell.params for cell in findings.top)[5]
    for text_of_it in (str(limit), f"{limit:,}", f"{limit / 1e6} M", f"{limit / 1e3}k"):
        tab.get_by_label("Params at most").fill(text_of_it)
        check(lambda cell: cell.params <= limit)
    tab.get_by_role("button", name="Trial", exact=True).click()  # sorts what is left
    assert places(tab) == [c.place for c in sorted(findings.top, key=lambda c: c.number) if c.params <= limit]
    tab.get_by_label("Params at most").fill("few")
    assert tab.get_by_label("Params at most").get_attribute("aria-invalid") == "true"
    assert len(places(tab)) == total
    tab.get_by_label("MAdds at most").fill("1")
    assert tab.get_by_text("No cell is like that.").is_visible()
    assert tab.locator("#shown").inner_text() == f"0 of {total} cells"


NO_CLIPBOARD = "Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => undefined})"
REFUSED = (
    "Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => ({writeText: () => Promise.reject(Error())})})"
)


@pytest.mark.parametrize("script", ["", NO_CLIPBOARD, REFUSED])
def test_a_cell_is_copied_as_it_is(opened: Opener, script: str) -> None:
    findings = made(30)
    tab = opened(findings, script, permissions=["clipboard-read", "clipboard-write"])
    for place in (3, 5):
        cell = findings.top[place]
        button = tab.locator(f"#rows tr[data-place='{cell.place}'] button")
        button.focus()
        tab.keyboard.press("Enter")
        until(tab, "document.querySelector('#said').textContent === 'The cell is copied.'")
        assert button.inner_text() == "Copied"
        assert button.evaluate("button => button === document.activeElement")
        text = tab.get_by_label("Text in the cell")
        text.fill("")
        text.focus()
        tab.keyboard.press("Control+V")
        assert text.input_value() == cell.cell
        assert places(tab) == [cell.place]
        assert dpcdsl.parse_cell(text.input_value()) == dpcdsl.parse_cell(cell.cell)
        text.fill("")
        tab.evaluate("document.querySelector('#said').textContent = ''")


def luminance(tab: Page) -> float:
    found = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", found)[:3])) / 765


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(opened: Opener, system: str) -> None:
    other = "dark" if system == "light" else "light"
    tab = opened(made(50), color_scheme=system)
    draw_all(tab)

    def check(wanted: str) -> None:
        assert (luminance(tab) > 0.5) == (wanted == "light")
        drawn = {chart.get_attribute("data-drawn") for chart in tab.locator("[data-chart]").all()}
        assert drawn == {wanted}

    check(system)
    tab.get_by_role("button", name=f"Change to {other}").click()
    check(other)
    tab.reload()
    draw_all(tab)
    check(other)  # it was remembered
    tab.emulate_media(color_scheme=other)
    tab.get_by_role("button", name=f"Change to {system}").click()
    check(system)


def test_the_system_may_change_its_mind(opened: Opener) -> None:
    tab = opened(made(50), color_scheme="light")
    draw_all(tab)
    tab.emulate_media(color_scheme="dark")
    until(tab, "document.querySelectorAll('[data-drawn=dark]').length === 7")
    assert luminance(tab) < 0.5


CONTRAST = """() => {
  const light = text => {
    const linear = v => (v / 255) <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const found = {};
  for (const node of document.querySelectorAll("body *:not(script):not(svg *)")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const style = getComputedStyle(node);
    if (node.ariaPressed === "true") continue;
    const ink = light(style.color);
    found[style.color] = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_told_from_its_ground(opened: Opener, scheme: str) -> None:
    contrasts = opened(made(50), color_scheme=scheme).evaluate(CONTRAST)
    assert len(contrasts) >= 2
    assert min(contrasts.values()) >= 4.5, contrasts


@pytest.mark.parametrize("width", [320, 360, 768])
def test_on_a_phone_nothing_hangs_over(opened: Opener, width: int) -> None:
    findings = replace(made(200), name="n" * 90, failures=(("reason" * 60, 1),), operators=(Share("o" * 90, 1, 1, 1),))
    tab = opened(findings, viewport={"width": width, "height": 740}, has_touch=True)
    draw_all(tab)
    tab.get_by_text("as a table").click()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('figure, .best, .filters, .copied, .chart canvas')]"
    for box in tab.evaluate(f"{wide}.map(node => node.getBoundingClientRect().right)"):
        assert box <= width


def test_the_keyboard_sees_where_it_is(opened: Opener) -> None:
    tab = opened(made(50))
    seen = []
    for _ in range(16):
        tab.keyboard.press("Tab")
        seen.append(
            tab.evaluate("document.activeElement.tagName + ':' + document.activeElement.textContent.slice(0, 40)")
        )
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", seen
    assert seen[0] == "A:Skip to the best cells"
    assert seen[1] == "BUTTON:Dark"
    assert "BUTTON:Parameters" in seen


def test_hostile_texts_are_texts(opened: Opener) -> None:
    findings = made(40)
    first = replace(findings.top[0], cell=HOSTILE)
    findings = replace(
        findings,
        name=HOSTILE,
        space=HOSTILE,
        objective=HOSTILE,
        failures=((HOSTILE, 1), ("half a pair \ud800, \0 and \x1b[1m", 1)),
        operators=(Share(HOSTILE, 0.5, 0.4, 0.3), *findings.operators[:3]),
        inputs=(Share(HOSTILE, 0.5, 0.4, 0.3),),
        kinds=(Share(HOSTILE, 0.5, 0.4, 0.3),),
        top=(first, *findings.top[1:]),
        best_final=first,
    )
    tab = opened(findings)
    draw_all(tab)
    for key in ("operators", "inputs"):
        tab.locator(f"[data-chart={key}]").scroll_into_view_if_needed()
        box = tab.locator(f"[data-chart={key}]").bounding_box()
        assert box is not None
        hovering = ""
        for down in range(40, int(box["height"]) - 40, 15):  # over all rows
            tab.mouse.move(box["x"] + box["width"] - 60, box["y"] + down)
            hovering += tab.locator(f"[data-chart={key}]").inner_text()
        assert HOSTILE in hovering
    assert tab.evaluate("window.hurt") is None
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 4
    assert tab.locator("h1").inner_text() == HOSTILE
    assert tab.title() == f"{HOSTILE}: report of a search"
    assert tab.locator("#rows code").first.inner_text() == HOSTILE
    assert HOSTILE in tab.locator("#failures ~ .scroll").inner_text()


def test_nothing_may_be_loaded_or_run_that_is_not_of_the_page(browser: Browser, tmp_path: Path) -> None:
    """Even if a text were to break out."""
    file = tmp_path / "broken.html"
    (tmp_path / "there.js").write_text("window.hurt = 3")
    hurting = "<img src=x onerror='window.hurt=1'><script>window.hurt=2</script><script src=there.js></script>"
    file.write_text(page(made(3)).replace("</main>", hurting + "</main>"), encoding="utf-8")
    tab = browser.new_page()
    loaded: list[str] = []
    refused: list[str | None] = []
    tab.on("requestfinished", lambda request: loaded.append(request.url))
    tab.on("requestfailed", lambda request: refused.append(request.failure))
    tab.goto(file.as_uri())
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.hurt") is None
    assert set(loaded) <= {file.as_uri()}
    assert refused == ["csp", "csp"]
    tab.close()


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_few_trials(opened: Opener, trials: int) -> None:
    findings = made(trials, finals=trials)
    if not trials:
        findings = replace(findings, kinds=(), operators=(), inputs=(), running=2)
    tab = opened(findings)
    draw_all(tab)
    assert tab.locator("canvas").count() == (7 if trials else 0)
    assert tab.locator("#rows tr").count() == trials
    assert f"{trials} complete" in tab.locator(".facts").inner_text()
    assert ("No trial has ended with a score yet" in tab.content()) == (trials == 0)
    if trials == 1:
        assert "1 cell with a final score: too few for a correlation" in tab.content()


def test_one_real_trial_and_none(study: SearchStudy) -> None:
    assert "No trial has ended" in page(gather(study))
    ended(study, 5, 0.5)
    assert "Scores of 1 cell." in page(gather(study))


def test_28_000_trials(opened: Opener) -> None:
    findings = made(28_000, top=100, finals=50)
    text = page(findings)
    assert len(text.encode()) + 100 * 10_000 <= 5_000_000  # with real diagrams
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    columns = json.loads(data[1])
    assert [len(columns[key]) for key in ("number", "score", "params", "madds")] == [28_000] * 4
    assert all(isinstance(value, int | float) for value in columns["score"])
    tab = opened(findings)
    # What is far below is not drawn, nor is anything before the page has been painted.
    tab.wait_for_selector("[data-chart=distribution][data-drawn]")
    assert tab.locator("[data-chart=inputs][data-drawn]").count() == 0
    draw_all(tab)
    assert tab.evaluate("document.querySelectorAll('*').length") < 10_000
    for key in ("progress", "cost"):
        chart = tab.locator(f"[data-chart={key}]")
        assert chart.evaluate(INK) > 0.03
        large = chart.evaluate("node => echarts.getInstanceByDom(node).getOption().series[0].large")
        assert large is True
    tab.get_by_label("Text in the cell").fill("avgpool")
    assert 0 < len(places(tab)) < 100


def test_the_library_of_charts_comes_with_its_licence() -> None:
    text = page(made(3))
    assert "Copyright 2017-2026 The Apache Software Foundation" in text
    assert "Licensed to the Apache Software Foundation" in text
    folder = Path(dpcdsl.__file__).parent / "search" / "reporting" / "echarts"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "Apache ECharts" in (folder / "NOTICE").read_text(encoding="utf-8")
