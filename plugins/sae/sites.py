"""Where a dictionary reads and writes: hook points side by side, each brought to the same length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.dictionary import JOIN, Dictionary
from workbench.errors import UserError
from workbench.plugins.sae.weights import Weights

Batch = Mapping[str, Tensor]
"""Rows [rows, ...] of each hook point, as the store has them."""


@dataclass(frozen=True)
class Place:
    """A hook point that is read or written.

    Attributes
    ----------
    hook_point : str
        Its name.
    width : int
        Of a row, trailing axes laid side by side.
    scale : float
        Rows are multiplied by it, which brings them to a mean norm of sqrt(width).
    """

    hook_point: str
    width: int
    scale: float


@dataclass(frozen=True)
class Site:
    """What one dictionary reads and writes.

    Attributes
    ----------
    reads, writes : tuple of Place
        Laid side by side in this order; the same for an autoencoder.
    """

    reads: tuple[Place, ...]
    writes: tuple[Place, ...]

    @property
    def same(self) -> bool:
        """Whether what is read is what is reconstructed."""
        return self.reads == self.writes

    @property
    def hook_points(self) -> list[str]:
        """All hook points, each once."""
        return list(dict.fromkeys(place.hook_point for place in (*self.reads, *self.writes)))

    @property
    def name(self) -> str:
        """For messages and the report."""
        read, written = (JOIN.join(place.hook_point for place in places) for places in (self.reads, self.writes))
        return read if self.same else f"{read} -> {written}"

    def take(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what is read and what is to be reconstructed, scaled float32 rows [rows, width] on a device."""
        x = side_by_side(self.reads, batch, device)
        return x, x if self.same else side_by_side(self.writes, batch, device)

    def scaled(self) -> Site:
        """Return the same site for rows that are scaled already."""
        reads, writes = (tuple(replace(place, scale=1.0) for place in places) for places in (self.reads, self.writes))
        return Site(reads, writes)

    def to_json(self) -> dict[str, Any]:
        """Return the site as JSON values."""
        return {"reads": [asdict(place) for place in self.reads], "writes": [asdict(place) for place in self.writes]}

    def dictionary(
        self,
        weights: Weights,
        inference: Mapping[str, Any],
        *,
        subject_address: str = "",
        subject_fingerprint: str = "",
    ) -> Dictionary:
        """Return trained weights as a dictionary on the subject's own activations.

        An autoencoder's scale is kept beside its weights; several, of a transcoder or crosscoder, are folded into them.
        """
        b_dec = weights.b_dec.detach()
        own = {
            "W_enc": weights.W_enc.detach(),
            "b_enc": weights.b_enc.detach(),
            "W_dec": weights.W_dec.detach(),
            "b_dec": b_dec,
            "b_pre": b_dec if weights.b_pre is None else weights.b_pre,
        } | dict(inference)
        scale = self.reads[0].scale
        if len(self.reads) > 1 or not self.same:
            read, written = (scales(places).to(b_dec.device) for places in (self.reads, self.writes))
            own["W_enc"], own["b_pre"] = own["W_enc"] * read, own["b_pre"] / read
            own["W_dec"], own["b_dec"] = own["W_dec"] / written, own["b_dec"] / written
            scale = 1.0
        return Dictionary(
            **own,
            hook_in=JOIN.join(place.hook_point for place in self.reads),
            hook_out=JOIN.join(place.hook_point for place in self.writes),
            scale=scale,
            subject_address=subject_address,
            subject_fingerprint=subject_fingerprint,
        )


def scales(places: tuple[Place, ...]) -> Tensor:
    """Return the factor of each entry of places side by side, [sum of widths]."""
    return torch.cat([torch.full((place.width,), place.scale) for place in places])


def side_by_side(places: tuple[Place, ...], batch: Batch, device: torch.device) -> Tensor:
    """Return the scaled rows of some hook points, float32 [rows, sum of widths]."""
    parts = [place.scale * batch[place.hook_point].flatten(1).to(device, torch.float32) for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def measured(hook_point: str, sample: Tensor) -> Place:
    """Return a hook point with the factor that makes its rows of norm sqrt(width) on average.

    Parameters
    ----------
    hook_point : str
        Its name.
    sample : Tensor [rows, ...]
        Of its training rows.

    Raises
    ------
    UserError
        If the rows are all zero, all alike, or not finite.
    """
    rows = sample.flatten(1).float()
    norm = float(rows.norm(dim=1).mean())
    if not torch.isfinite(torch.tensor(norm)):
        raise UserError(f"{hook_point}: some activations are NaN or infinite; a dictionary cannot be trained on them")
    if not float((rows - rows.mean(0)).abs().max()):
        raise UserError(f"{hook_point}: all rows are alike; there is nothing to train a dictionary on")
    return Place(hook_point, rows.shape[1], rows.shape[1] ** 0.5 / norm)
