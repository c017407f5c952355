"""The dataset ``shapes``: rendered scenes of one, two or four objects, with what is in them and where."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import parse_qsl

import numpy as np
import platformdirs
import xxhash
from numpy.typing import NDArray

from workbench.datasets.protocol import Dataset, Description, Document, LabelSpec, PixelLabel
from workbench.datasets.shapes_captions import class_prompts, descriptions, phrase
from workbench.datasets.shapes_renderer import render
from workbench.datasets.shapes_scenes import (
    ATTRIBUTES,
    GRID,
    MAIN,
    Scene,
    combinations,
    draw_crowd,
    draw_scene,
    draw_scenes,
    is_held_out,
)
from workbench.errors import UserError, nearest

Objects = Literal["one", "two", "four"]

VERSION = 3  # of what a seed draws and of how it is rendered: raise it when either changes
HELD_OUT = "zoo:shapes-clip was never shown this shape in this colour and texture"
N_SEVERAL = 1000


def _specs(suffix: str = "", of: str = "the object") -> list[LabelSpec]:
    return [
        LabelSpec(f"{name}{suffix}", "scenes", "document", "categories", names, description=f"{name} of {of}")
        for name, names in ATTRIBUTES.items()
    ]


ORDINALS = "first", "second", "third", "fourth"


def _at_patches(objects: Objects) -> tuple[LabelSpec, ...]:
    """Return the labels of patches: which object most of a patch shows, and that object's attributes."""
    names = ("background", *ORDINALS[: 4 if objects == "four" else 2])
    which = LabelSpec("object", "patches", "row", "categories", names, description="what most of the patch shows")
    return which, *(
        LabelSpec(
            f"{name}_here", "patches", "row", "categories", ATTRIBUTES[name], description=f"{name} of that object"
        )
        for name in MAIN[:3]
    )


def _held_out(description: str) -> LabelSpec:
    return LabelSpec("held_out", "scenes", "document", "binary", description=description)


def _of_several(objects: Objects) -> tuple[LabelSpec, ...]:
    """Return the labels of scenes of several objects."""
    each = [
        spec
        for i, which in enumerate(ORDINALS[: COUNT[objects]])
        for spec in _specs(f"_{i + 1}", f"the {which} object")
    ]
    return *each, _held_out(f"of an object at least: {HELD_OUT}"), *_at_patches(objects)


COUNT: dict[Objects, int] = {"one": 1, "two": 2, "four": 4}
SPECS: dict[Objects, tuple[LabelSpec, ...]] = {
    "one": (*_specs(), _held_out(HELD_OUT), *_at_patches("one")),
    "two": _of_several("two"),
    "four": _of_several("four"),
}


class Shapes(Dataset):
    """Scenes of `zoo:shapes-clip`, rendered when they are needed; none is among those that it was trained on.

    With one object: every shape, colour and texture at each of the nine places, once (1728 documents, 216 of them of
    combinations that were held out). With two: `n_scenes` of two objects of any combinations, which differ in shape
    and in colour. With four: an object in each corner, of four shapes and four colours; `zoo:shapes-clip` saw no scene
    like these. Sizes, jitter and backgrounds are drawn.

    Fields of a document: ``shape``, ``colour``, ``texture``, ``position``, ``size`` (words; with two objects
    ``shape_1``, ``shape_2``, ...), ``held_out``, a ``caption`` and its ``index``. Labels of patches (``object``,
    ``shape_here``, ``colour_here``, ``texture_here``) say which object most of a patch shows.

    Parameters
    ----------
    objects : "one", "two" or "four"
        In each scene.
    seed : int
        Of the order of the documents and of what is drawn.
    n_scenes : int, optional
        With several objects alone: how many; 1000 if not given.
    folder : Path, optional
        Where pictures are kept; a folder of the user's cache if not given.

    Raises
    ------
    UserError
        For a number below 0 or 1, or of scenes with one object.
    """

    modality = "vision"

    def __init__(
        self, objects: Objects = "one", seed: int = 0, n_scenes: int | None = None, folder: Path | None = None
    ) -> None:
        if objects not in get_args(Objects):
            raise UserError(f"scenes of {objects!r} objects: must be one, two or four")
        if seed < 0:
            raise UserError(f"seed {seed}: must be 0 or more")
        self.every = [(combination, place) for combination in combinations() for place in range(GRID * GRID)]
        if objects == "one" and n_scenes not in (None, len(self.every)):
            raise UserError(f"{n_scenes} scenes of one object: there are {len(self.every)}, one of each kind")
        if n_scenes is not None and n_scenes < 1:
            raise UserError(f"{n_scenes} scenes: must be at least 1")
        self.objects, self.seed, self.label_specs = objects, seed, SPECS[objects]
        self.n_scenes = len(self.every) if objects == "one" else n_scenes or N_SEVERAL
        self.address = "shapes" if objects == "one" else f"shapes:{objects}"
        self.folder = folder or platformdirs.user_cache_path("interp-workbench") / "shapes" / self.fingerprint()
        self.order = np.random.default_rng([seed, 0]).permutation(len(self.every))
        self.scene = lru_cache(maxsize=None)(self._scene)

    def __len__(self) -> int:
        """See `Dataset`."""
        return self.n_scenes

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return xxhash.xxh3_128_hexdigest(repr((VERSION, self.objects, self.seed, self.n_scenes)).encode())

    def _scene(self, index: int) -> Scene:
        """Return the scene at a position, 0 <= index < len(self)."""
        rng = np.random.default_rng([self.seed, 1 + get_args(Objects).index(self.objects), index])
        if self.objects == "one":
            return draw_scene(rng, [self.every[self.order[index]]])
        if self.objects == "two":
            return next(draw_scenes(rng, 1, combinations(), two_share=1.0))
        return draw_crowd(rng, combinations())

    def document(self, index: int) -> Document:
        """See `Dataset.document`; renders the picture if it is not in the folder yet."""
        scene = self.scene(index)
        words = [thing.words for thing in scene.things]
        said = [phrase(each, "colour first") for each in words]
        name = "-and-".join("-".join(each[a] for a in ("colour", "texture", "shape", "position")) for each in words)
        name = f"{name.replace(' ', '-')}.png" if self.objects == "one" else f"{index:04d}-{name.replace(' ', '-')}.png"
        suffixes = [""] if self.objects == "one" else [f"_{i + 1}" for i in range(len(words))]
        fields: dict[str, str | int | float | bool] = {"index": index}
        for each, suffix in zip(words, suffixes, strict=True):
            fields |= {f"{attribute}{suffix}": word for attribute, word in each.items()}
        fields["held_out"] = any(is_held_out(thing.combination) for thing in scene.things)
        fields["caption"] = " and ".join(said)
        path = self.folder / name
        if not path.exists():
            write_png(render(scene)[0], path)
        return Document(name, image=path, fields=fields)

    def labels(self, document: Document) -> Mapping[str, PixelLabel | float | None]:
        """See `Dataset.labels`."""
        index = int(document.fields["index"])
        found: dict[str, PixelLabel | float | None] = {"object": PixelLabel(self.mask(index).astype(np.float64))}
        for name in MAIN[:3]:
            values = self.attribute_mask(index, name)
            found[f"{name}_here"] = PixelLabel(np.where(values < 0, np.nan, values))
        for spec in self.label_specs:
            if spec.level == "document":
                value = document.fields[spec.name]
                found[spec.name] = float(spec.categories.index(str(value)) if spec.categories else value)
        return {spec.name: found[spec.name] for spec in self.label_specs}

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return the picture of a document, uint8 [height, width, 3]: the pixels of its image file."""
        return render(self.scene(index))[0]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return where the objects of a document are, uint8 [height, width]: 0 background, 1, 2, ... the objects."""
        return render(self.scene(index))[1]

    def class_prompts(self, label: str) -> Mapping[str, Sequence[str]]:
        """See `Dataset.class_prompts`."""
        attribute, _, which = label.rpartition("_")
        attribute = attribute if which in (*"1234", "here") else label
        return class_prompts(attribute) if attribute in ATTRIBUTES else {}

    def descriptions(self) -> Sequence[Description]:
        """See `Dataset.descriptions`."""
        return descriptions()

    def attribute_mask(self, index: int, attribute: str) -> NDArray[np.int64]:
        """Return each pixel's value of an attribute, int64 [height, width]: an index into its names, -1 background.

        Parameters
        ----------
        index : int
            Of the document.
        attribute : str
            ``shape``, ``colour``, ``texture``, ``position`` or ``size``.

        Raises
        ------
        UserError
            For another attribute.
        """
        if attribute not in ATTRIBUTES:
            raise UserError(f"no attribute {attribute!r}; nearest: {nearest(attribute, ATTRIBUTES)}")
        values = [-1, *(getattr(thing, attribute) for thing in self.scene(index).things)]
        found: NDArray[np.int64] = np.array(values, np.int64)[self.mask(index)]
        return found


def write_png(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture, uint8 [height, width, 3], under its name by one rename; processes may write it at once."""
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
        Path(part).replace(path)
    except OSError as error:
        raise UserError(f"{path.parent}: pictures cannot be kept here ({error.strerror})") from error


def load_shapes(rest: str) -> Shapes:
    """Open ``shapes``, ``shapes:two``, ``shapes:four``, with options: ``shapes:two?seed=1&scenes=500``."""
    objects, _, options = rest.partition("?")
    values = dict(parse_qsl(options, keep_blank_values=True))
    if objects not in ("", *get_args(Objects)):
        raise UserError(f"dataset 'shapes:{rest}': write shapes, shapes:two or shapes:four (shapes:two?seed=1)")
    known = {"seed", "scenes"}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"dataset 'shapes:{rest}': there is no option {name!r}; nearest: {nearest(name, known)}")
        if not value.isdecimal():
            raise UserError(f"dataset 'shapes:{rest}': {name} {value!r} must be a whole number")
    n_scenes = int(values["scenes"]) if "scenes" in values else None
    kind: Objects = "two" if objects == "two" else "four" if objects == "four" else "one"
    return Shapes(kind, int(values.get("seed", 0)), n_scenes)
