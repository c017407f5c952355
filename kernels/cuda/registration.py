"""Register the CUDA kernels with torch.library, for tensors on a GPU; the reference answers where they cannot.

Importing this module costs nothing: a device is looked at, and kernels compiled, when the first tensor on it comes.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import operators
from workbench.kernels.cuda import encode, linear
from workbench.kernels.cuda.driver import Device, DriverError, Unavailable
from workbench.kernels.cuda.launching import SUFFIX, Launcher

logger = logging.getLogger(__name__)


@functools.cache
def device(index: int) -> Device | str:
    """Return the device made ready, or why it cannot be used; found out, and logged, once in a process."""
    try:
        ready = Device(index)
    except (Unavailable, DriverError) as error:
        logger.warning("CUDA kernels: the PyTorch reference runs instead: %s", error)
        return str(error)
    logger.info("CUDA kernels: %s, compiled by %s for %s", ready.name, ready.compiler.identity, ready.architecture)
    return ready


def status() -> list[str]:
    """Say for each GPU which kernels answer there, and why; one line if there is no GPU."""
    if not torch.cuda.is_available():
        return ["no CUDA device"]
    lines = []
    for index in range(torch.cuda.device_count()):
        found = device(index)
        if isinstance(found, Device):
            lines.append(f"cuda:{index} {found.name}: CUDA kernels, {found.compiler.identity}, {found.architecture}")
        else:
            lines.append(f"cuda:{index}: PyTorch reference: {found}")
    return lines


def _launcher(tensor: Tensor) -> Launcher | None:
    """Find who runs kernels on a tensor's device; None if the reference must do it."""
    if tensor.dtype not in SUFFIX:  # float64 is for checks of derivatives: nobody waits for it
        return None
    found = device(tensor.device.index)
    return found if isinstance(found, Device) else None


def _register(name: str, kernel: Callable[..., Any], reference: Callable[..., Any], deciding: int) -> None:
    """Register a kernel for CUDA tensors; argument number `deciding` tells device and dtype."""

    @torch.library.impl(f"workbench::{name}", "CUDA")
    def _(*arguments: Any) -> Any:
        launcher = _launcher(arguments[deciding])
        return reference(*arguments) if launcher is None else kernel(launcher, *arguments)


_register("topk_encode", encode.topk_encode, operators.topk_encode_reference, deciding=0)
_register("sparse_decode", linear.sparse_decode, operators.sparse_decode_reference, deciding=2)
_register("gathered_dot", linear.gathered_dot, operators.gathered_dot_reference, deciding=0)
_register("scatter_outer", linear.scatter_outer, operators.scatter_outer_reference, deciding=2)
