"""What segmentation found, for people: rows of a table, metrics, figures, sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.plugins.second_order.figures import maps_figure, segmentation_figure
from workbench.plugins.second_order.maps import SECOND
from workbench.plugins.second_order.questions import CLASSES
from workbench.plugins.second_order.sample import shown_pixels
from workbench.plugins.second_order.segmentation import ALL_LABELS, AT_MEAN, Outcome, Segmentation
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.subjects.vit_subject import VisionSubject

OVER = "95 % interval over test images"


def segmentation_rows(segmentations: Sequence[Segmentation]) -> list[dict[str, Any]]:
    """Return a row for each question, label, method and measure, with the gain of the second order over it."""
    rows = []
    for segmentation in segmentations:
        for outcome in segmentation.outcomes:
            for measure, value in outcome.values.items():
                row = {
                    "question": segmentation.question.name,
                    "label": outcome.label,
                    "method": outcome.method,
                    "variant": outcome.variant,
                    "threshold": 0.0 if measure == AT_MEAN else outcome.threshold,
                    "measure": measure,
                    "value": value.value,
                    "lo": value.lo,
                    "hi": value.hi,
                }
                if measure in outcome.gains:
                    gain = outcome.gains[measure]
                    row |= {"gain": gain.value, "gain_lo": gain.lo, "gain_hi": gain.hi}
                rows.append(row)
    return rows


def over_all_labels(segmentation: Segmentation) -> Iterator[Outcome]:
    """Yield the outcome of each method over all labels, or over the only one."""
    for outcome in segmentation.outcomes:
        if outcome.label == ALL_LABELS or len(segmentation.question.labels) == 1:
            yield outcome


def add_segmentation_metrics(result: Result, segmentations: Sequence[Segmentation]) -> None:
    """Add the mIoU of each method and the gains; those of single classes' queries are named ``class.``."""
    for segmentation in segmentations:
        start = "class." if segmentation.question.name == CLASSES else ""
        asked = f"{segmentation.question.name}, {segmentation.question.sample.dataset.address}"
        for outcome in over_all_labels(segmentation):
            end, value, gain = outcome.method.replace(" ", "-"), outcome.values["mIoU"], outcome.gains.get("mIoU")
            what = f"{outcome.method}{f' ({outcome.variant})' if outcome.variant else ''}, {asked}; {OVER}"
            result.add_metric(f"{start}mIoU.{end}", value.value, lo=value.lo, hi=value.hi, description=what)
            if gain is not None:
                result.add_metric(
                    f"{start}gain.{end}", gain.value, lo=gain.lo, hi=gain.hi,
                    description=f"mIoU of the {SECOND} less that of the {outcome.method}, {asked}; {OVER}, paired",
                )  # fmt: skip


def add_segmentation_figures(
    result: Result, subject: VisionSubject, segmentations: Sequence[Segmentation], rows: pd.DataFrame | None
) -> None:
    """Add how well maps fit, and maps: of single classes where there are any."""
    if rows is None:
        return
    result.add_figure(
        "segmentation",
        segmentation_figure(rows),
        description="mIoU of maps and masks on test images, 95 % intervals over images: for what an image is taken "
        "for, all at once, and for each class that it holds by itself.",
    )
    last = [each for each in segmentations if each.outcomes][-1]
    shown = [
        {
            "image": shown_pixels(subject, last.question.sample.picture(each.image)),
            "mask": each.mask,
            "said": each.said,
            "maps": each.maps,
        }
        for each in last.examples
    ]
    result.add_figure(
        "maps",
        maps_figure(shown),
        description="Test images (below each what is looked for), where it is, and each method's map.",
    )


def segmentation_paragraphs(segmentations: Sequence[Segmentation]) -> list[str]:
    """Say what the second order gains."""
    found = []
    for segmentation in segmentations:
        gains = [(outcome.method, outcome.gains["mIoU"]) for outcome in over_all_labels(segmentation) if outcome.gains]
        said = ", less ".join(f"{method} {gain.value:+.3f} [{gain.lo:+.3f}, {gain.hi:+.3f}]" for method, gain in gains)
        if gains:
            found.append(
                f"Segmentation, {segmentation.question.name}, of {segmentation.n_test} test images of "
                f"{segmentation.question.sample.dataset.address}: mIoU by the second order less {said}."
            )
    return found
