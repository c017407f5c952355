"""From an address to a subject model: ``zoo:pycode``, ``tl:gpt2``, ``hf:folder#vision``."""

from __future__ import annotations

from typing import Any

from workbench.addresses import absolute
from workbench.errors import UserError
from workbench.plugin import LoadOptions
from workbench.registry import registry
from workbench.subjects.protocol import Subject

DTYPES = ("float32", "float64", "float16", "bfloat16")


def load_subject(
    address: str, *, device: str = "auto", dtype: str | None = None, device_map: str | None = None
) -> Subject:
    """Load a subject model.

    Parameters
    ----------
    address : str
        Scheme and name: ``zoo:NAME``, ``tl:NAME``, ``hf:NAME-OR-FOLDER``, or a scheme that an installed package offers.
    device : str
        ``auto`` (CUDA if there is one, else CPU), ``cpu`` or ``cuda:N``.
    dtype : str, optional
        ``float32``, ``float64``, ``float16`` or ``bfloat16``; the checkpoint's own if not given.
    device_map : str, optional
        Spread a large model over devices, as accelerate understands it: ``auto``.

    Raises
    ------
    UserError
        If the address has no scheme or an unknown one, or the model cannot be found.
    """
    scheme, colon, rest = address.partition(":")
    if not colon or not rest:
        known = ", ".join(f"{name}:…" for name in registry().subjects)
        raise UserError(f"model {address!r} is not an address; write one of {known}, for example zoo:pycode")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    source = registry().subject_source(scheme)
    return source.load(absolute(rest, source.names()), LoadOptions(device, dtype, device_map))


def resolve_device(device: str) -> Any:
    """Return the torch device that a name stands for; an absent one is an error."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r}: must be auto, cpu or cuda:N") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return found
