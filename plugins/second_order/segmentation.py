"""Zero-shot segmentation: maps against masks, each method's variant and threshold chosen on other images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.plugins.second_order.judging import Judge
from workbench.plugins.second_order.maps import METHODS, SECOND, MapMaker, Variant
from workbench.plugins.second_order.passes import Arrays, run_in_chunks
from workbench.plugins.second_order.questions import Question
from workbench.plugins.second_order.readout import branches
from workbench.plugins.second_order.sample import CHOOSE, TEST, Sample
from workbench.plugins.second_order.scoring import (
    MEAN,
    THRESHOLDS,
    average_precision,
    enlarged,
    mean_iou,
    overlaps,
    pixel_accuracy,
)
from workbench.probes import bootstrap_weights
from workbench.probes.statistics import Interval, percentile_interval
from workbench.subjects.protocol import Batch
from workbench.subjects.vit_subject import VisionSubject

if TYPE_CHECKING:
    from workbench.context import Context

AT_MEAN = "mIoU at the mean"
MEASURES = ("mIoU", "pixel accuracy", "mAP", AT_MEAN)
ALL_LABELS = "all"
EXAMPLES = 8
IMAGES_AT_ONCE = 32
Choices = dict[tuple[str, int], tuple[Variant, int]]  # of a method and a label: a variant, and which of THRESHOLDS


@dataclass(frozen=True)
class Outcome:
    """How well the maps of one method fit the masks of test images.

    Attributes
    ----------
    label : str
        Whose queries; `ALL_LABELS` for all together, where there are several.
    method, variant : str
        What was chosen on other images; for all labels each has its own, and no name is given.
    threshold : float
        Likewise; standard deviations above the map's mean. NaN for all labels.
    values : dict of str to Interval
        By measure. At the mean: of the same variants, thresholded at a map's mean.
    gains : dict of str to Interval
        By measure: second order less this method, on the same resamples of images; empty for the second order.
    """

    label: str
    method: str
    variant: str
    threshold: float
    values: dict[str, Interval]
    gains: dict[str, Interval]


@dataclass(frozen=True)
class Example:
    """A test image, what was asked for, where it is, and the map of each method [height, width]."""

    image: int
    said: str
    mask: np.ndarray
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class Segmentation:
    """What came of one question.

    Attributes
    ----------
    question : Question
        What was asked.
    outcomes : tuple of Outcome
        Of each label and method; none where an image with a usable mask is lacking.
    n_choose, n_test : int
        Images.
    examples : list of Example
        Of test images.
    """

    question: Question
    outcomes: tuple[Outcome, ...]
    n_choose: int
    n_test: int
    examples: list[Example]


def why_not(context: Context, subject: VisionSubject, sample: Sample, judge: Judge | None) -> str | None:
    """Say why nothing can be segmented, if nothing can."""
    if not context.config.segmentation.images:
        return "segmentation.images=0"
    if judge is None:
        return "there are no class names, or no text tower to embed them"
    if not sample.has_masks:
        return "the dataset has no masks (the option masks names a folder of them)"
    found = branches(subject, subject.dtype)
    return (
        None if len(found) == 1 and found[0].pool == "class" else "the tower is not read out at its class token alone"
    )


def segment(context: Context, subject: VisionSubject, maker: MapMaker, question: Question) -> Segmentation:
    """Choose variants and thresholds on some images, and measure these, and no others, on the rest.

    Parameters
    ----------
    context, subject
        Of the run.
    maker : MapMaker
        Of the run's neurons.
    question : Question
        What is asked.
    """
    choices = choose(context, subject, maker, question)
    at, counts, precision = measure(context, subject, maker, question, choices)
    n_choose, n_test = len(question.images(CHOOSE)), len(np.unique(question.image[at]))
    if not choices or not n_test:
        return Segmentation(question, (), n_choose, n_test, [])
    outcomes = compare(context, question, choices, at, counts, precision)
    return Segmentation(question, outcomes, n_choose, n_test, examples(subject, maker, question, choices, at))


def drawn(
    subject: VisionSubject, maker: MapMaker, question: Question, batch: Batch, images: np.ndarray
) -> Iterator[tuple[int, np.ndarray, dict[Variant, np.ndarray]]]:
    """Yield all that is asked of a batch of images and has a usable mask: its number, the mask, each variant's map.

    Maps are over patches, [patch].
    """
    seen = maker.look(batch)
    of_image = [np.flatnonzero(question.image == image) for image in images]
    for turn in range(max(map(len, of_image))):
        rows = [row for row, asked in enumerate(of_image) if turn < len(asked)]
        asked = [int(of_image[row][turn]) for row in rows]
        maps = maker.maps(seen.of(torch.tensor(rows)), question.queries[torch.from_numpy(question.query[asked])])
        for number, at in enumerate(asked):
            mask = question.mask(subject, at)
            if mask is not None:
                yield at, mask, {variant: values[number] for variant, values in maps.items()}


def on_pixels(subject: VisionSubject, batch: Batch, values: np.ndarray) -> np.ndarray:
    """Enlarge maps [..., patch] to the subject's pixels, [..., height, width]."""
    size, patch = [int(n) for n in batch.inputs.shape[2:]], subject.arch.patch_size
    return enlarged(values, [n // p for n, p in zip(size, patch, strict=True)], patch, size)


def choose(context: Context, subject: VisionSubject, maker: MapMaker, question: Question) -> Choices:
    """Return for each method and label the variant and the threshold of the largest mIoU on the images to choose by."""
    variants = maker.variants

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        counts = np.zeros((len(question.labels), len(variants), len(THRESHOLDS), 2, 2), np.int64)
        for at, mask, maps in drawn(subject, maker, question, batch, images):
            values = np.stack([maps[variant] for variant in variants])
            counts[question.label[at]] += overlaps(on_pixels(subject, batch, values), mask)
        return {}, {"counts": counts}

    name, images = f"choosing, {question.name}", question.images(CHOOSE)
    held = run_in_chunks(context, subject, question.sample, images, name, of_batch, IMAGES_AT_ONCE)
    choices: Choices = {}
    for label, counts in enumerate(held.total("counts") if held.folders else ()):
        if not counts.any():
            continue
        scores = mean_iou(counts[None], np.ones((1, 1)))[0]
        for method in METHODS:
            columns = [i for i, variant in enumerate(variants) if variant.method == method]
            best, threshold = np.unravel_index(int(scores[columns].argmax()), (len(columns), len(THRESHOLDS)))
            choices[method, label] = variants[columns[int(best)]], int(threshold)
    return choices


def measure(
    context: Context, subject: VisionSubject, maker: MapMaker, question: Question, choices: Choices
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure what was chosen on the images to test on.

    Returns
    -------
    at : np.ndarray
        [row] which of the things asked for; those without a usable mask, or of a label without a choice, are left out.
    counts : np.ndarray
        [row, method, 2, 2, 2] pixels, of `METHODS`, at the chosen threshold and at the mean.
    precision : np.ndarray
        [row, method] average precision.
    """

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        rows: list[int] = []
        counts = np.zeros((len(question.image), len(METHODS), 2, 2, 2), np.int64)
        precision = np.zeros((len(question.image), len(METHODS)))
        for at, mask, maps in drawn(subject, maker, question, batch, images):
            label = int(question.label[at])
            if (SECOND, label) not in choices:
                continue
            for column, method in enumerate(METHODS):
                variant, threshold = choices[method, label]
                values = on_pixels(subject, batch, maps[variant])
                counts[len(rows), column] = overlaps(values, mask)[[threshold, MEAN]]
                precision[len(rows), column] = average_precision(values, mask)
            rows.append(at)
        return {"at": np.array(rows, int), "counts": counts[: len(rows)], "precision": precision[: len(rows)]}, {}

    name, images = f"measuring, {question.name}", question.images(TEST)
    held = run_in_chunks(context, subject, question.sample, images, name, of_batch, IMAGES_AT_ONCE)
    if not held.folders:
        return np.zeros(0, int), np.zeros(0), np.zeros(0)
    return held.rows("at"), held.rows("counts"), held.rows("precision")


def compare(
    context: Context,
    question: Question,
    choices: Choices,
    at: np.ndarray,
    counts: np.ndarray,
    precision: np.ndarray,
) -> tuple[Outcome, ...]:
    """Return what `measure` found for each label and for all together, with intervals over images."""
    images, of_row = np.unique(question.image[at], return_inverse=True)
    weights = bootstrap_weights(len(images), context.config.draws, context.rng(f"segmented images, {question.name}"))
    weights = np.concatenate([np.ones((1, len(images))), weights])
    parts = [(name, [number], question.label[at] == number) for number, name in enumerate(question.labels)]
    if len(parts) > 1:
        parts.append((ALL_LABELS, [], np.ones(len(at), bool)))
    outcomes = []
    for name, numbers, rows in parts:
        if not rows.any():
            continue
        draws = {
            method: measures(weights[:, of_row[rows]], counts[rows, column], precision[rows, column])
            for column, method in enumerate(METHODS)
        }
        for method in METHODS:
            chosen = [choices[method, number] for number in numbers]
            gains = {} if method == SECOND else {m: draws[SECOND][m] - draws[method][m] for m in MEASURES}
            outcomes.append(
                Outcome(
                    name,
                    method,
                    chosen[0][0].name if chosen else "",
                    THRESHOLDS[chosen[0][1]] if chosen else float("nan"),
                    {m: interval(draws[method][m]) for m in MEASURES},
                    {m: interval(each) for m, each in gains.items()},
                )
            )
    return tuple(outcomes)


def measures(weights: np.ndarray, counts: np.ndarray, precision: np.ndarray) -> dict[str, np.ndarray]:
    """Return each of `MEASURES`, [draw], of weights [draw, row], counts [row, 2, 2, 2] and precision [row]."""
    chosen, mean = counts[:, 0], counts[:, 1]
    with np.errstate(invalid="ignore"):
        found = (
            mean_iou(chosen, weights),
            pixel_accuracy(chosen, weights),
            weights @ precision / weights.sum(1),
            mean_iou(mean, weights),
        )
    return dict(zip(MEASURES, found, strict=True))


def interval(draws: np.ndarray) -> Interval:
    """Return a value with its interval, draws [1 + draw] with the value first; draws without any row are left out."""
    return Interval(float(draws[0]), *percentile_interval(draws[1:][~np.isnan(draws[1:])]))


def examples(
    subject: VisionSubject, maker: MapMaker, question: Question, choices: Choices, at: np.ndarray
) -> list[Example]:
    """Return some of what was asked of test images, an image each, with each method's chosen map."""
    shown = []
    first = np.unique(question.image[at], return_index=True)[1][:EXAMPLES]
    for number, start in enumerate(first):
        of_image = at[question.image[at] == question.image[at[start]]]
        wanted = of_image[question.label[of_image] == number % len(question.labels)]  # one label after another
        asked = int(wanted[0] if len(wanted) else of_image[0])
        image, label = int(question.image[asked]), int(question.label[asked])
        batch = subject.batch([question.sample.picture(image)])
        maps = maker.maps(maker.look(batch), question.queries[[int(question.query[asked])]])
        drawn_maps = {m: on_pixels(subject, batch, maps[choices[m, label][0]][0]) for m in METHODS}
        mask = question.mask(subject, asked)
        assert mask is not None
        shown.append(Example(image, question.said[question.query[asked]], mask, drawn_maps))
    return shown
