"""The result: tables, figures, saved projections, and what to make of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from scipy.stats import binomtest

from workbench.plugins.nullspace.figures import (
    AT_MOST,
    NAMES,
    left_figure,
    live_figure,
    others_figure,
    rounds_figure,
)
from workbench.plugins.nullspace.tasks import Task
from workbench.probes.statistics import FEW_GROUPS
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.nullspace.run import Records

OVER = "95 % interval over documents"
LEVEL = 0.95
PERMUTED = "permuted labels"
ARROW = "→"  # from a token of one class to one of another
TABLES = {
    "projections": "The erasures. change: mean squared distance that test rows are moved, as a share of their "
    "variance; mean_gap: largest difference of two class means on test rows, in standard deviations of a unit, after, "
    "and mean_gap_before; stopped: why the rounds ended; rank_permuted: directions that INLP takes for labels permuted "
    "over rows (should be 0).",
    "scores": "Fresh probes on test documents, on rows as they are (none) and after each erasure. target: the erased "
    "label, or another one; floor: naming the most frequent class, one over the number of classes, nothing known. "
    "random …: random projections of the same rank, one row each.",
    "live": "The subject with the projection in place, on test documents. where: everywhere; at CLASS: predictions "
    "made at tokens of that class; A → B: from a token of A, the next one being of B. rise: against the subject as it "
    "is, paired, with its interval; divergence: Kullback–Leibler, from the subject as it is; right: share of first "
    "guesses.",
    "tokens": "Tokens whose prediction suffers most where the label holds (ten occurrences at least).",
    "examples": "Single predictions that suffer most where the label holds, one of a sequence: the text before, the "
    "token that came, what it was given, and the first guess.",
    "rounds": "Iterative nullspace projection: balanced accuracy on select documents of the classifier fitted after so "
    "many directions were erased.",
    "bias": "A main task's true positive rates with and without the label, its classifier retrained on what is left; "
    "rms: over classes, with its interval; correlation: of gap and share over classes.",
}
UNITS = {
    "live": {"loss": "nats", "rise": "nats", "lo": "nats", "hi": "nats", "divergence": "nats"},
    "tokens": {"rise": "nats"},
    "examples": {"rise": "nats"},
}


def present(context: Context, tasks: Sequence[Task], records: Sequence[Records]) -> Result:
    """Put the result together from what was measured of every label at every hook point."""
    frames = {
        name: pd.DataFrame([row for each in records for row in each.tables.get(name, [])])
        for name in TABLES
    }  # fmt: skip
    projections = frames["projections"]
    pairs = list(dict.fromkeys(zip(projections["hook_point"], projections["label"], strict=True)))
    methods = list(dict.fromkeys(projections["method"]))
    result = Result()
    add_metrics(result, frames, pairs, methods)
    notes = list(dict.fromkeys(note for each in records for note in each.notes))
    result.add_section(
        "how-to-read", "text", reading(context, tasks, frames, notes), "What was done, and how far to trust it."
    )
    add_figures(result, frames, pairs[:AT_MOST], methods)
    for name, description in TABLES.items():
        if len(frames[name]):
            units = {k: v for k, v in UNITS.get(name, {}).items() if k in frames[name]}
            if name == "live" and (frames[name]["measure"] != "cross-entropy").any():
                units = {}
            result.add_table(name, frames[name], description=description, units=units)
    for each in records:
        for method, erase in each.projections.items():
            tensors = {key: torch.from_numpy(values.copy()) for key, values in erase.tensors().items()}
            name = plain(f"{method}.{erase.about['label']}.{erase.about['hook_point']}")
            result.add_weights(
                name,
                tensors,
                description=f"erases {erase.about['label']} at {erase.about['hook_point']} ({NAMES[method]}); "
                f"workbench.load_projection('RUN#{name}')",
                config=erase.config(),
            )
    return result


def add_metrics(
    result: Result, frames: dict[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], methods: Sequence[str]
) -> None:
    """Add for each pair what is read before and after, the rank, and the live loss; and the negative control."""
    scores, live = frames["scores"], frames["live"]
    linear = scores[(scores["probe"] == "logistic") & (scores["target"] == scores["label"])]
    for hook_point, label in pairs:
        tail = plain(f"{label}.{hook_point}")
        mine = linear[(linear["hook_point"] == hook_point) & (linear["label"] == label)]
        for way in ("none", *methods):
            for metric in ("balanced_accuracy", "accuracy"):
                row = mine[(mine["method"] == way) & (mine["metric"] == metric)].iloc[0]
                _add(
                    result, f"{metric}.{way}.{tail}", row, "value",
                    f"{metric.replace('_', ' ')} of a fresh logistic probe of {label} at {hook_point} on test "
                    f"documents, {NAMES[way]}; {100 * row['floor']:.1f} % is what no row tells; {OVER}",
                )  # fmt: skip
        of_pair = frames["projections"]
        for _, row in of_pair[(of_pair["hook_point"] == hook_point) & (of_pair["label"] == label)].iterrows():
            result.add_metric(
                f"rank.{row['method']}.{tail}",
                int(row["rank"]),
                unit="directions",
                description=f"erased of {row['n_units']} at {hook_point}",
            )
        if not len(live):
            continue
        here = live[(live["hook_point"] == hook_point) & (live["label"] == label) & live["method"].isin(methods)]
        here = here[~here["where"].str.contains(ARROW)]  # what comes next is in the table
        for _, row in here.iterrows():
            causal = row["measure"] == "cross-entropy"
            _add(
                result, f"rise.{row['method']}.{plain(row['where'])}.{tail}", row, "rise",
                f"{'rise of the loss' if causal else 'squared error of the output, as a share of it,'} with "
                f"{NAMES[row['method']]} in place, {row['where']}; {OVER}", "nats" if causal else "",
            )  # fmt: skip
    inside, n, chance = permuted(scores)
    fair = binomtest(inside, n, LEVEL)
    lo, hi = fair.proportion_ci(method="exact")
    result.add_metric(
        "negative_control", inside / n, lo=lo, hi=hi,
        description=f"share of fresh probes of labels permuted over rows whose 95 % interval contains chance ({inside} "
        f"of {n}), and its 95 % interval (Clopper–Pearson), which should contain 0.95",
    )  # fmt: skip
    result.add_metric(
        "negative_control_p",
        chance,
        description=f"chance that at least {n - inside} of {n} fair 95 % intervals miss; below 0.01 something is wrong "
        "with the intervals or the split",
    )


def permuted(scores: pd.DataFrame) -> tuple[int, int, float]:
    """Return in how many intervals of permuted labels chance lies, how many there are, and how likely so few are."""
    control = scores[(scores["method"] == PERMUTED) & (scores["metric"] == "balanced_accuracy")]
    inside, n = int(((control["lo"] <= control["floor"]) & (control["floor"] <= control["hi"])).sum()), len(control)
    return inside, n, float(binomtest(inside, n, LEVEL, alternative="less").pvalue)


def _add(result: Result, name: str, row: pd.Series[Any], value: str, description: str, unit: str = "") -> None:
    known = {"lo": row["lo"], "hi": row["hi"]} if row["lo"] <= row["hi"] else {}
    result.add_metric(name, float(row[value]), unit=unit, description=description, **known)


def add_figures(
    result: Result, frames: dict[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], methods: Sequence[str]
) -> None:
    """Add the figures, of the first pairs where there are many."""
    scores = frames["scores"]
    result.add_figure(
        "left",
        left_figure(scores, pairs, methods),
        description="What fresh probes still read of the erased label on test documents, 95 % intervals over "
        "documents; dashed: chance. Linear probes should be there after an erasure; a network or an RBF "
        "kernel need not be.",
    )
    if (scores["target"] != scores["label"]).any():
        result.add_figure(
            "others",
            others_figure(scores, pairs, methods),
            description="Other labels, read by fresh logistic probes: the damage. Labels that are part of the erased "
            "one must suffer.",
        )
    if len(frames["live"]):
        result.add_figure(
            "live",
            live_figure(frames["live"], pairs, methods),
            description="What the running subject loses with the projection in place, against itself, on test "
            "documents, by kind of prediction (how many): at CLASS, made at tokens of that class; A → B, from a token "
            "of A, the next one being of B. 95 % intervals over documents. Grey: random projections of equal rank.",
        )
    if len(frames["rounds"]):
        result.add_figure(
            "rounds",
            rounds_figure(frames["rounds"], pairs),
            description="Iterative nullspace projection. What the next probe reads on select documents, which stop "
            "the rounds; 95 % intervals over documents, dashed: chance.",
        )


def reading(
    context: Context, tasks: Sequence[Task], frames: dict[str, pd.DataFrame], notes: Sequence[str]
) -> list[str]:
    """Say in words what was done, what was found, and what to beware of."""
    paragraphs = [
        "Erasures are fitted on training documents, the rounds are stopped and penalties chosen on select documents, "
        "and every score shown is from test documents, which were used for nothing else. Documents are never divided, "
        "and identical ones count as one. Each probe is fitted anew on what the erasure left."
    ]
    scores = frames["scores"]
    even = scores[(scores["metric"] == "balanced_accuracy") & (scores["target"] == scores["label"])]
    for _, row in frames["projections"].iterrows():
        mine = even[(even["hook_point"] == row["hook_point"]) & (even["label"] == row["label"])]
        before, after = (
            mine[(mine["method"] == way) & (mine["probe"] == "logistic")].iloc[0] for way in ("none", row["method"])
        )
        text = (
            f"{NAMES[row['method']]} of {row['label']} at {row['hook_point']} erases {row['rank']} of {row['n_units']} "
            f"directions and moves rows by {100 * row['change']:.2g} % of their variance. A fresh logistic probe falls "
            f"from {before['value']:.3f} to {after['value']:.3f} [{after['lo']:.3f}, {after['hi']:.3f}] balanced "
            f"accuracy; chance is {after['floor']:.3f}."
        )
        deeper = mine[(mine["method"] == row["method"]) & mine["probe"].isin(["network", "rbf"])]
        if len(deeper):
            best = deeper.loc[deeper["value"].idxmax()]
            text += (
                f" The better non-linear probe still reads {best['value']:.3f} [{best['lo']:.3f}, {best['hi']:.3f}]."
            )
        if row["stopped"] == "max_rounds":
            text += " The rounds ran out before the label was gone: raise max_rounds."
        if after["lo"] > after["floor"]:
            text += " The interval lies above chance: on test documents the label is not altogether gone."
        if row["rank_permuted"]:
            text += f" Of labels permuted over rows it erased {row['rank_permuted']} directions, which should be 0."
        paragraphs.append(text)
    inside, n, chance = permuted(scores)
    paragraphs.append(
        f"Negative control: of labels permuted over rows, which no probe can know, {inside} of {n} intervals contain "
        f"chance. Of fair 95 % intervals {LEVEL * n:.3g} do on average; so few or fewer have a probability of "
        f"{chance:.2g}."
    )
    live = frames["live"]
    if len(live):
        for (hook_point, label), mine in live.groupby(["hook_point", "label"], sort=False):
            paragraphs.append(_live_sentence(str(hook_point), str(label), mine))
    few = [task.label.name for task in tasks if task.documents(2)[1] < FEW_GROUPS]
    if few:
        paragraphs.append(f"Fewer than {FEW_GROUPS} test documents for {', '.join(few)}: intervals are too narrow.")
    return paragraphs + list(notes)


def _live_sentence(hook_point: str, label: str, mine: pd.DataFrame) -> str:
    causal = mine["measure"].iloc[0] == "cross-entropy"
    what = "loss rises by (nats)" if causal else "output is off by (squared error, as a share of it)"
    told = []
    for where in [each for each in dict.fromkeys(mine["where"]) if ARROW not in each]:
        of_where = mine[(mine["where"] == where) & (mine["method"] != "none")]
        values = ", ".join(
            f"{NAMES[row['method']]} {row['rise']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
            for _, row in of_where.iterrows()
            if not math.isnan(row["lo"])
        )
        told.append(f"{where} {values}")
    return f"With {label} erased at {hook_point}, the running subject's {what}: {'; '.join(told)}."


def plain(name: str) -> str:
    """Turn a name into one that a file can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100]
