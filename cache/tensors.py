"""Between stored arrays and torch tensors. Torch is imported when first needed: writer and verifier do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.schema import Dtype

if TYPE_CHECKING:
    from torch import Tensor


def to_tensor(array: NDArray[Any], dtype: Dtype) -> Tensor:
    """Return a tensor of the stored dtype that shares the array's memory.

    Parameters
    ----------
    array : writable array [rows, ...]
        float32, float16, or the uint16 bit patterns of bfloat16; float32 for int8, as `workbench.cache.int8` gives it.
    dtype : "float32", "float16", "bfloat16" or "int8"
        What the store holds.
    """
    import torch

    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> NDArray[Any]:
    """Return what `StoreWriter.append` takes, bit for bit: bfloat16 as uint16 bit patterns, other types as they are."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: NDArray[Any] = tensor.numpy()
    return array
