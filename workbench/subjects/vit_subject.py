"""Vision subjects: images, patches and where each position of a sequence lies in the image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.images import ImageProcessor, open_image
from workbench.subjects.protocol import Batch
from workbench.subjects.stacked import StackedSubject
from workbench.subjects.vit import VisionTransformer
from workbench.transfer import to_device


class VisionSubject(StackedSubject):
    """A vision tower or classifier.

    Parameters
    ----------
    address : str
        Recorded in stores and runs.
    network : VisionTransformer
        Weights in place.
    read_processor : function
        Reads what turns an image into pixels; called when it is first needed.
    """

    modality = "vision"

    def __init__(self, address: str, network: VisionTransformer, read_processor: Callable[[], ImageProcessor]) -> None:
        super().__init__(address, network)
        self.arch, self.read_processor = network.arch, read_processor
        self.n_context = self.arch.n_prefix + self.arch.grid[0] * self.arch.grid[1]

    @cached_property
    def processor(self) -> ImageProcessor:
        """From an image to pixels, as the checkpoint says."""
        return self.read_processor()

    def tokenizer_fingerprint(self) -> str:
        """See `Subject.tokenizer_fingerprint`: the settings of the image processor."""
        return self.processor.fingerprint()

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the image processor's settings as ``image_processor.json``."""
        settings = json.dumps(asdict(self.processor), indent=2)
        (Path(folder) / "image_processor.json").write_text(settings + "\n", encoding="utf-8")

    def batch(self, examples: Sequence[Any]) -> Batch:
        """Turn images into one batch on the subject's device.

        Parameters
        ----------
        examples : sequence
            PIL images, paths of image files, or float tensors [channel, height, width] already processed.

        Raises
        ------
        UserError
            For no image, one that cannot be read, or pixels that do not fit the model or one another.
        """
        images = [self.pixels(example) for example in examples]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) != 1:
            found = ", ".join(str(shape) for shape in sorted(shapes)) or "none"
            raise UserError(f"images of {found}: a batch takes at least one, all of the same size")
        pixels = to_device(torch.stack(images).to(self.dtype), self.device)
        grid = [size // patch for size, patch in zip(pixels.shape[2:], self.arch.patch_size, strict=True)]
        if not all(grid):
            raise UserError(f"images of {tuple(pixels.shape[2:])} are smaller than a patch, {self.arch.patch_size}")
        shape = len(images), self.arch.n_prefix + grid[0] * grid[1]
        special = torch.zeros(shape, dtype=torch.bool, device=self.device)
        special[:, : self.arch.n_prefix] = True
        return Batch(pixels, torch.ones_like(special), special)

    def pixels(self, example: Any) -> Tensor:
        """Return one image as pixels [channel, height, width]."""
        channels = self.arch.n_channels
        if isinstance(example, Tensor):
            if example.ndim != 3 or len(example) != channels or not example.is_floating_point():
                got = f"{example.dtype} {tuple(example.shape)}"
                raise UserError(f"image tensor {got}: must be floating point [{channels}, height, width]")
            return example
        if channels not in (1, 3):
            raise UserError(f"{self.address} reads {channels} channels: give tensors [{channels}, height, width]")
        if isinstance(example, (str, Path)):
            example = open_image(example)
        if not isinstance(example, Image.Image):
            raise UserError(f"{type(example).__name__} is no image: give a PIL image, a path or a tensor")
        return self.processor(example)

    def patch_index(self, n_positions: int | None = None) -> np.ndarray:
        """See `Subject.patch_index`."""
        count = self.n_context if n_positions is None else n_positions
        places: np.ndarray = np.arange(count) - self.arch.n_prefix
        places[: self.arch.n_prefix] = -1 - np.arange(self.arch.n_prefix)
        return places
