"""The best k units for weighted squared loss, with a certificate, by branch and bound.

The bound of a node is the ridge fit on all units that it has not excluded; whatever k units lie below it cannot do
better. What is certified concerns squared loss: the logistic readout is refitted afterwards.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from workbench.probes.errors import ProbeError

CERTIFIED = 1e-6


@dataclass(frozen=True)
class BestSubset:
    """A choice of units and how far from optimal it can be.

    Attributes
    ----------
    support : np.ndarray
        [k] units, largest abs(coefficient) first.
    loss : float
        Weighted mean squared error plus penalty, as a share of the target's variance.
    bound : float
        No k units do better than this.
    n_nodes : int
        Nodes opened.
    """

    support: Int[np.ndarray, " k"]
    loss: float
    bound: float
    n_nodes: int

    @property
    def gap(self) -> float:
        """Share by which the loss may exceed the smallest possible one."""
        return max(0.0, (self.loss - self.bound) / self.loss) if self.loss > 0 else 0.0

    @property
    def certified(self) -> bool:
        """True if nothing better exists, to a relative 1e-6."""
        return self.gap < CERTIFIED


@dataclass
class _Problem:
    gram: Float[np.ndarray, "units units"]
    cross: Float[np.ndarray, " units"]

    def solve(self, units: list[int]) -> tuple[float, Float[np.ndarray, " kept"]]:
        """Return loss and coefficients of the fit on some units."""
        if not units:
            return 1.0, np.zeros(0)
        factor = scipy.linalg.cho_factor(self.gram[np.ix_(units, units)], check_finite=False)
        coef = scipy.linalg.cho_solve(factor, self.cross[units], check_finite=False)
        return 1.0 - float(self.cross[units] @ coef), coef

    def loss(self, units: list[int]) -> float:
        """Return the loss of the fit on some units."""
        return self.solve(units)[0]

    def greedy(self, k: int) -> list[int]:
        """Add the best unit k times, then swap one for one while that helps."""
        chosen: list[int] = []
        everything = range(len(self.cross))
        for _ in range(k):
            chosen.append(
                min((unit for unit in everything if unit not in chosen), key=lambda j: self.loss([*chosen, j]))
            )
        return self.improve(chosen)

    def improve(self, chosen: list[int]) -> list[int]:
        """Swap one unit for another while the loss falls."""
        best = self.loss(chosen)
        improved = True
        while improved:
            improved = False
            for place in range(len(chosen)):
                rest = chosen[:place] + chosen[place + 1 :]
                for unit in range(len(self.cross)):
                    if unit not in chosen and (trial := self.loss([*rest, unit])) < best * (1 - 1e-12):
                        chosen, best, improved = [*rest, unit], trial, True
                        break
                if improved:
                    break
        return chosen


@dataclass(order=True)
class _Node:
    bound: float
    order: int
    inside: list[int] = field(compare=False)
    free: list[int] = field(compare=False)
    coef: Float[np.ndarray, " free"] = field(compare=False)


def best_subset(
    X: Float[np.ndarray, "rows units"],
    y: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    k: int,
    *,
    ridge: float = 1e-6,
    max_nodes: int = 5000,
) -> BestSubset:
    """Find the k units whose least-squares fit to the label is best.

    Parameters
    ----------
    X : np.ndarray
        [rows, units] of about unit variance; up to 100 units, k up to 8 or so.
    y : np.ndarray
        [rows] label.
    weights : np.ndarray
        [rows] weight of each row's squared error.
    k : int
        1 <= k <= units.
    ridge : float
        Penalty per unit of weight, which keeps copies of one unit apart.
    max_nodes : int
        Give up (`certified` False, the gap reported) after so many nodes; a number, not a time, so that a seed and a
        machine decide nothing.
    """
    n_units = X.shape[1]
    if not 1 <= k <= n_units:
        raise ProbeError(f"k={k}: must be between 1 and {n_units}, the number of units")
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    target = np.where(y, 1.0, -1.0)
    target -= share @ target
    centred = X - share @ X
    variance = share @ target**2
    gram = centred.T @ (centred * share[:, None]) + ridge * np.eye(n_units)
    problem = _Problem(gram / variance, centred.T @ (share * target) / variance)
    return _search(problem, k, max_nodes)


def _search(problem: _Problem, k: int, max_nodes: int) -> BestSubset:
    best = problem.greedy(k)
    best_loss = problem.loss(best)
    free = list(range(len(problem.cross)))
    bound, coef = problem.solve(free)
    heap = [_Node(bound, 0, [], free, coef)]
    lower, opened, made = bound, 0, 1
    while heap:
        node = heapq.heappop(heap)
        lower = node.bound
        if lower >= best_loss * (1 - CERTIFIED / 2) or opened == max_nodes:
            break
        opened += 1
        place = int(np.argmax(np.abs(node.coef)))
        filled = [node.free[j] for j in np.argsort(-np.abs(node.coef), kind="stable")[: k - len(node.inside)]]
        if (trial := problem.loss(node.inside + filled)) < best_loss:
            best, best_loss = node.inside + filled, trial
        unit, rest = node.free[place], node.free[:place] + node.free[place + 1 :]
        inside = [*node.inside, unit]
        if len(inside) == k:
            if (trial := problem.loss(inside)) < best_loss:
                best, best_loss = inside, trial
        else:
            heapq.heappush(heap, _Node(node.bound, made, inside, rest, np.delete(node.coef, place)))
            made += 1
        if len(node.inside) + len(rest) >= k:
            bound, coef = problem.solve(node.inside + rest)
            if bound < best_loss:
                heapq.heappush(heap, _Node(bound, made, node.inside, rest, coef[len(node.inside) :]))
                made += 1
    else:
        lower = best_loss
    _, coef = problem.solve(best)
    support = np.array(best)[np.argsort(-np.abs(coef), kind="stable")]
    return BestSubset(support, best_loss, min(lower, best_loss), opened)
