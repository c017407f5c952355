"""Which kernels run: choose them by hand, ask which are in use, and why.

By default the best one runs that the device, and a compiler found on the machine, can do; C++ kernels are compiled
when the first tensor comes (`workbench kernels build` does it by hand). Another can be forced, by the environment
variable ``WORKBENCH_KERNELS`` or for a block of code:

>>> from workbench.kernels.choice import in_use, use
>>> with use("reference"):
...     in_use()["topk_encode"]
'reference'
"""

import torch

from workbench.kernels.cpu.choosing import VARIABLE, chosen, facts, use
from workbench.kernels.cpu.kernels import screen_for
from workbench.kernels.cuda.registration import device as gpu

__all__ = ["VARIABLE", "facts", "in_use", "use"]

OPERATORS = ("topk_encode", "sparse_decode", "gathered_dot", "scatter_outer", "decode_error")


def in_use(device: torch.device | str = "cpu", *, size: tuple[int, int, int, int] | None = None) -> dict[str, str]:
    """Return for each operator the kernel that runs for float32 tensors on a device; compiles it if need be.

    Parameters
    ----------
    device : torch.device or str, default="cpu"
        Where the tensors are.
    size : tuple of int, optional
        Rows, width, latents and k of a batch: the encoder's name then tells the screen that it starts with for these
        sizes on the processor (``avx512_bf16:bfloat16``); rows may then ask for another (docs/kernels.md).

    Returns
    -------
    dict of str to str
        Kernel of each operator.
    """
    device = torch.device(device)
    if device.type == "cuda":
        found = gpu(torch.cuda.current_device() if device.index is None else device.index)
        return dict.fromkeys(OPERATORS, "reference" if isinstance(found, str) else f"cuda {found.architecture}")
    choice = chosen() if device.type == "cpu" else None
    name = choice.name if choice else "reference"
    unit = name.partition(":")[0]
    if size and choice and choice.library:
        name = f"{unit}:{screen_for(choice.library, *size, choice.screen)}"
    return {operator: name if operator == "topk_encode" else unit for operator in OPERATORS}
