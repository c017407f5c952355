"""Which images, in which part of the split, with which labels, class names and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from workbench.datasets.protocol import Dataset, LabelSpec
from workbench.errors import UserError, nearest
from workbench.subjects.images import open_image

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.subjects.vit_subject import VisionSubject

SHARES = (0.5, 0.2, 0.3)  # of the images: fitting, choosing, testing
FIT, CHOOSE, TEST = range(3)
LEAST_IMAGES = 20
NEAREST = 0  # Pillow's number of the filter


@dataclass(frozen=True)
class Concept:
    """A value of a label: ``colour=red``.

    Attributes
    ----------
    label, category : str
        What it is.
    prompts : tuple of str
        Texts that name it; its class embedding is the mean of theirs.
    """

    label: str
    category: str
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        """For tables."""
        return self.category if self.label in ("", "folder") else f"{self.label}={self.category}"


@dataclass(frozen=True)
class Sample:
    """The images of a run.

    Attributes
    ----------
    dataset : Dataset
        Where they come from.
    indices : np.ndarray
        [image] document of each, in the dataset.
    part : np.ndarray
        [image] 0 fit, 1 choose, 2 test.
    labels : tuple of str
        Judged ones.
    concepts : tuple of tuple of Concept
        Of each label.
    codes : np.ndarray
        [image, label] category of each image; -1 where it has none.
    masks : Path, optional
        Folder of masks.
    """

    dataset: Dataset
    indices: np.ndarray
    part: np.ndarray
    labels: tuple[str, ...]
    concepts: tuple[tuple[Concept, ...], ...]
    codes: np.ndarray
    masks: Path | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, *parts: int) -> np.ndarray:
        """Return the images of some parts, ascending."""
        return np.flatnonzero(np.isin(self.part, parts))

    @cached_property
    def all_concepts(self) -> tuple[Concept, ...]:
        """Concepts of all labels, side by side."""
        return tuple(concept for concepts in self.concepts for concept in concepts)

    def has_concept(self) -> np.ndarray:
        """Return [image, concept], 1 where an image has it, 0 where it does not, NaN where the label is undefined."""
        columns = []
        for number, concepts in enumerate(self.concepts):
            codes = self.codes[:, number]
            for code in range(len(concepts)):
                columns.append(np.where(codes < 0, np.nan, (codes == code).astype(float)))
        return np.stack(columns, axis=1) if columns else np.zeros((len(self), 0))

    def name(self, image: int) -> str:
        """Return the name of an image's document."""
        return self.dataset.document(int(self.indices[image])).name

    def picture(self, image: int) -> Any:
        """Return what the subject's `batch` takes for an image."""
        document = self.dataset.document(int(self.indices[image]))
        if document.image is None:
            raise UserError(f"{self.dataset.address}: document {document.name!r} is no image")
        return document.image

    @property
    def has_masks(self) -> bool:
        """True if there are masks, of the first image at least or in a folder."""
        return self.masks is not None or self.mask(0) is not None

    def mask(self, image: int) -> Image.Image | None:
        """Return where the object of an image is (not 0), at the image's own size; None where nothing is known."""
        index = int(self.indices[image])
        if self.masks is None:
            found = self.dataset.mask(index)
            return None if found is None else Image.fromarray(np.asarray(found != 0).astype(np.uint8))
        file = (self.masks / self.dataset.document(index).name).with_suffix(".png")
        return open_image(file) if file.is_file() else None


def shown_pixels(subject: VisionSubject, picture: Any) -> np.ndarray:
    """Return an image as the subject sees it, for people: float [height, width, 3] from 0 to 1."""
    processor = replace(subject.processor, n_channels=3, rescale=1 / 255, mean=None, std=None)
    image = open_image(picture) if isinstance(picture, (str, Path)) else picture
    return np.asarray(processor(image).permute(1, 2, 0).clamp(0, 1).numpy())


def seen_mask(subject: VisionSubject, mask: Image.Image) -> np.ndarray:
    """Return a mask as the subject sees the image: resized and cropped alike, bool [height, width]."""
    geometry = replace(
        subject.processor, n_channels=1, resample=NEAREST, rescale=None, mean=None, std=None, resize_in="bytes"
    )
    plain = Image.fromarray(((np.asarray(mask.convert("I")) != 0) * 255).astype(np.uint8))
    return np.asarray(geometry(plain)[0].numpy() > 127)


def draw_sample(context: Context) -> Sample:
    """Draw the images of a run, split them, and read their labels.

    Raises
    ------
    UserError
        If the dataset has no images, too few, or not the labels, classes or masks that the options name.
    """
    config, dataset = context.config, context.data()
    if dataset.modality != "vision":
        raise UserError(f"{dataset.address} holds texts: second-order needs images, for example --data photos/")
    n = min(config.images, len(dataset))
    if n < LEAST_IMAGES:
        raise UserError(f"{dataset.address}: {n} images are too few, at least {LEAST_IMAGES} are needed")
    rng = context.rng("images")
    indices = rng.permutation(len(dataset))[:n]
    bounds = np.round(np.cumsum(SHARES) * n).astype(int)
    part = np.searchsorted(bounds, np.arange(n), side="right").clip(max=TEST)
    specs = judged_labels(dataset, config.label)
    names = class_names(config.classes) if config.classes else None
    concepts = [concepts_of(dataset, spec, names, config.template) for spec in specs]
    if names is not None and not specs:
        concepts = [tuple(Concept("", name, (filled(config.template, name),)) for _, name in names)]
    codes = np.full((n, len(concepts)), -1)
    if specs:
        for row, index in enumerate(indices):
            values = dataset.labels(dataset.document(int(index)))
            for column, spec in enumerate(specs):
                value = values.get(spec.name)
                if isinstance(value, (int, float)) and not np.isnan(value):
                    codes[row, column] = int(value)
    masks = None if config.masks is None else Path(config.masks).expanduser()
    if masks is not None and not masks.is_dir():
        raise UserError(f"masks={config.masks}: there is no such folder")
    labels = tuple(spec.name for spec in specs) or (("",) if concepts else ())
    return Sample(dataset, indices, part, labels, tuple(concepts), codes, masks)


def judged_labels(dataset: Dataset, wanted: str | Sequence[str] | None) -> list[LabelSpec]:
    """Return the labels of whole images that classes are named by: those asked for, or all categories."""
    fitting = [spec for spec in dataset.label_specs if spec.level == "document" and len(spec.categories) > 1]
    if wanted is None:
        return fitting
    found = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        match = [spec for spec in fitting if spec.name == name]
        if not match:
            near = nearest(name, [spec.name for spec in fitting])
            raise UserError(
                f"label={name}: must be a label of whole images with categories; nearest of {dataset.address}: "
                f"{near or 'there is none'}"
            )
        found += match
    return found


def class_names(file: str) -> list[tuple[str, str]]:
    """Read a file of class names: a name a line, or a category, a tab and the name. Returns (category or "", name)."""
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes={file}: cannot be read as text: {error}") from None
    names = [(a.strip(), b.strip()) if tab else ("", a) for a, tab, b in (line.partition("\t") for line in lines)]
    if len({bool(category) for category, _ in names}) > 1 or len(names) < 2:
        raise UserError(f"classes={file}: give two classes or more, a name a line, or each as category, tab, name")
    return names


def concepts_of(
    dataset: Dataset, spec: LabelSpec, names: Sequence[tuple[str, str]] | None, template: str
) -> tuple[Concept, ...]:
    """Return the concepts of a label: named by a file, by the dataset's own prompts, or by its categories."""
    if names is not None:
        by_category = dict(names) if names[0][0] else dict(zip(spec.categories, (n for _, n in names), strict=False))
        lacking = [category for category in spec.categories if category not in by_category]
        if lacking or (not names[0][0] and len(names) != len(spec.categories)):
            raise UserError(
                f"classes: {len(names)} names do not fit the {len(spec.categories)} categories of label {spec.name!r}"
                + (f" ({lacking[0]!r} has none)" if lacking else "")
            )
        return tuple(
            Concept(spec.name, by_category[each], (filled(template, by_category[each]),)) for each in spec.categories
        )
    own = dataset.class_prompts(spec.name)
    return tuple(
        Concept(spec.name, each, tuple(own.get(each) or (filled(template, readable(each)),)))
        for each in spec.categories
    )


def readable(category: str) -> str:
    """Turn a folder's or a category's name into words."""
    return category.rsplit("/", 1)[-1].replace("_", " ").replace("-", " ")


def filled(template: str, name: str) -> str:
    """Put a class name into a template that has a pair of braces."""
    return template.replace("{}", name)
