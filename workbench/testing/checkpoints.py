"""Small checkpoints with random weights, for tests of loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_random(model: Any, folder: Path, seed: int = 0) -> Path:
    """Give every parameter of a Hugging Face model random values and save it; returns the folder.

    What a library initialises to zero or one (biases, norms, layer scale, tokens) is random too, so that a loader that
    leaves it out does not pass.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Made from a configuration.
    folder : Path
        Made if need be; weights are saved as safetensors.
    seed : int
        Of the random values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.5
            values = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(values + (parameter.ndim == 1))
    model.save_pretrained(folder)
    return folder
