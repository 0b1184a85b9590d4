"""Which cell next: distinct up to isomorphism, for many who ask at once, and the same for the same trials before."""

from __future__ import annotations

import hashlib

from dpcdsl.cell import Cell
from dpcdsl.enumeration import Stream
from dpcdsl.errors import DpcError, shown
from dpcdsl.isomorphism import canonical
from dpcdsl.search.genes import Genes
from dpcdsl.search.strategies import Strategy, strategy_of
from dpcdsl.search.trials import Trial
from dpcdsl.space import Space

__all__ = ["Proposer", "class_key"]

_HAS_CELL, _FINISHED = 1, 2
_TRIES = 64  # draws of a strategy for each asker, before the space is gone through in order


def class_key(cell: Cell) -> bytes:
    """16 bytes that are the same for isomorphic cells alone."""
    return hashlib.blake2b(str(canonical(cell)).encode(), digest_size=16).digest()


class Proposer:
    """Asks a strategy for cells, and leaves out what is known already and what is another asker's.

    asker, askers: each of ``askers`` proposers is given the classes whose hash is its own number modulo ``askers``, so
    that proposals are distinct without a word between them. A proposal is a function of the space, the strategy, the
    seed, the asker, and the set of trials that were told; it is told itself before the next one is asked for.

    >>> import dpcdsl
    >>> proposer = Proposer(dpcdsl.read_space("dpc"), "near-best", seed=1)
    >>> rank = proposer.ask()
    >>> proposer.tell(Trial(0, rank, asker=0, finished=True, scores=(0.5,)))
    >>> cell = proposer.genes.cells.unrank(rank)
    """

    def __init__(
        self, space: Space, strategy: Strategy | str = "near-best", *, seed: int = 0, asker: int = 0, askers: int = 1
    ) -> None:
        if not 0 <= asker < askers:
            raise DpcError.of("DPC062", f"askers are numbered from 0 to {askers - 1}, not {shown(asker)}")
        self.genes = Genes(space)
        self.search = strategy_of(strategy).begin(self.genes)
        self.seed, self.asker, self.askers = seed, asker, askers
        self._own = 0  # proposals of this asker
        self._taken: dict[bytes, int] = {}  # the lowest number of a trial of each class
        self._states = bytearray()  # by number, of the kinds below
        self._place = 0

    def tell(self, trial: Trial) -> None:
        """What is known of a trial: once when it is proposed, and again when it has finished; more often does no harm.

        One that has finished without a rank was withdrawn, and its class is free again. Raises :class:`DpcError`
        (DPC071) for a rank that is not in the space.
        """
        if trial.number >= len(self._states):
            self._states.extend(bytes(trial.number + 1 - len(self._states)))
        state = self._states[trial.number]
        if trial.rank is not None and not state & _HAS_CELL:
            self._own += trial.asker == self.asker
            self._taken.setdefault(class_key(self.genes.cells.unrank(trial.rank)), trial.number)
            state |= _HAS_CELL
        if trial.finished and not state & _FINISHED:
            if trial.rank is None and state & _HAS_CELL:
                self._taken = {key: number for key, number in self._taken.items() if number != trial.number}
                self._place = 0
            self.search.learn(trial)
            state |= _FINISHED
        self._states[trial.number] = state

    def knows(self, cell: Cell) -> bool:
        """Whether a trial of this cell, or of one that differs in the order of its branches, has been told."""
        return class_key(cell) in self._taken

    def ask(self) -> int | None:
        """The rank of a genome whose class is in no trial that was told; None if there is none left for this asker."""
        entropy = hashlib.sha256(f"{self.seed} {self.asker} {self._own}".encode()).digest()[:16]
        stream = Stream(int.from_bytes(entropy, "little"))
        for _ in range(_TRIES * self.askers):
            rank = self.search.draw(stream)
            if rank is None:
                break
            if self._is_free(rank):
                return rank
        return self._next()

    def _is_free(self, rank: int) -> bool:
        key = class_key(self.genes.cells.unrank(rank))
        return int.from_bytes(key[:8], "little") % self.askers == self.asker and key not in self._taken

    def _next(self) -> int | None:
        """The first free one in the order of the ranks; those before ``_place`` are not, unless one is withdrawn."""
        for rank in self.genes.cells.walk(self._place):
            self._place = rank
            if self._is_free(rank):
                return rank
        self._place = self.genes.cells.count
        return None
