"""Zero-shot classification: class embeddings, guesses, and how many of them are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.sample import Sample
from workbench.probes import bootstrap_weights
from workbench.probes.statistics import Interval, percentile_interval


@dataclass(frozen=True)
class Judge:
    """Classes of each label as embeddings, and the truth.

    Attributes
    ----------
    labels : tuple of str
        Labels judged.
    classes : tuple of Tensor
        [class, output] of each label, of length 1.
    truth : np.ndarray
        [image, label]; -1 where an image has none.
    known : bool
        False where nobody knows the truth: it is then what the subject as it is says, and accuracy is agreement.
    """

    labels: tuple[str, ...]
    classes: tuple[Tensor, ...]
    truth: np.ndarray
    known: bool

    def guesses(self, embeddings: Tensor) -> np.ndarray:
        """Return the class of each label that is nearest, embeddings [image, output] -> [image, label]."""
        found = [(embeddings.to(each) @ each.T).argmax(1) for each in self.classes]
        return np.asarray(torch.stack(found, dim=1).cpu().numpy())

    def right(self, embeddings: Tensor, images: np.ndarray) -> np.ndarray:
        """Return [image, label], 1 where a guess is right, 0 where it is not, NaN where nothing is known."""
        truth = self.truth[images]
        return np.where(truth < 0, np.nan, (self.guesses(embeddings) == truth).astype(float))


def make_judge(sample: Sample, embed_prompts: Tensor | None, embeddings: Tensor) -> Judge | None:
    """Make a judge.

    Parameters
    ----------
    sample : Sample
        With concepts of each label.
    embed_prompts : Tensor, optional
        [prompt, output] of all concepts' prompts, side by side; None without a text tower.
    embeddings : Tensor
        [image, output] of the subject as it is.

    Returns
    -------
    Judge or None
        None if there are no classes or no text tower.
    """
    if embed_prompts is None or not sample.concepts:
        return None
    classes, start = [], 0
    for concepts in sample.concepts:
        rows = []
        for concept in concepts:
            rows.append(embed_prompts[start : start + len(concept.prompts)].mean(0))
            start += len(concept.prompts)
        classes.append(torch.nn.functional.normalize(torch.stack(rows), dim=-1))
    known = bool((sample.codes >= 0).any())
    judge = Judge(sample.labels, tuple(classes), sample.codes, known)
    return judge if known else Judge(judge.labels, judge.classes, judge.guesses(embeddings), known)


class Scores:
    """Accuracies over the same resamples of images, so that differences are paired.

    Parameters
    ----------
    n_images, n_draws : int
        Of the resamples.
    rng : numpy Generator
        Draws them.
    """

    def __init__(self, n_images: int, n_draws: int, rng: np.random.Generator) -> None:
        self.weights = bootstrap_weights(n_images, n_draws, rng)

    def mean(self, right: np.ndarray) -> Interval:
        """Return the share of known guesses that are right, right [image, label], with its interval over images."""
        known = ~np.isnan(right)
        return self.ratio(np.nansum(right, axis=1), known.sum(axis=1))

    def fall(self, before: np.ndarray, after: np.ndarray) -> Interval:
        """Return by how much the share falls, paired."""
        known = ~np.isnan(before)
        return self.ratio(np.nansum(before - after, axis=1), known.sum(axis=1))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Interval:
        """Return a ratio of sums over images, [image] each, with its interval."""
        if not below.sum():
            return Interval(float("nan"), float("nan"), float("nan"))
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (self.weights @ above) / (self.weights @ below)
        return Interval(float(above.sum() / below.sum()), *percentile_interval(draws))
