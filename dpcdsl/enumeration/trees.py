"""Trees and forests of operators, siblings in no order: counted, numbered and found again by their number.

A tree is an operator with a forest below it, a forest a multiset of trees; so forests of n nodes follow from trees of
fewer, and m trees of one kind out of t make C(t + m - 1, m) multisets. Everything is counted by weight as well: the
sums that constraints ask for, and the height. What a tree weighs depends on the channels that its root reads.

The work is polynomial in the nodes and in the different weights.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import comb, isqrt
from typing import NamedTuple, TypeAlias

from dpcdsl.enumeration.consequences import Channels
from dpcdsl.enumeration.sums import MAX_CHANNELS, too_many_channels
from dpcdsl.enumeration.tally import MAX_STATES, too_large

__all__ = ["Counts", "Forests", "Weight"]


class Weight(NamedTuple):
    """What is asked of a tree or a forest: its packed sums, and its height where depth is asked for (else 0)."""

    sums: int
    height: int


#: How many there are by weight.
Counts: TypeAlias = dict[Weight, int]


class _Tree(NamedTuple):
    """A tree: the channels its root reads, its nodes, its weight, and its number among all such trees."""

    channels: Channels
    size: int
    weight: Weight
    rank: int


#: The same without names, which are made faster.
_PlainTree: TypeAlias = tuple[Channels, int, Weight, int]


class _Split(NamedTuple):
    """The largest trees of a forest apart from the others: their number, their weight, the weight of the rest."""

    trees: int
    weight: Weight
    rest: Weight


class _Splits(NamedTuple):
    """All ways to take the largest trees from a forest."""

    ways: list[_Split]
    ladder: list[int]  # running counts of the forests
    rests: list[int]  # how many forests the rest of each can be
    place: dict[_Split, int]


class _Roots(NamedTuple):
    """All roots that a tree can have."""

    ladder: list[int]  # running counts of the trees below each operator
    below: list[tuple[Channels, Weight]]  # by operator: what the forest below it reads, and weighs


_NOTHING = Weight(0, 0)


class Forests:
    """All forests of up to ``most`` nodes whose roots read ``channels``.

    consequences: what each operator does when it reads some channels: what it adds to the sums, and what it writes.
    deep: whether heights are told apart. lost: weights that no forest of interest contains.

    Raises :class:`DpcError` (DPC070) if there are too many weights.
    """

    def __init__(
        self,
        most: int,
        channels: Channels,
        consequences: Callable[[Channels], list[tuple[int, Channels]]],
        *,
        deep: bool,
        lost: Callable[[Weight], bool],
    ):
        self._most, self._root, self._deep, self._lost = most, channels, deep, lost
        self._does: dict[Channels, list[tuple[int, Channels]]] = {}
        levels: dict[Channels, int] = {}  # fewest nodes above what reads them
        waiting = {channels}
        for level in range(most):
            levels |= dict.fromkeys(waiting, level)
            self._does |= {read: consequences(read) for read in waiting}
            waiting = {after for read in waiting for _, after in self._does[read]} - self._does.keys()
            if len(self._does) + len(waiting) > MAX_CHANNELS:
                raise too_many_channels()
        self._trees: dict[tuple[Channels, int], Counts] = {}
        self._forests: dict[tuple[Channels, int, int], Counts] = {}
        # Trees of equal channels and size, grouped by weight; and by group: multisets of j trees of it and those after.
        self._groups: dict[tuple[Channels, int], tuple[list[tuple[Weight, int]], list[list[Counts]]]] = {}
        self._roots: dict[tuple[Channels, int, Weight], _Roots] = {}
        self._splits: dict[tuple[Channels, int, int, Weight], _Splits] = {}
        self._work = 0
        for size in range(1, most + 1):
            fitting = [read for read, level in levels.items() if level + size <= most]
            for read in fitting:
                self._trees[read, size] = self._count_trees(read, size)
            for read in fitting:
                for largest in range(1, size + 1):
                    self._forests[read, size, largest] = self._count_forests(read, size, largest)

    def counts(self, size: int) -> Counts:
        """How many forests of ``size`` nodes there are, by weight."""
        return self._of(self._root, size, size)

    # Counting

    def _of(self, channels: Channels, size: int, largest: int) -> Counts:
        """Forests of ``size`` nodes whose trees have at most ``largest``."""
        if size == 0:
            return {_NOTHING: 1}
        return self._forests[channels, size, min(size, largest)] if largest else {}

    def _count_trees(self, channels: Channels, size: int) -> Counts:
        found: Counts = {}
        kinds: dict[tuple[int, Channels], int] = {}
        for kind in self._does[channels]:
            kinds[kind] = kinds.get(kind, 0) + 1
        for (added, after), operators in kinds.items():
            for weight, count in self._of(after, size - 1, size - 1).items():
                self._add(found, self._grown(weight, added), operators * count)
        return found

    def _grown(self, weight: Weight, added: int) -> Weight:
        return Weight(weight.sums + added, weight.height + self._deep)

    def _count_forests(self, channels: Channels, size: int, largest: int) -> Counts:
        found: Counts = {}
        for number in range(size // largest + 1):
            rest = self._of(channels, size - number * largest, largest - 1)
            for weight, count in self._multisets(channels, largest, number).items() if rest else ():
                for other, others in rest.items():
                    self._add(found, _joined(weight, other), count * others)
        return found

    def _add(self, counts: Counts, weight: Weight, count: int) -> None:
        self._work += 1
        if self._work > MAX_STATES:
            raise too_large(MAX_STATES)
        if weight in counts:
            counts[weight] += count
        elif not self._lost(weight):
            counts[weight] = count

    def _multisets(self, channels: Channels, size: int, number: int) -> Counts:
        if number == 0:
            return {_NOTHING: 1}
        if number == 1:
            return self._trees[channels, size]
        return self._grouped(channels, size)[1][0][number]

    def _grouped(self, channels: Channels, size: int) -> tuple[list[tuple[Weight, int]], list[list[Counts]]]:
        known = self._groups.get((channels, size))
        if known is None:
            groups = sorted(self._trees[channels, size].items())
            most = self._most // size
            tables: list[list[Counts]] = [[{_NOTHING: 1}, *({} for _ in range(most))]]
            for weight, trees in reversed(groups):
                table: list[Counts] = [{} for _ in range(most + 1)]
                for number in range(most + 1):
                    ways, taken = comb(trees + number - 1, number), _times(weight, number)
                    for others in range(most + 1 - number):
                        for other, count in tables[-1][others].items():
                            self._add(table[number + others], _joined(taken, other), ways * count)
                tables.append(table)
            known = self._groups[channels, size] = groups, tables[::-1]
        return known

    # Number to forest

    def unrank(self, size: int, weight: Weight, rank: int) -> tuple[list[int], list[int]]:
        """The forest as inputs (0 for the root, i for the i-th node) and operators; every node follows its input."""
        inputs: list[int] = []
        operators: list[int] = []
        waiting = [(0, tree) for tree in self._forest(self._root, size, weight, rank)]
        while waiting:
            source, (channels, nodes, weight, rank) = waiting.pop()
            roots = self._rooted(channels, nodes, weight)
            operator = bisect_right(roots.ladder, rank)
            inputs.append(source)
            operators.append(operator)
            if nodes > 1:
                rank -= roots.ladder[operator - 1] if operator else 0
                after, rest = roots.below[operator]
                number = len(inputs)
                waiting += [(number, child) for child in self._forest(after, nodes - 1, rest, rank)]
        return inputs, operators

    def _rooted(self, channels: Channels, size: int, weight: Weight) -> _Roots:
        key = channels, size, weight
        roots = self._roots.get(key)
        if roots is None:
            below = [
                (after, Weight(weight.sums - added, weight.height - self._deep))
                for added, after in self._does[channels]
            ]
            fitting = {one: self._of(one[0], size - 1, size - 1).get(one[1], 0) for one in set(below)}
            roots = self._roots[key] = _Roots(list(accumulate(fitting[one] for one in below)), below)
        return roots

    def _forest(self, channels: Channels, size: int, weight: Weight, rank: int) -> list[_PlainTree]:
        found: list[_PlainTree] = []
        largest = size
        while size:
            largest = min(largest, size)
            splits = self._split(channels, size, largest, weight)
            place = bisect_right(splits.ladder, rank)
            number, taken, weight = splits.ways[place]
            if number:
                rank -= splits.ladder[place - 1] if place else 0
                size -= number * largest
                trees, rank = divmod(rank, splits.rests[place])
                if number == 1:
                    found.append((channels, largest, taken, trees))
                else:
                    found += self._multiset(channels, largest, number, taken, trees)
            largest -= 1
        return found

    def _split(self, channels: Channels, size: int, largest: int, weight: Weight) -> _Splits:
        key = channels, size, largest, weight
        known = self._splits.get(key)
        if known is None:
            ways, counts, rests = [], [], []
            for number in range(size // largest + 1):
                rest = self._of(channels, size - number * largest, largest - 1)
                if not rest:
                    continue
                most = self._multisets(channels, largest, number)
                for taken, other in self._pairs(most, rest, weight):
                    ways.append(_Split(number, taken, other))
                    counts.append(most[taken] * rest[other])
                    rests.append(rest[other])
            place = {split: place for place, split in enumerate(ways)}
            known = self._splits[key] = _Splits(ways, list(accumulate(counts)), rests, place)
        return known

    def _pairs(self, these: Counts, those: Counts, weight: Weight) -> list[tuple[Weight, Weight]]:
        """Weights, one of ``these`` and one of ``those``, that together make ``weight``; in rising order."""
        if self._deep or len(these) <= len(those):
            return sorted((one, other) for one in these for other in self._rests(those, weight, one))
        return sorted((one, other) for other in those for one in self._rests(these, weight, other))

    def _rests(self, counts: Counts, weight: Weight, taken: Weight) -> Iterator[Weight]:
        """Weights in ``counts`` that together with ``taken`` make ``weight``."""
        sums = weight.sums - taken.sums
        heights = range(weight.height + 1) if taken.height == weight.height else (weight.height,)
        if taken.height <= weight.height:
            yield from (Weight(sums, height) for height in heights if (sums, height) in counts)

    def _multiset(self, channels: Channels, size: int, number: int, weight: Weight, rank: int) -> list[_PlainTree]:
        groups, tables = self._grouped(channels, size)
        if len(groups) == 1:
            return [(channels, size, groups[0][0], tree) for tree in _multiset_of(rank, number)]
        found: list[_PlainTree] = []
        for place, (one, trees) in enumerate(groups):
            if not number:
                break
            for taken, ways, rest, others in self._takes(one, trees, tables[place + 1], number, weight):
                if rank < ways * others:
                    chosen, rank = divmod(rank, others)
                    found += [(channels, size, one, tree) for tree in _multiset_of(chosen, taken)]
                    number, weight = number - taken, rest
                    break
                rank -= ways * others
        return found

    def _takes(
        self, one: Weight, trees: int, after: list[Counts], number: int, weight: Weight
    ) -> Iterator[tuple[int, int, Weight, int]]:
        """How many trees to take from a group: the number, the ways, the weight of the rest, and the rest's ways."""
        for taken in range(number + 1):
            ways = comb(trees + taken - 1, taken)
            for rest in self._rests(after[number - taken], weight, _times(one, taken)):
                yield taken, ways, rest, after[number - taken][rest]

    # Forest to number

    def rank(self, inputs: Sequence[int], operators: Sequence[int]) -> tuple[int, Weight, int]:
        """Size, weight and number of a forest; the inverse of :meth:`unrank`."""
        channels = [self._root]
        for source, operator in zip(inputs, operators, strict=True):
            channels.append(self._does[channels[source]][operator][1])
        children: list[list[_Tree]] = [[] for _ in channels]
        for number in range(len(inputs), 0, -1):
            read, operator = channels[inputs[number - 1]], operators[number - 1]
            size, weight, rank = self._rank_forest(channels[number], children[number])
            tree_weight = self._grown(weight, self._does[read][operator][0])
            ladder = self._rooted(read, size + 1, tree_weight).ladder
            below = ladder[operator - 1] if operator else 0
            children[inputs[number - 1]].append(_Tree(read, size + 1, tree_weight, below + rank))
        return self._rank_forest(self._root, children[0])

    def _rank_forest(self, channels: Channels, trees: list[_Tree]) -> tuple[int, Weight, int]:
        rank = size = 0
        weight = _NOTHING
        for largest in sorted({tree.size for tree in trees}):
            mine = sorted((tree for tree in trees if tree.size == largest), key=lambda tree: (tree.weight, tree.rank))
            taken, rest = _NOTHING, weight
            for tree in mine:
                taken = _joined(taken, tree.weight)
            others = self._of(channels, size, largest - 1)[rest]
            size += len(mine) * largest
            weight = _joined(taken, rest)
            number = mine[0].rank if len(mine) == 1 else self._rank_multiset(channels, largest, taken, mine)
            rank += number * others + self._before(channels, size, largest, weight, _Split(len(mine), taken, rest))
        # Trees larger than all there are: none of them is taken, and that comes first.
        return size, weight, rank

    def _before(self, channels: Channels, size: int, largest: int, weight: Weight, split: _Split) -> int:
        splits = self._split(channels, size, largest, weight)
        place = splits.place[split]
        return splits.ladder[place - 1] if place else 0

    def _rank_multiset(self, channels: Channels, size: int, weight: Weight, mine: list[_Tree]) -> int:
        rank, number = 0, len(mine)
        groups, tables = self._grouped(channels, size)
        for place, (one, trees) in enumerate(groups):
            if not number:
                break
            ranks = [tree.rank for tree in mine if tree.weight == one]
            rest = _NOTHING
            for tree in mine:
                if tree.weight > one:
                    rest = _joined(rest, tree.weight)
            for taken, ways, other, others in self._takes(one, trees, tables[place + 1], number, weight):
                if (taken, other) == (len(ranks), rest):
                    rank += _rank_of_multiset(ranks) * others
                    break
                rank += ways * others
            number, weight = number - len(ranks), rest
        return rank


def _joined(a: Weight, b: Weight) -> Weight:
    return Weight(a.sums + b.sums, max(a.height, b.height))


def _times(weight: Weight, number: int) -> Weight:
    return Weight(weight.sums * number, weight.height if number else 0)


def _multiset_of(rank: int, number: int) -> list[int]:
    """The multiset of ``number`` whole numbers with this rank, rising: the combinatorial number system.

    Numbers x1 <= x2 <= … become x1 < x2 + 1 < x3 + 2 < …, and the rank is the sum of C(xi + i - 1, i).
    """
    found = []
    for i in range(number, 0, -1):
        top = _largest(rank, i)
        rank -= comb(top, i)
        found.append(top - i + 1)
    return found[::-1]


def _rank_of_multiset(numbers: list[int]) -> int:
    return sum(comb(x + i - 1, i) for i, x in enumerate(sorted(numbers), 1))


def _largest(rank: int, i: int) -> int:
    """The largest n with C(n, i) <= rank."""
    if i == 1:
        return rank
    if i == 2:
        return (1 + isqrt(1 + 8 * rank)) // 2
    low, high = i - 1, i
    while comb(high, i) <= rank:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if comb(middle, i) <= rank:
            low = middle
        else:
            high = middle
    return low
