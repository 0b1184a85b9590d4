"""How fast spaces are counted, ranked and sampled, and how fast others sample the same space."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from itertools import count as counting
from math import factorial
from statistics import median
from typing import NamedTuple

import numpy as np
from language import ROUNDS

from dpcdsl import merging, parse_condition
from dpcdsl.constraints import MAdds, Params
from dpcdsl.enumeration import _enumerator, count, distribution, enumerator
from dpcdsl.interchange import paper_space
from dpcdsl.isomorphism import canonical
from dpcdsl.neighbourhood import neighbours

OPERATORS = 81
BRANCHES = 5
FEATURES = 320
MAP, SMALL_MAP = (65, 129), (13, 13)
ROWS = 1_000_000  # of an array
CELLS = 10_000
LARGE_ROWS = 50_000  # of numbers past 64 bits
FEW = "params(F=320) <= 0.40M"
TWO = "params(F=320) <= 0.60M and madds(F=320, at=65x129) <= 4.0G"


def forget() -> None:
    """Drop what the library keeps between calls."""
    _enumerator.cache_clear()
    merging._form.cache_clear()


def in_turns(contestants: dict[str, Callable[[], object]], *, cold: bool = False) -> dict[str, float]:
    """Median seconds of each contestant, taken in turns.

    cold: before every run the library forgets what it keeps; otherwise a first round is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + (not cold)):
        gc.collect()
        gc.freeze()  # no one's collector goes through what the others keep
        for name, run in contestants.items():
            if cold:
                forget()
            began = time.perf_counter()
            kept = run()
            took = time.perf_counter() - began
            del kept  # what was made is thrown away off the clock
            if cold or turn:
                times[name].append(took)
        gc.unfreeze()
    return {name: median(values) for name, values in times.items()}


def measure() -> list[list[str]]:
    return [["what", "measured", "bar"], *_counts(), *_arrays(), *_cells()]


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"


def _counts() -> list[list[str]]:
    five, eight = paper_space(5), paper_space(8)
    few, two = five.where(parse_condition(FEW)), eight.where(parse_condition(TWO))
    around = enumerator(five).sample(1, 0)[0]
    params, madds = Params(features=FEATURES), MAdds(features=FEATURES, at=MAP)

    def near() -> int:
        found = neighbours(around, five, 2)
        found.sample(100, 0)
        return found.count

    numbers: dict[str, tuple[str, Callable[[], int]]] = {
        "count, genomes, B = 5": ("< 1 s", lambda: count(five)),
        "count, classes up to isomorphism, B = 5": ("< 1 s", lambda: count(five, "isomorphism")),
        "count, classes up to isomorphism, B = 8": ("< 1 s", lambda: count(eight, "isomorphism")),
        "count, functions at 13x13, B = 5": ("< 1 s", lambda: count(five, "function", at=SMALL_MAP)),
        "count, functions at 13x13, B = 8": ("< 1 s", lambda: count(eight, "function", at=SMALL_MAP)),
        f"count, B = 5, `{FEW}`": ("< 1 s", lambda: count(few)),
        f"count, B = 8, `{TWO}`": ("< 10 s", lambda: count(two)),
        "neighbours at distance 1 or 2: count, and 100 samples": ("", near),
    }
    spread: dict[str, Callable[[], object]] = {
        "distribution of params, B = 5": lambda: distribution(five, params),
        "distribution of madds at 65x129, B = 5": lambda: distribution(five, madds),
    }
    answers = {name: run() for name, (_, run) in numbers.items()}
    of_params, of_madds = distribution(five, params), distribution(five, madds)
    assert count(five) == sum(of_params.values()) == sum(of_madds.values()) == factorial(5) * OPERATORS**5
    assert count(few) == sum(cells for (value,), cells in of_params.items() if value <= 400_000)
    taken = in_turns({**{name: run for name, (_, run) in numbers.items()}, **spread}, cold=True)
    sizes = dict(zip(spread, (of_params, of_madds), strict=True))
    return [
        *([name, f"{_seconds(taken[name])}: {answers[name]:,}", bar] for name, (bar, _) in numbers.items()),
        *([name, f"{_seconds(taken[name])}: {len(sizes[name]):,} values", ""] for name in spread),
    ]


def _arrays() -> list[list[str]]:
    found, large = enumerator(paper_space(5)), enumerator(paper_space(12))
    ranks, large_ranks = found.sample_ranks(ROWS, 0), large.sample_ranks(LARGE_ROWS, 0)
    vectors, large_vectors = found.vectors(ranks), large.vectors(large_ranks)
    assert np.array_equal(found.ranks(vectors), ranks)
    assert np.array_equal(large.ranks(large_vectors), large_ranks)
    seeds = counting(1)
    contestants: dict[str, tuple[int, str, Callable[[], object]]] = {
        "unrank into an array": (ROWS, "≥ 15", lambda: found.vectors(ranks)),
        "rank an array": (ROWS, "≥ 15", lambda: found.ranks(vectors)),
        "sample into an array": (ROWS, "", lambda: found.vectors(found.sample_ranks(ROWS, next(seeds)))),
        "sample without replacement into an array": (
            ROWS,
            "≥ 5",
            lambda: found.vectors(found.sample_ranks(ROWS, next(seeds), replacement=False)),
        ),
        "unrank into an array, B = 12, ranks past 2^64": (LARGE_ROWS, "", lambda: large.vectors(large_ranks)),
        "rank an array, B = 12, ranks past 2^64": (LARGE_ROWS, "", lambda: large.ranks(large_vectors)),
    }
    taken = in_turns({name: run for name, (_, _, run) in contestants.items()})
    return [
        [name, f"{size / taken[name] / 1e6:.1f} M cells/s", f"{bar} M" if bar else ""]
        for name, (size, bar, _) in contestants.items()
    ]


def _cells() -> list[list[str]]:
    five = paper_space(5)
    genomes, classes = enumerator(five), enumerator(five, "isomorphism")
    functions = enumerator(five, "function", at=SMALL_MAP)
    few = enumerator(five.where(parse_condition(FEW)))
    cells = genomes.sample(CELLS, 0)
    ranks = [genomes.rank(cell) for cell in cells]
    assert [genomes.unrank(rank) for rank in ranks] == cells
    seeds = counting(1)
    contestants: dict[str, tuple[str, Callable[[], object]]] = {
        "sample genomes as `Cell`": ("", lambda: genomes.sample(CELLS, next(seeds))),
        "sample classes up to isomorphism as `Cell`": ("≥ 20,000", lambda: classes.sample(CELLS, next(seeds))),
        "sample functions at 13x13 as `Cell`": ("≥ 20,000", lambda: functions.sample(CELLS, next(seeds))),
        f"sample as `Cell` under `{FEW}`": ("≥ 20,000", lambda: few.sample(CELLS, next(seeds))),
        "unrank one at a time": ("", lambda: [genomes.unrank(rank) for rank in ranks]),
        "rank one at a time": ("", lambda: [genomes.rank(cell) for cell in cells]),
        "canonical form": ("", lambda: [canonical(cell) for cell in cells]),
    }
    taken = in_turns({name: run for name, (_, run) in contestants.items()})
    return [[name, f"{CELLS / taken[name]:,.0f} cells/s", bar] for name, (bar, _) in contestants.items()]


# Others, who sample the same choices: the input of branch i out of i, its operator out of 81. The input of the first
# branch, which is no choice, is left out. Whole numbers are drawn no slower than categories.


class Sampler(NamedTuple):
    name: str
    gives: str
    arrays: bool
    cells: int
    #: What draws that many cells; it raises ImportError where the library is missing.
    prepare: Callable[[], Callable[[], object]]


_CHOICES = {
    name: size
    for i in range(1, BRANCHES + 1)
    for name, size in ((f"input{i}", i), (f"operator{i}", OPERATORS))
    if size > 1
}


def _configspace(cells: int, gives: str) -> Callable[[], object]:
    from ConfigSpace import ConfigurationSpace, Integer

    space = ConfigurationSpace(seed=0)
    space.add([Integer(name, (0, size - 1)) for name, size in _CHOICES.items()])
    if gives == "array":
        stream = np.random.RandomState(0)
        return lambda: np.column_stack([space[name].sample_value(cells, seed=stream) for name in _CHOICES])
    if gives == "dict":
        return lambda: [dict(found) for found in space.sample_configuration(cells)]
    return lambda: space.sample_configuration(cells)


def _optuna(trials: int) -> Callable[[], object]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    wanted = {name: optuna.distributions.IntDistribution(0, size - 1) for name, size in _CHOICES.items()}

    def run() -> object:
        found = []
        for _ in range(trials):
            trial = study.ask(wanted)
            found.append(trial.params)
            study.tell(trial, 0.0)
        return found

    return run


def _pyglove(cells: int, gives: str) -> Callable[[], object]:
    import pyglove as pg

    stream = random.Random(0)
    if gives == "dna":
        spec = pg.geno.space([pg.geno.oneof([pg.geno.constant()] * size) for size in _CHOICES.values()])
        return lambda: [pg.random_dna(spec, stream, attach_spec=False) for _ in range(cells)]
    template = pg.Dict(**{name: pg.oneof(range(size)) for name, size in _CHOICES.items()})
    return lambda: list(pg.random_sample(template, cells, seed=stream.randrange(1 << 30)))


def _dpcdsl(cells: int, *, arrays: bool) -> Callable[[], object]:
    found, seeds = enumerator(paper_space(BRANCHES)), counting(1)
    if arrays:
        return lambda: found.vectors(found.sample_ranks(cells, next(seeds)))
    return lambda: found.sample(cells, next(seeds))


_WHOLE = "ConfigSpace, `sample_configuration`"
SAMPLERS = [
    Sampler("ConfigSpace, `sample_value` of each parameter", "array", True, ROWS, lambda: _configspace(ROWS, "array")),
    Sampler("dpcdsl, `sample_ranks` and `vectors`", "array", True, ROWS, lambda: _dpcdsl(ROWS, arrays=True)),
    Sampler(_WHOLE, "`Configuration`, values not looked up", False, CELLS, lambda: _configspace(CELLS, "object")),
    Sampler(f"{_WHOLE}, `dict`", "`dict`", False, CELLS, lambda: _configspace(CELLS, "dict")),
    Sampler("Optuna, `ask` and `tell`, `RandomSampler`", "`dict`", False, 300, lambda: _optuna(300)),
    Sampler("PyGlove, `random_dna`", "`DNA`", False, 50, lambda: _pyglove(50, "dna")),
    Sampler("PyGlove, `random_sample`", "`Dict`", False, 20, lambda: _pyglove(20, "dict")),
    Sampler("dpcdsl, `sample`", "`Cell`", False, CELLS, lambda: _dpcdsl(CELLS, arrays=False)),
]


def beside_others() -> list[list[str]]:
    ready: dict[str, Callable[[], object]] = {}
    for sampler in SAMPLERS:
        try:
            ready[sampler.name] = sampler.prepare()
        except ImportError:
            continue
    taken = in_turns(ready)
    rate = {s.name: s.cells / taken[s.name] for s in SAMPLERS if s.name in ready}
    best = {
        arrays: max((rate.get(s.name, 0) for s in SAMPLERS if s.arrays == arrays and not _ours(s)), default=0)
        for arrays in (True, False)
    }
    rows = [["sampler", "a cell comes as", "cells/s", "× best peer of its form", "× `sample_configuration`"]]
    for sampler in SAMPLERS:
        speed = rate.get(sampler.name)
        numbers = ["not installed", "", ""]
        if speed is not None:
            numbers = [
                _rounded(speed),
                *(_ratio(speed, other) for other in (best[sampler.arrays], rate.get(_WHOLE, 0))),
            ]
        form = f"row of an {sampler.gives}" if sampler.arrays else sampler.gives
        rows.append([sampler.name, form, *numbers])
    return rows


def _ours(sampler: Sampler) -> bool:
    return sampler.name.startswith("dpcdsl")


def _rounded(speed: float) -> str:
    return f"{speed / 1e6:.1f} M" if speed >= 1e6 else f"{speed:,.0f}"


def _ratio(speed: float, other: float) -> str:
    if not other:
        return ""
    return f"{speed / other:,.0f}" if speed >= 10 * other else f"{speed / other:.2g}"
