"""The run: for every hook point and label fit the erasures, and measure what is left and what is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from workbench.errors import UserError
from workbench.labelled_rows import DocumentRows, matching_hook_points, read_flat
from workbench.plugins.nullspace import Method, NullspaceConfig
from workbench.plugins.nullspace.bias import bias_rows
from workbench.plugins.nullspace.erasures import fit_erasures, random_controls, run_inlp
from workbench.plugins.nullspace.fresh import CS, LINEAR, NONLINEAR, Sets, erased_rows, fit_fresh, measured
from workbench.plugins.nullspace.live import live_rows, run_live, why_not
from workbench.plugins.nullspace.present import PERMUTED, present
from workbench.plugins.nullspace.tasks import Labelled, Task, default_label, labelled, make_task, other_labels
from workbench.probes import Projection, bootstrap_weights

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result

NONE = "none"
OWN = (NONE, *get_args(Method))  # penalties are chosen anew for the label itself; controls take the one without erasure


@dataclass
class Records:
    """What was measured of one label at one hook point, as plain values, and the projections.

    Attributes
    ----------
    tables : dict of str to list of dict
        Rows of ``scores``, ``projections``, ``rounds``, ``live``, ``tokens``, ``examples``, ``bias``.
    notes : list of str
        For the report.
    projections : dict of str to Projection
        By method.
    """

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    projections: dict[str, Projection] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write to a folder that appears only when it is whole."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "records.json").write_text(json.dumps({"tables": self.tables, "notes": self.notes}), encoding="utf-8")
        for method, erase in self.projections.items():
            erase.save(part / f"{method}.safetensors")
        part.rename(folder)

    @classmethod
    def load(cls, folder: Path, methods: Sequence[str]) -> Records:
        """Read what `save` wrote."""
        held = json.loads((folder / "records.json").read_text(encoding="utf-8"))
        found = {method: Projection.load(folder / f"{method}.safetensors") for method in methods}
        return cls(held["tables"], held["notes"], found)


def run(context: Context) -> Result:
    """Erase every label at every hook point and put the result together.

    Raises
    ------
    UserError
        If a hook point or label does not fit the store.
    """
    config: NullspaceConfig = context.config
    store = context.store
    hook_points = matching_hook_points(store, config.hook_point)
    documents = DocumentRows(store, context.seed)
    names = [default_label(documents)] if config.label is None else config.label
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    main = None if config.main is None else labelled(documents, config.main)
    tasks = [make_task(documents, name, config.max_rows, context.log, main) for name in names]
    if main is not None and (wide := [task.label.name for task in tasks if task.n_classes != 2]):
        raise UserError(f"main={main.name}: rates are compared between two classes, but {wide[0]!r} has more")
    others = [other_labels(documents, config.others, task) for task in tasks]
    methods = (config.method,) if isinstance(config.method, str) else tuple(dict.fromkeys(config.method))
    records: list[Records] = []
    with context.progress(len(hook_points) * len(tasks), "erasures", "nullspace") as ticker:
        for hook_point in hook_points:
            for number, task in enumerate(tasks):
                folder = context.work / f"{len(records):04d}"
                ticker.update(hook_point=hook_point, label=task.label.name)
                if not folder.exists():
                    erase_label(context, hook_point, task, others[number], main).save(folder)
                records.append(Records.load(folder, methods))
                ticker.advance()
    return present(context, tasks, records)


def erase_label(
    context: Context, hook_point: str, task: Task, others: Sequence[Labelled], main: Labelled | None
) -> Records:
    """Erase one label at one hook point, and measure."""
    config: NullspaceConfig = context.config
    X = read_flat(context.store, hook_point, task.rows)
    by_class = main if config.by_class else None
    erasures, inlp = fit_erasures(context, hook_point, task, X, by_class)
    mean = X[task.at(0)].mean(axis=0, dtype=np.float64)
    controls = random_controls(context, erasures, mean, hook_point)
    records = Records(projections=erasures)
    at = {"hook_point": hook_point, "label": task.label.name}
    test = X[task.at(2)]
    ways: dict[str, Projection | None] = {NONE: None, **erasures}
    ways |= {f"random {method}": drawn[0] for method, drawn in controls.items() if drawn[0].rank}
    scores = Scores(context, task, X)
    for method, erase in ways.items():
        probes = (*LINEAR, *(NONLINEAR if config.nonlinear and not method.startswith("random") else ()))
        for probe in probes:
            scores.add(method, erase, task.codes, task.label.name, probe, task.n_classes)
        for other in others:
            scores.add(method, erase, other.codes[task.rows], other.name, "logistic", 2)
    for method, drawn in controls.items():
        for erase in drawn[1:] if drawn[0].rank else []:
            scores.add(f"random {method}", erase, task.codes, task.label.name, "logistic", task.n_classes)
    rng = context.rng(f"permuted {task.label.name}")
    permuted = [rng.permutation(task.codes) for _ in range(config.permutations)]
    for codes in permuted:
        scores.add(PERMUTED, None, codes, task.label.name, "logistic", task.n_classes)
    null = run_inlp(context, task, X, permuted[0]) if "inlp" in erasures else None
    records.tables["scores"] = [{**at, **row} for row in scores.rows]
    records.tables["projections"] = [
        {
            **at,
            "method": method,
            "rank": erase.rank,
            "n_units": erase.n_units,
            "change": erase.change(test),
            "mean_gap": mean_gap(erase(test), task.codes[task.at(2)], task.n_classes),
            "mean_gap_before": mean_gap(test, task.codes[task.at(2)], task.n_classes),
            "rounds": len(inlp.rounds) - 1 if method == "inlp" and inlp else 1,
            "stopped": inlp.stopped if method == "inlp" and inlp else "closed form",
            "rank_permuted": null.projection.rank if method == "inlp" and null else 0,
            "fingerprint": erase.fingerprint(),
        }
        for method, erase in erasures.items()
    ]
    rounds = inlp.rounds if inlp else ()
    records.tables["rounds"] = [
        {**at, "round": number, "rank": each.rank, **each.balanced_accuracy._asdict(), "chance": 1 / task.n_classes}
        for number, each in enumerate(rounds)
    ]
    if main is not None:
        records.tables["bias"] = [{**at, **row} for row in bias_rows(context, task, main, X, ways)]
    if reason := why_not(context, hook_point):
        records.notes.append(f"{hook_point}: the projection was not applied live: {reason}.")
        context.log.info(records.notes[-1])
        return records
    conditions = dict(erasures) | {f"random {m}": drawn[0] for m, drawn in controls.items() if drawn[0].rank}
    shown = next(iter(erasures))
    live = run_live(context, context.subject(), hook_point, task, conditions, shown)
    records.tables["live"] = [{**at, "measure": live.measure, **row} for row in live_rows(context, live, task.label)]
    records.tables["tokens"] = [{**at, "method": shown, **row} for row in live.tokens]
    records.tables["examples"] = [{**at, "method": shown, **row} for row in live.examples]
    return records


class Scores:
    """Fresh probes of one hook point's rows, all scored on the same resamples of test documents."""

    def __init__(self, context: Context, task: Task, X: np.ndarray) -> None:
        self.context, self.task, self.X = context, task, X
        self.groups, self.n_groups = task.documents(2)
        self.weights = bootstrap_weights(
            self.n_groups, context.config.draws, context.rng(f"test documents {task.label.name}")
        )
        self.rows: list[dict[str, Any]] = []
        self._erased: tuple[Projection | None, np.ndarray] = (None, X)
        self._penalty: dict[str, float] = {}  # of each target, as chosen on rows as they are

    def add(
        self, method: str, erase: Projection | None, codes: np.ndarray, target: str, probe: str, n_classes: int
    ) -> None:
        """Fit a probe of a target [rows of the task] on rows that an erasure was applied to, and keep its scores."""
        if self._erased[0] is not erase:
            self._erased = (erase, self.X if erase is None else erased_rows(erase, self.X))
        X, parts = self._erased[1], [self.task.at(part) for part in range(3)]
        known = [at[codes[at] >= 0] for at in parts]
        groups = self.groups[codes[parts[2]] >= 0]
        sets = Sets(tuple(X[at] for at in known), tuple(codes[at] for at in known), groups, n_classes)
        rng = self.context.rng(f"{probe} {target}")
        own = method in OWN and target == self.task.label.name
        known_C = self._penalty.get(target) if probe == "logistic" and not own else None
        fresh = fit_fresh(probe, sets, rng, CS if known_C is None else (known_C,))
        if probe == "logistic":
            self._penalty.setdefault(target, fresh.C)
        for metric, (interval, floor) in measured(fresh.scores, sets, self.weights).items():
            self.rows.append(
                {
                    "method": method,
                    "rank": 0 if erase is None else erase.rank,
                    "target": target,
                    "probe": probe,
                    "metric": metric,
                    **interval._asdict(),
                    "floor": floor,
                    "n_rows": len(known[2]),
                    "n_documents": len(np.unique(groups)),
                }
            )


def mean_gap(X: np.ndarray, codes: np.ndarray, n_classes: int) -> float:
    """Return the largest difference between two class means, in standard deviations of the unit."""
    means = np.stack([X[codes == each].mean(axis=0, dtype=np.float64) for each in range(n_classes)])
    deviation = X.std(axis=0, dtype=np.float64)
    floor = 1e-6 * max(float(np.median(deviation)), 1e-30)
    return float((np.ptp(means, axis=0) / np.maximum(deviation, floor)).max())
