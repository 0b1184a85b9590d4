"""What choosing an operator leads to, as far as some measures can tell: what it adds to them, and what it writes.

Operators of the same consequence need never be told apart: the paper's 81 fall into a handful of groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from dpcdsl.constraints import Branches, Distance, MAdds, Measure, Params, Uses
from dpcdsl.cost import operator_cost
from dpcdsl.operators import Operator
from dpcdsl.space import OperatorSet

__all__ = ["Channels", "Consequence", "Consequences", "Groups", "Summed"]

#: Measures that are summed over the branches of a cell: all but depth.
Summed: TypeAlias = Params | MAdds | Uses | Branches | Distance
#: Channels of a tensor, for each number of features that a cost is measured on.
Channels: TypeAlias = tuple[int, ...]


class Consequence(NamedTuple):
    """What an operator adds to each measure, and the channels it writes."""

    added: tuple[int, ...]
    channels: Channels


class Groups(NamedTuple):
    """The operators of a set by consequence."""

    group_of: list[int]  # group of each operator
    consequences: list[Consequence]  # of each group
    sizes: list[int]  # operators in each group


class Consequences:
    """Consequences of operators for ``measures``, with ``filters`` filters to a convolution."""

    def __init__(self, measures: Iterable[Summed], filters: int):
        self.measures = tuple(measures)
        self._filters = filters
        self._features = sorted({m.features for m in self.measures if isinstance(m, Params | MAdds)})
        self._compared = any(isinstance(measure, Distance) for measure in self.measures)
        self._known: dict[tuple[OperatorSet, Channels, int], Groups] = {}

    @property
    def features(self) -> Channels:
        """The channels of F."""
        return tuple(self._features)

    def groups(self, operators: OperatorSet, channels: Channels, branch: int = 1) -> Groups:
        """The operators by consequence, where they read a tensor of ``channels`` in the cell's ``branch``-th branch.

        Of a distance they hold what the operator adds; what the input adds comes on top.
        """
        key = operators, channels, branch if self._compared else 0
        found = self._known.get(key)
        if found is None:
            numbers: dict[Consequence, int] = {}
            group_of = [
                numbers.setdefault(self._of(operator, channels, branch), len(numbers))
                for operator in operators.operators
            ]
            sizes = Counter(group_of)
            found = self._known[key] = Groups(group_of, list(numbers), [sizes[n] for n in range(len(numbers))])
        return found

    def _of(self, operator: Operator, channels: Channels, branch: int) -> Consequence:
        added = []
        for measure in self.measures:
            match measure:
                case Params(features=features):
                    read = channels[self._features.index(features)]
                    added.append(operator_cost(operator, read, (1, 1), self._filters).params)
                case MAdds(features=features, at=size):
                    read = channels[self._features.index(features)]
                    added.append(operator_cost(operator, read, size, self._filters).madds)
                case Uses():
                    added.append(int(measure.counts(operator)))
                case Branches():
                    added.append(1)
                case Distance(to=target):
                    beyond = branch > len(target)
                    added.append(2 if beyond else int(target.branches[branch - 1].operator != operator))
        return Consequence(tuple(added), tuple(_out_channels(operator, read, self._filters) for read in channels))

    def of_inputs(self, branch: int, number: int) -> list[int]:
        """What it adds to each measure that the ``branch``-th branch reads the tensor ``number``."""
        return [
            int(branch <= len(m.to) and m.to.branches[branch - 1].input != number) if isinstance(m, Distance) else 0
            for m in self.measures
        ]

    def of_missing(self, branches: int) -> list[int]:
        """What it adds to each measure that the cell ends after so many branches."""
        return [missing(measure, branches) for measure in self.measures]

    def agree(self, operators: OperatorSet, channels: Channels, labels: Mapping[Operator, int]) -> bool:
        """Whether operators of equal labels have one consequence where they read a tensor of ``channels``."""
        numbers = [labels[operator] for operator in operators.operators]
        group_of = self.groups(operators, channels).group_of
        return len(set(zip(numbers, group_of, strict=True))) == len(set(numbers))


def missing(measure: Measure, branches: int) -> int:
    """What branches that the cell does not have add to a distance."""
    return 2 * max(0, len(measure.to) - branches) if isinstance(measure, Distance) else 0


def _out_channels(operator: Operator, channels: int, filters: int) -> int:
    for layer in operator.layers(filters):
        channels = layer.out_channels(channels)
    return channels
