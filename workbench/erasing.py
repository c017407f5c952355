"""Saved projections on a live model: load one, hold it against the subject, apply it as an edit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import safetensors.numpy
from safetensors import SafetensorError

from workbench.errors import UserError, nearest
from workbench.probes.errors import ProbeError
from workbench.probes.projections import Projection

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.subjects.protocol import At, Edit, Subject

log = logging.getLogger("workbench")


def load_projection(address: str | Path) -> Projection:
    """Load a projection.

    Parameters
    ----------
    address : str or Path
        A safetensors file that `Projection.save` wrote; ``RUN#NAME``, one of the weights of a run of ``nullspace``; or
        ``RUN`` alone where the run made one only.

    Raises
    ------
    UserError
        If there is none at the address, or it is damaged.
    """
    path, name = Path(address), ""
    if not path.exists() and "#" in str(address):
        run, _, name = str(address).rpartition("#")
        path = Path(run)
    try:
        return _from_run(path, name) if path.is_dir() else Projection.load(path)
    except ProbeError as error:
        raise UserError(str(error)) from error


def _from_run(folder: Path, name: str) -> Projection:
    index = folder / "result.json"
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weights"]
    except FileNotFoundError:
        raise UserError(f"projection {str(folder)!r}: the folder is no run folder; give a run of 'nullspace'") from None
    except (ValueError, KeyError) as error:
        raise UserError(f"{index} is damaged: {error}") from error
    names = [each for each, about in weights.items() if "keep_only" in (about["config"] or {})]
    if not names:
        raise UserError(f"projection {str(folder)!r}: this run made none; give a run of 'nullspace'")
    if not name and len(names) > 1:
        raise UserError(
            f"projection {str(folder)!r}: the run made several; name one, such as {folder}#{names[0]}, of "
            f"{', '.join(names)}"
        )
    name = name or names[0]
    if name not in names:
        raise UserError(
            f"projection '{folder}#{name}': the run made none of that name; nearest: {nearest(name, names)}"
        )
    path = folder / "weights" / f"{name}.safetensors"
    try:
        tensors = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the run folder is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return Projection.from_parts(tensors, weights[name]["config"], f"{folder}#{name}")


def edit_of(projection: Projection, *, special: bool | Literal["only"] = False) -> Edit:
    """Return an edit that projects activations where the subject runs.

    Parameters
    ----------
    projection : Projection
        That erases or keeps.
    special : bool or "only"
        Project special tokens too, or nothing but them; by default they are left as they are. Padding always is.

    Returns
    -------
    function
        For ``subject.run(batch, edits={hook_point: edit_of(projection)})``; computes in float32 at least.

    Raises
    ------
    UserError
        When used, at a hook point without positions, or of another width.
    """
    import torch

    held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def project(activation: Tensor, at: At) -> Tensor:
        flat = activation.flatten(2) if activation.ndim > 2 else activation
        if at.hook_point.axes[:2] != ("batch", "pos") or flat.shape[-1] != projection.n_units:
            raise UserError(
                f"the projection takes {projection.n_units} units at each position, but {at.hook_point.name} is "
                f"{tuple(activation.shape)} ({', '.join(at.hook_point.axes)})"
            )
        dtype = torch.promote_types(activation.dtype, torch.float32)
        key = (activation.device, dtype)
        if key not in held:
            held[key] = tuple(
                torch.from_numpy(each.copy()).to(activation.device, dtype) for each in projection.tensors().values()
            )
        removed, readout, mean = held[key]
        chosen = at.batch.mask
        if special is not True:
            chosen = chosen & (at.batch.special if special else ~at.batch.special)
        rows = flat.to(dtype)
        inside = ((rows - mean) @ readout) @ removed.T
        projected = mean + inside if projection.keep_only else rows - inside
        return torch.where(chosen[:, :, None], projected.to(flat.dtype), flat).view_as(activation)

    return project


def edits_of(projection: Projection, *, special: bool | Literal["only"] = False) -> dict[str, Edit]:
    """Return the edit at the hook point that the projection was fitted on.

    Raises
    ------
    UserError
        If the projection does not say which hook point that is.
    """
    return {hook_point_of(projection): edit_of(projection, special=special)}


def hook_point_of(projection: Projection) -> str:
    """Return the hook point that a projection was fitted on."""
    hook_point = projection.about.get("hook_point", "")
    if not hook_point:
        raise UserError("the projection does not say which hook point it is of: use edit_of at one of your choice")
    return hook_point


def check_subject(projection: Projection, subject: Subject) -> None:
    """Refuse a subject with other weights than those that the projection was fitted on; warn where it does not say.

    Raises
    ------
    UserError
        If the fingerprints differ, or the subject lacks the hook point.
    """
    subject.expand([hook_point_of(projection)])
    held, got = projection.about.get("subject_fingerprint", ""), subject.fingerprint()
    if not held:
        log.warning("the projection does not say which weights it was fitted on: used on %s unchecked", subject.address)
    elif held != got:
        raise UserError(
            f"the projection was fitted on {projection.about.get('subject', '?')} (fingerprint {held[:12]}), but "
            f"{subject.address} has fingerprint {got[:12]}: give the subject that it was fitted on"
        )
