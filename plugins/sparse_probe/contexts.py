"""Where the best units are most active: stretches of text or image patches, and the report's page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.plugins.sparse_probe.tasks import Task
from workbench.plugins.sparse_probe.units import read_units
from workbench.report.latents import LatentContext, LatentPage
from workbench.spelling import token_texts

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.context import Context
    from workbench.dictionary import Dictionary

BEFORE, AFTER = 16, 8
N_BINS = 40


@dataclass(frozen=True)
class BestUnit:
    """A label's single best unit, chosen on the select documents, and its values on the test rows.

    Attributes
    ----------
    task : Task
        The label.
    hook_point, unit
        Which unit.
    auc : float
        Of its activation alone, on the test rows; below ½ it is silent where the label holds.
    rows : np.ndarray
        [n] test rows of the store.
    values : np.ndarray
        [n] activations there.
    y : np.ndarray
        [n] labels there.
    """

    task: Task
    hook_point: str
    unit: int
    auc: float
    rows: np.ndarray
    values: np.ndarray
    y: np.ndarray


def best_units(
    context: Context, tasks: Sequence[Task], best: pd.DataFrame, units: pd.DataFrame, dictionary: Dictionary | None
) -> list[BestUnit]:
    """Read the best unit of every label at the smallest k, each hook point once."""
    found: dict[str, BestUnit] = {}
    smallest = best[best["k"] == best["k"].min()].set_index("label")
    by_hook_point: dict[str, list[Task]] = {}
    for task in tasks:
        by_hook_point.setdefault(str(smallest.loc[task.name, "hook_point"]), []).append(task)
    for hook_point, members in by_hook_point.items():
        tests = [task.rows[task.at(2)] for task in members]
        rows = np.unique(np.concatenate(tests))
        X = read_units(context, hook_point, rows, dictionary)
        for task, test in zip(members, tests, strict=True):
            mine = units[(units["label"] == task.name) & (units["hook_point"] == hook_point)]
            first = mine[(mine["k"] == mine["k"].min()) & (mine["rank"] == 1)].iloc[0]
            column = X[np.searchsorted(rows, test)][:, [int(first["unit"])]]
            values = column if isinstance(column, np.ndarray) else column.toarray()
            found[task.name] = BestUnit(
                task, hook_point, int(first["unit"]), float(first["auc"]), test, values[:, 0], task.y[task.at(2)]
            )
    return [found[task.name] for task in tasks]


def strongest(unit: BestUnit, n: int) -> np.ndarray:
    """Return the places of the n test rows with the highest activation, at most one per sequence's neighbourhood."""
    chosen: list[int] = []
    for place in np.argsort(-unit.values, kind="stable"):
        near = [abs(int(unit.rows[place]) - int(unit.rows[other])) <= AFTER for other in chosen]
        if not any(near):
            chosen.append(int(place))
        if len(chosen) == n:
            break
    return np.array(chosen, dtype=np.int64)


def examples_frame(store: Store, best: Sequence[BestUnit], n: int) -> pd.DataFrame:
    """List the strongest contexts of each label's best unit, on test documents.

    Returns
    -------
    DataFrame
        ``before``, ``token`` and ``after`` are text where the store keeps its tokenizer, else token ids or patches.
    """
    texts = token_texts(store)

    def spell(ids: Sequence[int]) -> str:
        return "".join(texts[i] for i in ids) if texts else " ".join(map(str, ids))

    rows = []
    for unit in best:
        for place in strongest(unit, n):
            around = store.context(int(unit.rows[place]), BEFORE, AFTER)
            ids = around.ids.tolist()
            rows.append(
                {
                    "label": unit.task.name,
                    "hook_point": unit.hook_point,
                    "unit": unit.unit,
                    "activation": float(unit.values[place]),
                    "label_holds": bool(unit.y[place]),
                    "document": around.document,
                    "row": int(unit.rows[place]),
                    "before": spell(ids[: around.at]),
                    "token": spell(ids[around.at : around.at + 1]),
                    "after": spell(ids[around.at + 1 :]),
                }
            )
    return pd.DataFrame(rows)


def pages(
    context: Context, best: Sequence[BestUnit], n: int, dictionary: Dictionary | None
) -> dict[str, list[LatentPage]]:
    """Return the report's pages of the best units, by hook point; none where the store keeps no tokenizer."""
    texts = token_texts(context.store)
    if texts is None:
        return {}
    found: dict[str, dict[int, LatentPage]] = {}
    for unit in best:
        others = [
            (other.task.name, other.auc)
            for other in best
            if (other.hook_point, other.unit) == (unit.hook_point, unit.unit)
        ]
        active = unit.values > 0
        counts, edges = np.histogram(unit.values[active], N_BINS) if active.any() else (np.empty(0), np.empty(0))
        page = LatentPage(
            index=unit.unit,
            density=float(active.mean()),
            mean_activation=float(unit.values[active].mean()) if active.any() else 0.0,
            max_activation=float(unit.values.max()),
            histogram_counts=counts.astype(int).tolist(),
            histogram_edges=edges.tolist(),
            contexts=[_context(context, unit, int(place), texts, dictionary) for place in strongest(unit, n)],
            top_tokens=[],
            bottom_tokens=[],
            labels=sorted(others, key=lambda pair: -abs(pair[1] - 0.5)),
            neighbours=[],
        )
        found.setdefault(unit.hook_point, {}).setdefault(unit.unit, page)
    return {hook_point: list(by_unit.values()) for hook_point, by_unit in found.items()}


def _context(
    context: Context, unit: BestUnit, place: int, texts: dict[int, str], dictionary: Dictionary | None
) -> LatentContext:
    """Read the unit's activations around one row; 0 at positions that are no rows of the store."""
    store, row = context.store, int(unit.rows[place])
    examples = store.examples
    around = store.context(row, BEFORE, AFTER)
    origin = store.origins[row]
    sequence, first = int(origin["sequence"]), int(origin["position"]) - around.at
    positions = examples.positions_of(sequence)
    inside = (positions >= first) & (positions < first + len(around.ids))
    rows = int(examples.first_rows[sequence]) + np.flatnonzero(inside)
    committed = rows < store.n_rows
    X = read_units(context, unit.hook_point, rows[committed], dictionary)[:, [unit.unit]]
    activations = np.zeros(len(around.ids))
    activations[positions[inside][committed] - first] = (X if isinstance(X, np.ndarray) else X.toarray())[:, 0]
    tokens = [texts[each] for each in around.ids.tolist()]
    return LatentContext(around.document, tokens, activations.tolist(), around.at)
