"""The result: tables, figures, the negative control, and what to make of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from workbench.plugins.sparse_probe import SparseProbeConfig
from workbench.plugins.sparse_probe.contexts import best_units, examples_frame, pages
from workbench.plugins.sparse_probe.figures import METRIC_NAMES, curves, heat_map, histograms
from workbench.plugins.sparse_probe.frames import (
    above_floor,
    best_frame,
    labels_found,
    scores_frame,
    stays_at_floor,
    too_few_shuffles,
)
from workbench.plugins.sparse_probe.records import HookRecords
from workbench.plugins.sparse_probe.tasks import Task
from workbench.probes.metrics import METRIC_HELP
from workbench.probes.statistics import FEW_GROUPS
from workbench.report.latents import latents_section
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.dictionary import Dictionary


def present(
    context: Context,
    tasks: Sequence[Task],
    ks: Sequence[int],
    records: Mapping[str, HookRecords],
    token_identity: HookRecords,
    dictionary: Dictionary | None,
) -> Result:
    """Put the result together from what was measured at every hook point."""
    config: SparseProbeConfig = context.config
    scores = scores_frame(records, token_identity, tasks, ks, context.seed)
    best = best_frame(scores, tasks, ks, config.metric)
    units = pd.DataFrame([row for of_hook in records.values() for row in of_hook.units])
    result = Result()
    _add_metrics(result, best, scores, tasks, config)
    result.add_section(
        "how-to-read",
        "text",
        _reading(best, scores, tasks, ks, config, dictionary),
        "What was done, and how far to trust it.",
    )
    result.add_table(
        "best",
        best,
        description="For each label and k the hook point that is best on the select documents, scored on the test "
        "documents. floor: a probe that does not look; shuffled: mean over permuted labels; p is corrected for the "
        "number of hook points, q for the number of labels as well.",
        units={"n_positive_groups": "documents"},
    )
    labels = [task.name for task in tasks]
    name = METRIC_NAMES[config.metric]
    result.add_figure(
        "curves",
        curves(scores, best, labels, config.metric),
        description=f"{name} on test documents against the number of units k, with 95 % intervals over documents. "
        "Baselines are those of the hook point chosen for the largest k.",
    )
    result.add_figure(
        "hook-points",
        heat_map(scores, labels, ks, config.metric),
        description=f"{name} on test documents of every hook point and label.",
    )
    alone = best_units(context, tasks, best, units, dictionary)
    result.add_figure(
        "best-units",
        histograms([(each.task.name, each.hook_point, each.unit, each.values, each.y) for each in alone]),
        description="Activation of each label's best single unit on the test rows, by class; each class sums to 1.",
    )
    result.add_table(
        "units",
        units,
        description="Units chosen on the training documents, best first. auc: of the unit's activation alone, on the "
        "test documents; below one half it is silent where the label holds. coefficient: log odds per unit of "
        "activation; coefficient_standardised: per standard deviation.",
    )
    if config.contexts:
        result.add_table(
            "examples",
            examples_frame(context.store, alone, config.contexts),
            description="Test rows on which each label's best single unit is most active.",
        )
        n_units = {name: int(scores[(scores["hook_point"] == name)]["k"].max()) for name in records}
        for hook_point, of_hook in pages(context, alone, config.contexts, dictionary).items():
            result.add_section(
                f"units-of-{_plain(hook_point)}",
                "latents",
                latents_section(of_hook, n_latents=n_units[hook_point], label_measure="AUC"),
                f"Best single units of {hook_point}: where they are most active on test documents.",
            )
    result.add_table(
        "scores",
        scores,
        description="All scores: k-sparse probes on select and test documents, and what they are held against. "
        + "; ".join(f"{metric}: {text}" for metric, text in METRIC_HELP.items())
        + ".",
        units={"seconds": "s", "n_rows": "rows", "n_groups": "documents", "n_positive_groups": "documents"},
    )
    return result


def _add_metrics(
    result: Result, best: pd.DataFrame, scores: pd.DataFrame, tasks: Sequence[Task], config: SparseProbeConfig
) -> None:
    name = METRIC_NAMES[config.metric]
    unit = "bits" if config.metric == "log_loss" else ""
    for _, row in best[best["k"].isin({best["k"].min(), best["k"].max()})].iterrows():
        known = {"lo": row["lo"], "hi": row["hi"]} if row["lo"] <= row["hi"] else {}
        result.add_metric(
            f"{config.metric}.{_plain(row['label'])}.k{row['k']}",
            float(row["value"]),
            unit=unit,
            description=f"{name} of {row['k']} unit{'s' * (row['k'] > 1)} of {row['hook_point']} for {row['label']} on "
            "test documents, 95 % interval over documents",
            **known,
        )
    control = stays_at_floor(scores, config.metric)
    result.add_metric(
        "negative_control",
        float(control.mean()),
        description="share of hook points, labels and k at which, after the labels were permuted over rows, the 95 % "
        "interval over documents reaches down to the floor; should be 0.95 or more",
    )
    few = too_few_shuffles(config.baselines.shuffles, len(tasks))
    result.add_metric("labels", len(tasks), description="labels probed")
    result.add_metric(
        "labels_found",
        labels_found(best),
        description="labels that the largest k reads better than shuffled labels, at a false discovery rate of 5 %"
        + (f"; {few}" if few else ""),
    )


def _reading(
    best: pd.DataFrame,
    scores: pd.DataFrame,
    tasks: Sequence[Task],
    ks: Sequence[int],
    config: SparseProbeConfig,
    dictionary: Dictionary | None,
) -> list[str]:
    """Say in words what was done and what to beware of."""
    what = f"latents of {dictionary.address or 'the dictionary'}" if dictionary is not None else "units of a hook point"
    paragraphs = [
        f"Each probe reads k {what}. Units are chosen ({config.selector}) and the probe is fitted on training "
        "documents; the penalty and the hook point are chosen on select documents; every number shown is from test "
        "documents, which were used for nothing else. Documents are never divided, and identical ones count as one."
    ]
    covered = stays_at_floor(scores, config.metric)
    paragraphs.append(
        "Negative control: with labels permuted over rows, units chosen and fitted anew, the 95 % interval reaches "
        f"down to the floor in {int(covered.sum())} of {len(covered)} cases (hook points, labels and k)."
    )
    if config.baselines.shuffles:
        text = (
            f"p-values hold each score against {config.baselines.shuffles} repetitions of the whole procedure with "
            "shuffled labels: shifted in a circle inside documents, or exchanged between documents where each has one "
            "value only."
        )
        if beyond := above_floor(scores, config.metric):
            text += (
                f" For {', '.join(beyond)} the shuffled labels score above the floor too: documents differ in how "
                "often the label holds, and units tell documents apart. Hold those scores against the shuffled ones."
            )
        paragraphs.append(text)
    if beyond_reach := too_few_shuffles(config.baselines.shuffles, len(tasks)):
        paragraphs.append(f"Labels found: {beyond_reach}.")
    few = [task.name for task in tasks if task.n_positive_groups(2) < FEW_GROUPS]
    if few:
        paragraphs.append(
            f"Fewer than {FEW_GROUPS} test documents have a positive row of {', '.join(few)}: the intervals of these "
            "labels are too narrow."
        )
    token = best[best["k"] == ks[-1]]
    alike = token[token["token_identity"] >= token["value"]] if config.metric != "log_loss" else token.iloc[:0]
    if len(alike):
        paragraphs.append(
            f"The token alone, without any activation, tells {', '.join(alike['label'])} at least as well as "
            f"{ks[-1]} units do: these probes need not have found more than which token they are on."
        )
    odd = scores[(scores["probe"].isin(["k-sparse", "dense"])) & ~scores["converged"]]
    if len(odd):
        fits = odd[["hook_point", "label", "probe", "k"]].drop_duplicates()
        paragraphs.append(f"{len(fits)} fits did not converge; see the column converged of the table scores.")
    return paragraphs


def _plain(name: str) -> str:
    """Turn a label's or hook point's name into one that a file can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100]
