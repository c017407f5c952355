"""Register the compiled kernels with torch.library, for tensors on the processor.

Importing this costs nothing: a unit is compiled and loaded when the first tensor comes that it could work on. The
reference answers for float64, and where no unit can be had.
"""

from collections.abc import Callable
from typing import Any

import torch

from workbench.kernels import operators
from workbench.kernels.cpu import kernels
from workbench.kernels.cpu.choosing import chosen
from workbench.kernels.cpu.library import DTYPES


def _register(name: str, kernel: Callable[..., Any], reference: Callable[..., Any], screened: bool = False) -> None:
    """Register a kernel for tensors on the processor; its first argument tells the dtype."""

    @torch.library.impl(f"workbench::{name}", "CPU")
    def _(*arguments: Any) -> Any:
        choice = chosen() if arguments[0].dtype in DTYPES else None
        if choice is None or choice.library is None:
            return reference(*arguments)
        return kernel(choice.library, *arguments, *([choice.screen] if screened else []))


_register("topk_encode", kernels.topk_encode, operators.topk_encode_reference, screened=True)
_register("sparse_decode", kernels.sparse_decode, operators.sparse_decode_reference)
_register("gathered_dot", kernels.gathered_dot, operators.gathered_dot_reference)
_register("scatter_outer", kernels.scatter_outer, operators.scatter_outer_reference)
_register("decode_error", kernels.decode_error, operators.decode_error_reference)
