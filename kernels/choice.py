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
from workbench.kernels.cuda.registration import device as gpu

__all__ = ["VARIABLE", "facts", "in_use", "use"]

OPERATORS = ("topk_encode", "sparse_decode", "gathered_dot", "scatter_outer", "decode_error")


def in_use(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return for each operator the kernel that runs for float32 tensors on a device; compiles it if need be."""
    device = torch.device(device)
    if device.type == "cuda":
        found = gpu(torch.cuda.current_device() if device.index is None else device.index)
        return dict.fromkeys(OPERATORS, "reference" if isinstance(found, str) else f"cuda {found.architecture}")
    name = chosen().name if device.type == "cpu" else "reference"
    unit = name.partition(":")[0]
    return {operator: name if operator == "topk_encode" else unit for operator in OPERATORS}
