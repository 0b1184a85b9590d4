"""Cells and spaces as values: membership against brute force, the inverse pair embed and decode, graph, distance."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from itertools import product

import generators
import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Cell,
    DpcError,
    Operator,
    OperatorSet,
    Slot,
    Space,
    distance,
    parse,
    parse_cell,
    read_cell,
    read_space,
)
from dpcdsl.constraints import Branches, Comparison, Depth, Params, Uses
from dpcdsl.interchange import from_vector, to_vector

TEXTS = {
    "three": "3 * (any, conv1x1 | avgpool grid 1x1, _)",
    "chosen inputs": "(F, conv1x1, _) (any, conv1x1 | avgpool grid 1x1, _) ({F, Y2}, conv1x1, _)",
    "optional": "(F, conv1x1, _) optional (any, conv1x1 | avgpool grid 2x2, _) (any, conv1x1, _)",
    "alike": "(F, conv1x1, _) optional (F, conv1x1, _) optional (F, conv1x1, _) (any, conv1x1, _)",
    "all optional": "3 * (F, conv1x1, _)".replace("3 *", "optional 3 *") + " require branches >= 1",
    "constrained": "3 * (any, conv1x1 | sepconv3x3 rate {1, 3} x 6, _) require depth <= 2 and uses(conv1x1) >= 1",
    "filters": "filters 64 2 * (any, conv1x1, _)",
}


def space_of(text: str) -> Space:
    return parse(f"space s {{ {text} }}").space("s")


def members(space: Space) -> Iterator[Cell]:
    """Every cell of a space, by trying every choice at every slot: shares nothing with Space.embed."""
    choices = [
        [*([None] if slot.optional else []), *product(range(number), slot.operators.operators)]
        for number, slot in enumerate(space.slots, 1)
    ]
    for picked in product(*choices):
        places = {0: 0}
        branches = []
        for number, (slot, pick) in enumerate(zip(space.slots, picked, strict=True), 1):
            if pick is None:
                continue
            source, operator = pick
            if source not in places or (slot.inputs is not None and source not in slot.inputs):
                break
            branches.append((places[source], operator))
            places[number] = len(branches)
        else:
            if branches:
                cell = Cell.of(*branches, filters=space.filters)
                if all(constraint.holds(cell) for constraint in space.constraints):
                    yield cell


def universe(branches: int) -> Iterator[Cell]:
    """All cells of up to ``branches`` branches over a few operators."""
    operators = [Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1)), Operator.of("sepconv3x3", rate=(3, 6))]
    for count in range(1, branches + 1):
        for picked in product(*(product(range(number), operators) for number in range(1, count + 1))):
            yield Cell.of(*picked)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_membership_and_vectors_against_brute_force(text: str) -> None:
    space = space_of(text)
    inside = set(members(space))
    assert inside
    for cell in inside:
        choices = space.embed(cell)
        assert choices is not None
        assert space.decode(choices) == cell
        assert from_vector(to_vector(cell, space), space) == cell
    for cell in universe(3):
        assert (cell in space) == (cell in inside), cell


def small_spaces() -> st.SearchStrategy[Space]:
    few = st.sampled_from([Operator.of("conv1x1"), *(Operator.of("avgpool", grid=(g, 1)) for g in (1, 2))])
    condition = st.builds(
        Comparison,
        measure=st.sampled_from([Branches(), Depth(), Uses(kinds=("conv1x1",)), Params(features=3)]),
        relation=st.sampled_from(generators.RELATIONS),
        bound=st.integers(0, 4) | st.integers(0, 10**6),
    )
    return generators.spaces(
        4,
        operators=few,
        conditions=condition,
        filters=st.sampled_from((256, 2)),
    )


@given(small_spaces(), st.data())
@settings(max_examples=150)
def test_membership_of_random_spaces_against_brute_force(space: Space, data: st.DataObject) -> None:
    inside = set(members(space))
    operators = st.sampled_from(sorted({o for slot in space.slots for o in slot.operators.operators}, key=str))
    for _ in range(3):  # cells that may or may not be in it
        cell = data.draw(generators.cells(len(space.slots), operators, st.just(space.filters)))
        assert (cell in space) == (cell in inside)
    for cell in sorted(inside, key=str)[:40]:
        choices = space.embed(cell)
        assert choices is not None
        assert space.decode(choices) == cell
        # Of all ways in which the cell lies in the space, the one that leaves out the earlier slots.
        ways = [
            taken
            for taken in product((False, True), repeat=len(space.slots))
            if sum(taken) == len(cell) and _lies_in(cell, space, taken)
        ]
        assert [choice is not None for choice in choices] == list(ways[0])


def _lies_in(cell: Cell, space: Space, taken: tuple[bool, ...]) -> bool:
    numbers = [0, *(number for number, one in enumerate(taken, 1) if one)]
    return all(slot.optional for slot, one in zip(space.slots, taken, strict=True) if not one) and all(
        branch.operator in space.slots[number - 1].operators.operators
        and numbers[branch.input] in (space.slots[number - 1].inputs or range(number))
        for branch, number in zip(cell.branches, numbers[1:], strict=True)
    )


def test_choices_that_a_space_does_not_have() -> None:
    space = space_of(TEXTS["optional"])
    good = ((0, 0), (1, 1), (2, 0))
    assert space.decode(good) in space
    for wrong in (
        good[:2],
        (*good, (0, 0)),
        (None, (0, 0), (0, 0)),
        ((0, 0), None, (2, 0)),  # what is left out cannot be read
        ((1, 0), (0, 0), (0, 0)),
        ((0, 1), (0, 0), (0, 0)),
        ((0, 0), (0, -1), (0, 0)),
        ((0, 0), (0, 0), (10**5000, 0)),
        ((0, 0), (0, 0), (0, 10**5000)),
    ):
        with pytest.raises(DpcError) as caught:
            space.decode(wrong)
        assert caught.value.codes == ("DPC054",)
    with pytest.raises(DpcError) as caught:
        space_of("2 * (any, conv1x1, _) require depth <= 1").decode(((0, 0), (1, 0)))
    assert caught.value.codes == ("DPC055",)


def test_a_space_of_many_optional_branches_is_searched_soon() -> None:
    conv, pool = Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))
    other = Operator.of("avgpool", grid=(9, 9))
    free = space_of("optional 60 * (any, conv1x1 | avgpool grid 1x1, _) require branches >= 1")
    bound = space_of("(F, conv1x1, _) optional 60 * ({F, Y1}, conv1x1 | avgpool grid 1x1, _)")
    assert Cell.of(*[(0, conv)] * 29, (3, pool)) in free
    assert Cell.of(*[(0, conv)] * 29, (0, other)) not in free
    assert Cell.of(*[(0, conv)] * 29, (1, pool)) in bound
    assert Cell.of(*[(0, conv)] * 29, (29, pool)) not in bound


def test_membership_asks_for_the_filters_too() -> None:
    space = space_of(TEXTS["filters"])
    assert parse_cell("filters 64 (F, conv1x1, Y1) (F, conv1x1, Y2)") in space
    assert parse_cell("(F, conv1x1, Y1) (F, conv1x1, Y2)") not in space
    assert "(F, conv1x1, Y1)" not in space


def test_a_hopeless_membership_ends() -> None:
    space = space_of("(F, conv1x1, _) optional 40 * (any, conv1x1, _) (any, conv1x1, _)")
    cell = Cell.of(*((0, Operator.of("conv1x1")) for _ in range(21)), (1, Operator.of("avgpool", grid=(1, 1))))
    assert cell not in space


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0, 0, 0], "two numbers for each branch, and this has 3"),
        ([], "two numbers for each branch, and this has 0"),
        ([0, 81], "branch 1 has operators 0 to 80, not 81"),
        ([1, 0], "branch 1 cannot read tensor 1"),
        ([0, -1], "operators 0 to 80, not -1"),
        ([-1, -1], "cannot be left out"),
        ([0, 0.5], "whole numbers and nothing else"),
        ([0, True], "whole numbers and nothing else"),
        (["0", "0"], "whole numbers and nothing else"),
    ],
)
def test_a_wrong_vector_is_told(vector: list[int], message: str) -> None:
    with pytest.raises(DpcError, match=message) as caught:
        from_vector(vector)
    assert caught.value.codes == ("DPC054",)


OPERATORS = st.sampled_from(read_space("dpc").slots[0].operators.operators)
CELLS = (
    st.integers(1, 6)
    .flatmap(lambda count: st.tuples(*(st.tuples(st.integers(0, i), OPERATORS) for i in range(count))))
    .map(lambda branches: Cell.of(*branches))
)


@given(CELLS, CELLS, CELLS)
def test_distance_is_a_metric(a: Cell, b: Cell, c: Cell) -> None:
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert distance(a, b) <= 2 * max(len(a), len(b))


@given(CELLS)
@settings(max_examples=50)
def test_the_graph_is_the_cell(cell: Cell) -> None:
    graph = cell.graph()
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph) == {"F", "Y"} | {f"Y{i}" for i in range(1, len(cell) + 1)}
    for number, branch in enumerate(cell.branches, 1):
        assert list(graph.predecessors(f"Y{number}")) == [f"Y{branch.input}" if branch.input else "F"]
        assert graph.nodes[f"Y{number}"]["operator"] == branch.operator
    assert len(list(graph.predecessors("Y"))) == len(cell)
    assert cell.depth == nx.dag_longest_path_length(graph) - 1


@given(CELLS)
@settings(max_examples=50)
def test_values_are_frozen_hashable_and_equal_by_content(cell: Cell) -> None:
    space = Space.only(cell)
    assert list(members(space)) == [cell]
    for value in (cell, space, cell.branches[0], cell.branches[0].operator):
        again = copy.deepcopy(value)
        assert again == value == pickle.loads(pickle.dumps(value))
        assert hash(again) == hash(value)
    with pytest.raises(Exception, match="frozen"):
        cell.filters = 3  # type: ignore[misc]


def test_python_input_is_checked_at_the_border() -> None:
    conv = Operator.of("conv1x1")
    wrong = {
        "DPC020": lambda: Cell(branches=()),
        "DPC021": lambda: Cell.of(*((0, conv) for _ in range(257))),
        "DPC011": lambda: Cell.of((1, conv)),
        "DPC017": lambda: Cell.of((0, conv), filters=0),
        "DPC018": lambda: Cell.of((0, conv), filters="256"),  # type: ignore[arg-type]
        "DPC010": lambda: Cell.model_validate({"branches": [{"input": "X", "operator": {"kind": "conv1x1"}}]}),
        "DPC013": lambda: Operator.of("conv"),
        "DPC014": lambda: Operator.of("avgpool"),
        "DPC015": lambda: Operator.of("conv1x1", rate=(1, 1)),
        "DPC016": lambda: OperatorSet(operators=(conv, conv)),
        "DPC025": lambda: OperatorSet(operators=()),
        "DPC022": lambda: Space(
            slots=(
                Slot(inputs=None, operators=OperatorSet.of([conv]), optional=True),
                Slot(inputs=(1,), operators=OperatorSet.of([conv])),
            )
        ),
        "DPC023": lambda: Space(slots=(Slot(inputs=None, operators=OperatorSet.of([conv]), optional=True),)),
    }
    for code, make in wrong.items():
        with pytest.raises(DpcError) as caught:
            make()
        assert caught.value.codes == (code,), code


def test_a_cell_is_a_space_of_size_one() -> None:
    assert list(members(read_space("top1"))) == [read_cell("top1")]
    assert str(read_space("top1")) == str(read_cell("top1")).replace(" Y1)", " _)").replace("Y2)", "_)").replace(
        "Y3)", "_)"
    ).replace("Y4)", "_)").replace("Y5)", "_)")


def test_the_study_has_31_cells() -> None:
    cells = list(members(read_space("aspp_subsets")))
    assert len(cells) == len(set(cells)) == 31


def test_top1_json_schema_names_its_parts() -> None:
    schema = Cell.model_json_schema()
    assert set(schema["properties"]) == {"branches", "filters"}
    assert schema["$defs"]["Branch"]["properties"]["input"]["pattern"] == "^(F|Y[1-9][0-9]*)$"
    assert Space.model_json_schema()["required"] == ["slots"]
