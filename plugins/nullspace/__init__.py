"""Nullspace projection: take a label out of a hook point's activations, and see what is lost with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import CaptureDefault, Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result

Method = Literal["inlp", "leace", "mean-projection"]
Classifier = Literal["logistic", "svm", "lda", "mean-difference"]


@dataclass(frozen=True)
class LiveConfig:
    """The subject with the projection in place."""

    tokens: Annotated[
        int, Option("tokens of test documents that are run through the subject, 0 for none", unit="tokens", ge=0)
    ] = 16_000
    examples: Annotated[int, Option("predictions shown that suffer most", ge=0)] = 12


@dataclass(frozen=True)
class NullspaceConfig:
    """Erasure of labels."""

    hook_point: Annotated[
        str | tuple[str, ...] | None, Option("hook points, by name or pattern; by default all of the store")
    ] = None
    label: Annotated[
        str | tuple[str, ...] | None,
        Option("labels to erase, yes/no or categories; one category against the rest as LABEL=CATEGORY"),
    ] = None
    method: Annotated[
        Method | tuple[Method, ...],
        Option("iterative nullspace projection, LEACE's closed form, orthogonal projection off the class means"),
    ] = ("inlp", "leace")
    classifier: Annotated[Classifier, Option("linear classifier whose nullspace is projected onto (inlp)")] = "logistic"
    C: Annotated[float, Option("inverse penalty of that classifier (logistic, svm)", gt=0)] = 0.1
    max_rounds: Annotated[int, Option("classifiers erased at most (inlp)", ge=1)] = 60
    margin: Annotated[
        float, Option("rounds go on while balanced accuracy is more than this above chance (inlp)", ge=0, le=1)
    ] = 0.0
    keep_mean: Annotated[
        bool, Option("project around the training rows' mean, not around the origin (inlp, mean-projection)")
    ] = True
    others: Annotated[
        str | tuple[str, ...] | None,
        Option("labels by which damage is measured; by default familiar yes/no labels of the store"),
    ] = None
    main: Annotated[
        str | None, Option("label of a main task: its true positive rates are compared with and without the label")
    ] = None
    by_class: Annotated[bool, Option("each round fits on rows of one class of the main task, to spare it (inlp)")] = (
        False
    )
    nonlinear: Annotated[bool, Option("also fit a small network and an RBF probe on what is left")] = True
    controls: Annotated[int, Option("random projections of equal rank", ge=1)] = 5
    permutations: Annotated[int, Option("permutations of the labels over rows, a negative control", ge=1)] = 20
    max_rows: Annotated[
        int, Option("rows per label, no document and class drowning the others", unit="rows", ge=100)
    ] = 20_000
    draws: Annotated[int, Option("resamples of documents behind each interval", ge=10)] = 1000
    live: LiveConfig = LiveConfig()

    def __post_init__(self) -> None:
        if self.by_class and self.main is None:
            raise ValueError("by_class: needs the label of a main task, main=LABEL")


class Nullspace(Plugin):
    """Erase labels from activations, measure what is left and what is lost, and apply it to the running subject."""

    name = "nullspace"
    help = "erase a label from activations (INLP, LEACE): what is left of it, and what is lost with it?"
    version = "1"
    Config = NullspaceConfig
    needs = Needs(store=True, labels=True)
    default_capture = CaptureDefault(
        model="zoo:pycode", data="python-stdlib", hooks=("blocks.2.hook_resid_post",), rows=60_000
    )

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.nullspace.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `nullspace`."""
    return [Nullspace]
