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

__all__ = ["VARIABLE", "facts", "in_use", "use"]

COMPILED = ("topk_encode",)
OPERATORS = ("topk_encode", "sparse_decode", "gathered_dot", "scatter_outer")


def in_use(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return for each operator the kernel that runs for float32 tensors on a device; compiles it if need be."""
    name = chosen().name if torch.device(device).type == "cpu" else "reference"
    return {operator: name if operator in COMPILED else "reference" for operator in OPERATORS}
