"""The family: every architecture by the name that a configuration gives it."""

from __future__ import annotations

from workbench.plugins.sae.architecture import Architecture
from workbench.plugins.sae.jumprelu import JumpReLU
from workbench.plugins.sae.relu import Gated, Standard
from workbench.plugins.sae.topk import BatchTopK, Matryoshka, TopK

ARCHITECTURES: dict[str, Architecture] = {
    "topk": TopK(),
    "batchtopk": BatchTopK(),
    "matryoshka": Matryoshka(),
    "jumprelu": JumpReLU(),
    "gated": Gated(),
    "standard": Standard(),
}
