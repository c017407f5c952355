"""Register the compiled kernels with torch.library, for tensors on the processor.

Importing this costs nothing: a unit is compiled and loaded when the first tensor comes that it could work on. The
reference answers for float64, and where no unit can be had.
"""

import torch
from torch import Tensor

from workbench.kernels import operators
from workbench.kernels.cpu.choosing import Choice, chosen
from workbench.kernels.cpu.library import DTYPES


def _kernels(tensor: Tensor) -> Choice | None:
    """Find what compiled kernels there are for a tensor's dtype; None if the reference must do it."""
    if tensor.dtype not in DTYPES:
        return None
    choice = chosen()
    return choice if choice.library is not None else None


@torch.library.impl("workbench::topk_encode", "CPU")
def _topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    choice = _kernels(x)
    if choice is None or choice.library is None:
        return operators.topk_encode_reference(x, W_enc, b_enc, k)
    return choice.library.topk_encode(x, W_enc, b_enc, int(k), choice.screen)
