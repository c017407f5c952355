"""Sparse probes: can a label be read from k neurons, or k latents of a dictionary, and from which?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import CaptureDefault, Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result

Selector = Literal[
    "standardised",
    "mean_difference",
    "mutual_information",
    "logistic_l1",
    "logistic_l2",
    "adaptive",
    "forward",
    "optimal",
    "enumerate",
]
Metric = Literal["auc", "average_precision", "f1", "mcc", "balanced_accuracy", "log_loss"]


@dataclass(frozen=True)
class BaselineConfig:
    """What the probes are held against."""

    shuffles: Annotated[
        int, Option("permutations of the labels behind each p-value, selection repeated in each; 0 for none", ge=0)
    ] = 200
    random_units: Annotated[int, Option("draws of k units at random, 0 for none", ge=0)] = 20
    dense: Annotated[bool, Option("fit a probe on all units, as a ceiling")] = True


@dataclass(frozen=True)
class SparseProbeConfig:
    """k-sparse probes."""

    hook_point: Annotated[
        str | tuple[str, ...] | None, Option("hook points, by name or pattern; by default all of the store")
    ] = None
    label: Annotated[
        str | tuple[str, ...] | None,
        Option("labels, by name or pattern, a category as LABEL=CATEGORY; by default yes/no labels of every group"),
    ] = None
    k: Annotated[int | tuple[int, ...], Option("units a probe may look at", unit="units", ge=1)] = (1, 2, 4, 8, 16)
    selector: Annotated[Selector, Option("how the units are chosen on training documents")] = "standardised"
    metric: Annotated[Metric, Option("what figures show, and what chooses hook points on the select documents")] = "auc"
    max_rows: Annotated[
        int, Option("rows per label, no document and class drowning the others", unit="rows", ge=100)
    ] = 40_000
    max_labels: Annotated[int, Option("labels chosen where none is named", ge=1)] = 6
    draws: Annotated[int, Option("resamples of documents behind each interval", ge=10)] = 1000
    contexts: Annotated[int, Option("top activating contexts of each label's best unit, 0 for none", ge=0)] = 8
    baselines: BaselineConfig = BaselineConfig()


class SparseProbe(Plugin):
    """Fit probes that may look at k units only, and say how far their scores can be trusted."""

    name = "sparse-probe"
    help = "k-sparse probes: which few neurons or latents tell a label?"
    version = "1"
    Config = SparseProbeConfig
    needs = Needs(store=True, labels=True)
    default_capture = CaptureDefault(
        model="zoo:pycode", data="python-stdlib", hooks=("blocks.*.mlp.hook_post",), rows=60_000
    )

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.sparse_probe.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `sparse-probe`."""
    return [SparseProbe]
