"""Zero-shot segmentation: maps against masks, each method's variant and threshold chosen on other images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.plugins.second_order.judging import Judge
from workbench.plugins.second_order.maps import METHODS, MapMaker, Variant
from workbench.plugins.second_order.neurons import Neurons
from workbench.plugins.second_order.passes import Arrays, run_in_chunks
from workbench.plugins.second_order.readout import branches
from workbench.plugins.second_order.sample import CHOOSE, TEST, Sample, seen_mask
from workbench.probes import bootstrap_weights
from workbench.probes.statistics import Interval, percentile_interval
from workbench.subjects.protocol import Batch
from workbench.subjects.vit_subject import VisionSubject

if TYPE_CHECKING:
    from workbench.context import Context

THRESHOLDS = (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # standard deviations of a map above its mean
MEAN = THRESHOLDS.index(0.0)
MEASURES = ("mIoU", "pixel accuracy", "mAP")


@dataclass(frozen=True)
class Outcome:
    """How well the maps of one method fit the masks of test images.

    Attributes
    ----------
    method, variant : str
        What was chosen on other images.
    threshold : float
        Likewise; standard deviations above the map's mean.
    values : dict of str to Interval
        By measure.
    at_mean : Interval
        mIoU of the same variant, thresholded at the mean.
    """

    method: str
    variant: str
    threshold: float
    values: dict[str, Interval]
    at_mean: Interval


@dataclass(frozen=True)
class Segmentation:
    """What came of it.

    Attributes
    ----------
    outcomes : tuple of Outcome
        Of each method.
    gains : dict of str to dict of str to Interval
        By other method and measure: second order less the other, on the same resamples of images.
    n_choose, n_test : int
        Images.
    examples : list of (int, dict of str to np.ndarray)
        Some test images, and the map of each method [height, width].
    guesses : np.ndarray
        [image, label] what each image of the sample is taken for.
    """

    outcomes: tuple[Outcome, ...]
    gains: dict[str, dict[str, Interval]]
    n_choose: int
    n_test: int
    examples: list[tuple[int, dict[str, np.ndarray]]]
    guesses: np.ndarray


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


def queries_of(judge: Judge, guesses: np.ndarray) -> Tensor:
    """Return what is looked for in each image, [image, output]: the classes that it is taken for, all labels added.

    Each class embedding less the mean of its label's, so that what all classes share does not count.
    """
    found = []
    for number, classes in enumerate(judge.classes):
        centred = classes - classes.mean(0)
        found.append(centred[torch.from_numpy(guesses[:, number])])
    return F.normalize(torch.stack(found).sum(0), dim=-1)


def segment(
    context: Context,
    subject: VisionSubject,
    sample: Sample,
    judge: Judge,
    embeddings: Tensor,
    neurons: Mapping[int, Neurons],
) -> Segmentation:
    """Make maps of images that have masks, choose variants and thresholds on some, and measure on the others.

    Parameters
    ----------
    context, subject, sample
        Of the run.
    judge : Judge
        Says what each image is taken for: nobody tells the true class.
    embeddings : Tensor
        [image, output] of all images.
    neurons : mapping of int to Neurons
        By layer.
    """
    counts = context.config.segmentation.neurons
    maker = MapMaker(subject, neurons, [counts] if isinstance(counts, int) else counts)
    guesses = judge.guesses(embeddings)
    queries = queries_of(judge, guesses)
    variants = maker.variants
    half = max(1, context.config.segmentation.images // 2)
    images = np.concatenate([sample.at(part)[:half] for part in (CHOOSE, TEST)])

    def of_batch(batch: Batch, images: np.ndarray) -> tuple[Arrays, Arrays]:
        maps = maker(batch, queries[torch.from_numpy(images)])
        grid = [size // patch for size, patch in zip(batch.inputs.shape[2:], subject.arch.patch_size, strict=True)]
        size = tuple(int(n) for n in batch.inputs.shape[2:])
        counts = np.zeros((len(images), len(variants), len(THRESHOLDS), 2, 2), np.int64)
        precision = np.zeros((len(images), len(variants)))
        for row, image in enumerate(images):
            mask = true_mask(subject, sample, int(image))
            if mask is None:
                counts[row] = -1
                continue
            for column, variant in enumerate(variants):
                values = enlarged(maps[variant][row], grid, subject.arch.patch_size, size)
                counts[row, column] = overlaps(values, mask)
                precision[row, column] = average_precision(values, mask)
        return {"counts": counts, "precision": precision}, {}

    held = run_in_chunks(context, subject, sample, images, "segmentation", of_batch, at_once=32)
    counts_, precision = held.rows("counts"), held.rows("precision")
    has = counts_[:, 0, 0, 0, 0] >= 0
    choose, test = (np.isin(images, sample.at(part)) & has for part in (CHOOSE, TEST))
    if not choose.any() or not test.any():
        return Segmentation((), {}, int(choose.sum()), int(test.sum()), [], guesses)
    weights = bootstrap_weights(int(test.sum()), context.config.draws, context.rng("segmented images"))
    once = np.ones((1, int(test.sum())))
    outcomes, draws = [], {}
    for method in METHODS:
        columns = [i for i, variant in enumerate(variants) if variant.method == method]
        scores = np.array(
            [
                [mean_iou(counts_[choose][:, c, t], np.ones((1, int(choose.sum()))))[0] for t in range(len(THRESHOLDS))]
                for c in columns
            ]
        )
        best, at = np.unravel_index(int(scores.argmax()), scores.shape)
        column = columns[int(best)]

        def measures(w: np.ndarray, column: int = column, at: int = int(at)) -> dict[str, np.ndarray]:
            tested = counts_[test][:, column, at]
            return {
                "mIoU": mean_iou(tested, w),
                "pixel accuracy": pixel_accuracy(tested, w),
                "mAP": w @ precision[test][:, column] / w.sum(1),
            }

        values, draws[method] = measures(once), measures(weights)
        mean = counts_[test][:, column, MEAN]
        outcomes.append(
            Outcome(
                method,
                variants[column].name,
                THRESHOLDS[int(at)],
                {m: Interval(float(values[m][0]), *percentile_interval(draws[method][m])) for m in MEASURES},
                Interval(float(mean_iou(mean, once)[0]), *percentile_interval(mean_iou(mean, weights))),
            )
        )
    first = outcomes[0]
    gains = {
        other.method: {
            m: Interval(
                first.values[m].value - other.values[m].value,
                *percentile_interval(draws[first.method][m] - draws[other.method][m]),
            )
            for m in MEASURES
        }
        for other in outcomes[1:]
    }
    shown = images[test][:EXAMPLES]
    examples = example_maps(subject, sample, maker, queries, shown, {o.method: o.variant for o in outcomes})
    return Segmentation(tuple(outcomes), gains, int(choose.sum()), int(test.sum()), examples, guesses)


EXAMPLES = 8


def example_maps(
    subject: VisionSubject,
    sample: Sample,
    maker: MapMaker,
    queries: Tensor,
    images: np.ndarray,
    chosen: Mapping[str, str],
) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Return the maps of some images by each method's chosen variant, at the size of the subject's pixels."""
    batch = subject.batch([sample.picture(int(image)) for image in images])
    maps = maker(batch, queries[torch.from_numpy(images)])
    size = tuple(int(n) for n in batch.inputs.shape[2:])
    patch = subject.arch.patch_size
    grid = [n // p for n, p in zip(size, patch, strict=True)]
    return [
        (int(image), {m: enlarged(maps[Variant(m, name)][row], grid, patch, size) for m, name in chosen.items()})
        for row, image in enumerate(images)
    ]


def true_mask(subject: VisionSubject, sample: Sample, image: int) -> np.ndarray | None:
    """Return where the object is, bool [height, width] of the subject's pixels; None if unknown or not in part."""
    mask = sample.mask(image)
    if mask is None:
        return None
    seen = seen_mask(subject, mask)
    return seen if seen.any() and not seen.all() else None


def enlarged(values: np.ndarray, grid: list[int], patch: tuple[int, int], size: tuple[int, ...]) -> np.ndarray:
    """Enlarge a map [patch] to pixels [height, width], bilinearly; the edge that no patch sees repeats the last."""
    image = torch.from_numpy(values).reshape(1, 1, *grid)
    seen = tuple(n * p for n, p in zip(grid, patch, strict=True))
    pixels = F.interpolate(image, size=seen, mode="bilinear", align_corners=False)
    lacking = [n - s for n, s in zip(size, seen, strict=True)]
    return np.asarray(F.pad(pixels, (0, lacking[1], 0, lacking[0]), mode="replicate")[0, 0].numpy())


def overlaps(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Count pixels that a map puts into the object or not, at each threshold.

    Returns
    -------
    np.ndarray
        [threshold, 2, 2] pixels, by what the map says and by what is true.
    """
    scaled = (values - values.mean()) / max(float(values.std()), 1e-12)
    said = scaled[None] > np.array(THRESHOLDS)[:, None, None]
    both = (said & mask).sum((1, 2))
    n_said, n_true = said.sum((1, 2)), mask.sum()
    return np.stack(
        [np.stack([mask.size - n_said - n_true + both, n_true - both], 1), np.stack([n_said - both, both], 1)], 1
    )


def mean_iou(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return intersection over union of object and background, summed over images, averaged over the two, [draw].

    counts [image, 2, 2] from `overlaps`, weights [draw, image].
    """
    total = np.einsum("di,ist->dst", weights, counts)
    same = np.stack([total[:, 0, 0], total[:, 1, 1]], 1)
    other = (total[:, 0, 1] + total[:, 1, 0])[:, None]
    return np.asarray((same / (same + other)).mean(1))


def pixel_accuracy(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of pixels that are told right, [draw]."""
    total = np.einsum("di,ist->dst", weights, counts)
    return np.asarray((total[:, 0, 0] + total[:, 1, 1]) / total.sum((1, 2)))


def average_precision(values: np.ndarray, mask: np.ndarray) -> float:
    """Return average precision over pixels, of the object by the map and of the rest by its negative, averaged."""
    order = np.argsort(-values, axis=None, kind="stable")
    inside = mask.ravel()[order]
    return (precision_of(inside) + precision_of(~inside[::-1])) / 2


def precision_of(found: np.ndarray) -> float:
    """Return the mean, over what was to be found, of precision where it was found; found [pixel], best first."""
    return float((found.cumsum() / np.arange(1, len(found) + 1))[found].mean())
