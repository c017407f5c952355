"""From image files to pixels, with Pillow alone: what a checkpoint's image processor does, step by step."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from PIL import Image, ImageOps
from torch import Tensor

from workbench.errors import UserError

Size = tuple[int, int]

MEAN_HALF = (0.5, 0.5, 0.5)
MEAN_IMAGENET, STD_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_CLIP, STD_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, as in the configuration files

SQUARE, SHORTEST = {"height": 224, "width": 224}, {"shortest_edge": 224}
STEPS = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
WHOLE = {**STEPS, "do_center_crop": False, "size": SQUARE}
KINDS: dict[str, dict[str, Any]] = {  # what a processor's class adds to its file
    "CLIP": {**STEPS, "size": SHORTEST, "crop_size": SQUARE, "resample": BICUBIC},
    "Bit": {**STEPS, "size": SHORTEST, "crop_size": SQUARE, "resample": BICUBIC},
    "DeiT": {**STEPS, "size": {"height": 256, "width": 256}, "crop_size": SQUARE, "resample": BICUBIC},
    "ViT": {**WHOLE, "resample": BILINEAR},
    "DINOv3ViT": {**WHOLE, "resample": BILINEAR},
}
STATISTICS = {
    "CLIP": (MEAN_CLIP, STD_CLIP),
    "Bit": (MEAN_CLIP, STD_CLIP),
    "DeiT": (MEAN_HALF, MEAN_HALF),
    "ViT": (MEAN_HALF, MEAN_HALF),
    "DINOv3ViT": (MEAN_IMAGENET, STD_IMAGENET),
}


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, centre crop, rescale, normalise: equal to the library's Pillow processors, bit by bit.

    Attributes
    ----------
    n_channels : int
        3 (images are turned into RGB) or 1 (into grey).
    resize : (int, int) or int, optional
        Height and width in pixels, or the length of the shorter edge; None leaves the size.
    resample : int
        Pillow's number of the filter.
    crop : (int, int), optional
        Height and width cut out of the middle; what the image lacks is black.
    rescale : float, optional
        What pixel values 0 to 255 are multiplied by.
    mean, std : tuple of float, optional
        Per channel, subtracted and divided by.
    resize_in : "bytes" or "floats"
        Resize before rescaling, or after it, as DINOv3's processor does.
    """

    n_channels: int
    resize: Size | int | None
    resample: int
    crop: Size | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resize_in: Literal["bytes", "floats"] = "bytes"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], n_channels: int, model: str) -> ImageProcessor:
        """Read a ``preprocessor_config.json``.

        Parameters
        ----------
        settings : mapping
            The file's content.
        n_channels : int
            Of the model's pixels.
        model : str
            Whose processor it is, for messages.

        Raises
        ------
        UserError
            For a kind of processor, or a way to give a size, that is not one of these.
        """
        name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
        kind = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)
        if kind not in KINDS:
            raise UserError(f"{model} has the image processor {name!r}; supported: {', '.join(KINDS)}")
        given = {**KINDS[kind], **{key: value for key, value in settings.items() if value is not None}}
        mean, std = (given.get(f"image_{key}", STATISTICS[kind][i]) for i, key in enumerate(("mean", "std")))
        shorter = kind in {"CLIP", "Bit"}  # what a bare number means as a size
        return cls(
            n_channels,
            resize=read_size(given["size"], model, shorter) if given["do_resize"] else None,
            resample=int(given["resample"]),
            crop=fixed(read_size(given["crop_size"], model, False), model) if given["do_center_crop"] else None,
            rescale=float(given["rescale_factor"]) if given["do_rescale"] else None,
            mean=per_channel(mean, n_channels) if given["do_normalize"] else None,
            std=per_channel(std, n_channels) if given["do_normalize"] else None,
            resize_in="floats" if kind == "DINOv3ViT" else "bytes",
        )

    @classmethod
    def for_kind(cls, kind: str, image_size: Size, n_channels: int) -> ImageProcessor:
        """Return the usual processor of a kind, made to fit an image size (height, width), where no file says more."""
        settings = KINDS[kind]
        mean, std = STATISTICS[kind]
        crops = settings["do_center_crop"]
        return cls(
            n_channels,
            resize=max(image_size) if crops else image_size,
            resample=settings["resample"],
            crop=image_size if crops else None,
            rescale=settings["rescale_factor"],
            mean=per_channel(mean, n_channels),
            std=per_channel(std, n_channels),
            resize_in="floats" if kind == "DINOv3ViT" else "bytes",
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return an image as float32 pixels [channel, height, width]."""
        image = image.convert("RGB" if self.n_channels == 3 else "L")
        if self.resize is not None and self.resize_in == "bytes":
            height, width = target_size(self.resize, image.height, image.width)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        if self.crop is not None and self.resize_in == "bytes":
            pixels = crop_centre(pixels, self.crop)
        values: np.ndarray[Any, np.dtype[np.float32]] = pixels.astype(np.float32)
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        if self.resize_in == "floats":
            values = self.resize_floats(values)
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(x, np.float32)[:, None, None] for x in (self.mean, self.std))
            values = (values - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values))

    def resize_floats(self, values: np.ndarray) -> np.ndarray:
        """Resize and crop rescaled pixels [channel, height, width]."""
        if self.resize is not None:
            size = target_size(self.resize, *values.shape[1:])
            mode = {BILINEAR: "bilinear", BICUBIC: "bicubic"}[self.resample]
            image = torch.from_numpy(np.ascontiguousarray(values))[None]
            values = F.interpolate(image, size, mode=mode, align_corners=False, antialias=True)[0].numpy()
        return values if self.crop is None else crop_centre(values, self.crop)

    def fingerprint(self) -> str:
        """Return a hash of all settings."""
        return xxhash.xxh3_128(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def open_image(path: str | Path) -> Image.Image:
    """Read an image file, turned upright as its EXIF orientation says.

    Raises
    ------
    UserError
        If there is no such file, or it is no image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise UserError(f"image {str(path)!r} cannot be read: {error}") from None


def read_size(size: Any, model: str, shorter: bool) -> Size | int:
    """Return height and width, or the length of the shorter edge, in the ways that configuration files have."""
    if isinstance(size, int):
        return size if shorter else (size, size)
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    raise UserError(f"{model} resizes images to {size!r}; supported: a height and width, or the shortest edge")


def fixed(size: Size | int, model: str) -> Size:
    """Return a size that must have both height and width."""
    if isinstance(size, int):
        raise UserError(f"{model} crops images to a shortest edge of {size}; supported: a height and width")
    return size


def per_channel(values: float | list[float] | tuple[float, ...], n_channels: int) -> tuple[float, ...]:
    """Return one number for each channel; for grey images, the mean over colours."""
    if isinstance(values, (int, float)):
        return (float(values),) * n_channels
    return tuple(values) if len(values) == n_channels else (sum(values) / len(values),) * n_channels


def target_size(size: Size | int, height: int, width: int) -> Size:
    """Return height and width after resizing; the longer edge is rounded down."""
    if not isinstance(size, int):
        return size
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def crop_centre(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Cut the middle out of pixels [channel, height, width]; where the image ends, zeros."""
    for axis, (have, want) in enumerate(zip(pixels.shape[1:], size, strict=True), start=1):
        if have < want:
            before = math.ceil((want - have) / 2)
            widths = [(0, 0)] * 3
            widths[axis] = (before, want - have - before)
            pixels = np.pad(pixels, widths)
    height, width = pixels.shape[1:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[:, top : top + size[0], left : left + size[1]]
