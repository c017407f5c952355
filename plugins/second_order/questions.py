"""What is looked for in images that have masks: all that an image is taken for at once, or each class by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workbench.datasets.protocol import Dataset, LabelSpec, PixelLabel
from workbench.errors import UserError
from workbench.plugins.second_order.judging import Judge
from workbench.plugins.second_order.sample import CHOOSE, TEST, Sample, seen_mask
from workbench.plugins.second_order.texts import embed_texts
from workbench.subjects.protocol import Subject
from workbench.subjects.vit_subject import VisionSubject

if TYPE_CHECKING:
    from workbench.context import Context

WHOLE, CLASSES = "all at once", "class by class"
IMAGES_KEPT = 64  # two batches
CROWDED = {"shapes": "shapes:four"}  # where classes are asked for, of a dataset that has one object to an image


@dataclass(frozen=True)
class Question:
    """Queries on images, each with the mask that is right.

    Attributes
    ----------
    name : str
        `WHOLE` or `CLASSES`.
    sample : Sample
        The images, of which the parts to choose by and to test on are used.
    labels : tuple of str
        Queries of one label choose their maps together.
    image, label, query : np.ndarray
        Of each thing that is asked: an image of the sample, one of `labels`, a row of `queries`.
    queries : Tensor
        [query, output] of length 1.
    said : tuple of str
        What each query names.
    truth : function
        From the number of a thing that is asked: a picture, not 0 where it is; None if nobody knows.
    """

    name: str
    sample: Sample
    labels: tuple[str, ...]
    image: np.ndarray
    label: np.ndarray
    query: np.ndarray
    queries: Tensor
    said: tuple[str, ...]
    truth: Callable[[int], Image.Image | None]

    def images(self, part: int) -> np.ndarray:
        """Return the images of a part of the sample in which anything is asked for."""
        return np.intersect1d(self.image, self.sample.at(part))

    def mask(self, subject: VisionSubject, at: int) -> np.ndarray | None:
        """Return where the thing asked for is, bool [height, width] of the subject's pixels.

        None if nobody knows, and if it is nowhere or everywhere: nothing can then be told apart.
        """
        found = self.truth(at)
        if found is None:
            return None
        seen = seen_mask(subject, found)
        return seen if seen.any() and not seen.all() else None


def centred(classes: Tensor) -> Tensor:
    """Return class embeddings less their mean, [class, output], so that what all classes share does not count."""
    return classes - classes.mean(0)


def whole_question(context: Context, sample: Sample, judge: Judge, embeddings: Tensor) -> Question:
    """Ask each image for the classes that it is taken for, all labels added; nobody tells the true ones.

    Parameters
    ----------
    context, sample
        Of the run.
    judge : Judge
        Says what each image is taken for.
    embeddings : Tensor
        [image, output] of all images.
    """
    guesses = judge.guesses(embeddings)
    of_labels = [centred(each)[torch.from_numpy(guesses[:, i])] for i, each in enumerate(judge.classes)]
    queries = F.normalize(torch.stack(of_labels).sum(0), dim=-1)
    half = max(1, context.config.segmentation.images // 2)
    images = np.concatenate([sample.at(part)[:half] for part in (CHOOSE, TEST)])
    said = tuple(", ".join(sample.concepts[i][code].category for i, code in enumerate(codes)) for codes in guesses)
    label = np.zeros(len(images), int)
    return Question(
        WHOLE, sample, ("everything",), images, label, images, queries, said, lambda at: sample.mask(int(images[at]))
    )


def class_question(context: Context, tower: Subject, sample: Sample) -> Question | None:
    """Ask images for each class that some of their pixels have, one at a time.

    Parameters
    ----------
    context, sample
        Of the run.
    tower : Subject
        Embeds the classes' prompts.

    Returns
    -------
    Question or None
        None where no label of pixels has categories with prompts.

    Raises
    ------
    UserError
        If the option `segmentation.data` names a dataset without such labels.
    """
    wanted = context.config.segmentation.data or CROWDED.get(sample.dataset.address)
    dataset = context.loading.data(wanted) if wanted else sample.dataset
    specs = [s for s in dataset.label_specs if s.level == "row" and s.categories and dataset.class_prompts(s.name)]
    if not specs or dataset.modality != "vision":
        if wanted:
            raise UserError(f"segmentation.data={wanted}: has no labels of pixels whose categories have prompts")
        return None
    half = max(1, context.config.segmentation.images // 2)
    order = context.rng("images of classes").permutation(len(dataset))[: 2 * half]
    part = np.where(np.arange(len(order)) < len(order) // 2, CHOOSE, TEST)
    held = Sample(dataset, order, part, (), (), np.zeros((len(order), 0), int))
    values = pixel_values(held)
    first = np.cumsum([0, *(len(spec.categories) for spec in specs)])
    asked = [
        (image, number, first[number] + code)
        for image in range(len(held))
        for number, spec in enumerate(specs)
        for code in present(values(image, spec))
    ]
    image, label, query = np.array(asked, int).reshape(-1, 3).T

    def truth(at: int) -> Image.Image:
        spec = specs[label[at]]
        return Image.fromarray((values(int(image[at]), spec) == query[at] - first[label[at]]).astype(np.uint8))

    said = tuple(category for spec in specs for category in spec.categories)
    queries = torch.cat([class_embeddings(context, tower, dataset, spec) for spec in specs])
    return Question(CLASSES, held, tuple(spec.name for spec in specs), image, label, query, queries, said, truth)


def pixel_values(sample: Sample) -> Callable[[int, LabelSpec], np.ndarray]:
    """Return what gives a label's value on each pixel of an image, NaN where there is none, [height, width].

    Many things are asked of an image, and its labels may have to be drawn: those of the last images are kept.
    """

    @functools.lru_cache(maxsize=IMAGES_KEPT)
    def labels(image: int) -> Mapping[str, Any]:
        return sample.dataset.labels(sample.dataset.document(int(sample.indices[image])))

    def values(image: int, spec: LabelSpec) -> np.ndarray:
        value = labels(image)[spec.name]
        assert isinstance(value, PixelLabel)
        return value.values

    return values


def present(values: np.ndarray) -> list[int]:
    """Return the categories that some pixels have, ascending."""
    return [int(value) for value in np.unique(values[~np.isnan(values)])]


def class_embeddings(context: Context, tower: Subject, dataset: Dataset, spec: LabelSpec) -> Tensor:
    """Embed a label's categories, [category, output] of length 1: the mean over prompts, less that over categories."""
    prompts = dataset.class_prompts(spec.name)
    flat = [prompt for category in spec.categories for prompt in prompts[category]]
    rows = embed_texts(context, tower, flat, spec.name)
    ends = np.cumsum([len(prompts[category]) for category in spec.categories])[:-1]
    means = torch.stack([each.mean(0) for each in rows.tensor_split([int(end) for end in ends])])
    return F.normalize(centred(F.normalize(means, dim=-1)), dim=-1)
