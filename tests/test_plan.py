"""Plans: what is decided, as text; and that whatever is decided names every map before it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Dpc, Golden

from dpcdsl import Cell, Conventions, DpcError, parse_cell, read_cell, read_space, strategies
from dpcdsl_torch.plan import backward, evaluation, training
from dpcdsl_torch.steps import Concatenate, Convolve, Depthwise, Normalise, Pool, ResizeTo
from dpcdsl_torch.task import FUSIONS, Task, check_fusions

MIXED = parse_cell(
    "(F, avgpool grid 2x4, Y1) (F, sepconv3x3 rate 6x3, Y2) (Y2, avgpool grid 2x4, Y3) (F, avgpool grid 2x4, Y4)"
    " (Y1, conv1x1, Y5) (Y3, sepconv3x3 rate 21x21, Y6)"
)
CELLS = {name: read_cell(name) for name in ("top1", "aspp", "pspnet", "denseaspp")} | {"mixed": MIXED}


def task_of(cell: Cell, **options: object) -> Task:
    task = Task.of(cell, 320, Conventions(), **options)
    assert task is not None
    return task


@pytest.mark.parametrize("name", CELLS)
def test_the_text_of_a_plan(dpc: Dpc, golden: Golden, name: str) -> None:
    written = str(CELLS[name])
    parts = [
        dpc("compile", written, "--plan"),
        dpc("compile", written, "--plan", "--size", "13x17", "--projection", "256"),
        dpc("compile", written, "--plan", "--training"),
    ]
    assert [part.code for part in parts] == [0, 0, 0]
    golden.check(f"plan/{name}.txt", "\n".join(part.out for part in parts))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_text_without_a_fusion(dpc: Dpc, golden: Golden, fusion: str) -> None:
    wanted = ["--training"] if fusion == "training" else ["--projection", "256", "--size", "13x17"]
    done = dpc("compile", str(MIXED), "--plan", "--without", fusion, *wanted)
    golden.check(f"plan/without_{fusion}.txt", done.out)


def written_by(step: object) -> tuple[str, ...]:
    match step:
        case Convolve():
            return tuple(part.target for part in step.parts if part.target)
        case Depthwise() | Pool() | ResizeTo():
            return (step.target,)
        case Concatenate():
            return ("Y",)
    return ()


def read_by(step: object) -> tuple[str, ...]:
    match step:
        case Convolve():
            return (step.source, *step.grids)
        case Depthwise() | Pool() | ResizeTo():
            return (step.source,)
        case Normalise():
            return (step.target,)
        case Concatenate():
            return step.sources
    return ()


@given(
    strategies.cells(read_space("dpc(B=6)")),
    st.sets(st.sampled_from(sorted(FUSIONS))),
    st.sampled_from([None, 256]),
)
def test_every_plan_computes_every_branch_once_from_what_is_there(
    cell: Cell, without: set[str], projection: int | None
) -> None:
    task = task_of(cell, projection=projection, without=frozenset(without))
    plan = evaluation(task)
    there = {"F"}
    if not task.splits:
        there.add("Y")
    computed, projected = [], []
    for step, released in zip(plan.steps, plan.released, strict=True):
        assert set(read_by(step)) <= there, plan
        there |= set(written_by(step))
        if isinstance(step, Convolve):
            computed += [part.number for part in step.parts if part.number > 0]
            projected += [abs(part.number) for part in step.parts if part.projected]
            projected += [int(grid[1:]) for grid in step.grids]
        assert set(released) <= there
        there -= set(released)
    assert sorted(computed) == list(range(1, len(cell) + 1))
    if task.splits:
        assert sorted(projected) == list(range(1, len(cell) + 1))
        feeding = [s for s in plan.steps if isinstance(s, Convolve) and (s.grids or any(p.projected for p in s.parts))]
        assert [s.first for s in feeding] == [True] + [False] * (len(feeding) - 1)
        assert [s.last for s in feeding] == [False] * (len(feeding) - 1) + [True]
    assert str(plan)


@given(strategies.cells(read_space("dpc")))
def test_training_computes_each_product_once_and_goes_back_through_each(cell: Cell) -> None:
    task = task_of(cell)
    forward = [step.number for step in training(task) if step.kind == "product"]
    back = [step.number for step in backward(task) if step.kind == "product_backward"]
    assert forward == back[::-1] == list(range(1, len(cell) + 1))


@given(strategies.cells(read_space("dpc")), st.sets(st.sampled_from(sorted(FUSIONS))), st.sampled_from([None, 19]))
def test_a_task_is_its_text(cell: Cell, without: set[str], projection: int | None) -> None:
    task = task_of(cell, projection=projection, without=frozenset(without), epsilon=(1e-5, 0.1), backend="aten")
    assert Task.loads(task.dumps()) == task


def test_an_unknown_fusion_is_told() -> None:
    with pytest.raises(DpcError, match="no fusion `epilog`; did you mean `epilogue`"):
        check_fusions(["epilog"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compile", "top1"], "ask for the --plan"),
        (["compile", "top1", "-o", "a.py", "--without", "group"], "say what --plan prints"),
    ],
)
def test_wrong_usage(dpc: Dpc, arguments: list[str], says: str) -> None:
    done = dpc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_a_compiler_without_a_plan_says_so(dpc: Dpc) -> None:
    done = dpc("compile", "top1", "--plan", "--target", "eager")
    assert done.code == 1
    assert "the compiler `eager` fuses nothing, and has no plan" in done.err


def test_the_plan_as_json(dpc: Dpc) -> None:
    assert '"plan": [' in dpc("compile", "top1", "--plan", "--json").out
