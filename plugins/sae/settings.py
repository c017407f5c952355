"""From a configuration and a store to the numbers that a training uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from workbench.cache import ActivationSpec
from workbench.errors import UserError, nearest
from workbench.plugins.sae import SaeConfig
from workbench.plugins.sae.schedules import falling, rising

ROWS_BY_DEFAULT = 1_000_000
EPOCHS_BY_DEFAULT = 8
STEPS_WANTED = 4096
COUNTED = ("topk", "batchtopk", "matryoshka")  # architectures that are told how many latents are active
L1 = ("standard", "gated")
SPARSITY = {"quadratic": 1.0, "l0": 1e-3, "tanh": 1e-3}
L1_SPARSITY = {"standard": 0.75, "gated": 1.5}  # over sqrt(k): k features of a row of length 1 are of that size


@dataclass(frozen=True)
class Settings:
    """Every number of a training run, none left to a default.

    Attributes
    ----------
    architecture : str
        See `SaeConfig`.
    width, latents, k : int
        Of the dictionary; the width is that of what is read.
    parts : tuple of int
        Widths of the hook points that are written.
    groups : tuple of int
        Where the nested dictionaries of a Matryoshka autoencoder end.
    epoch_rows, rows : int
        Rows of one epoch and of the training.
    penalty, sparsity, threshold, bandwidth
        See `SaeConfig.sparsity` and `JumpReluConfig`; threshold (None: from the data) and bandwidth on scaled rows.
    batch_rows, lr, warmup, decay, schedule, beta1, k_start, k_anneal, sparsity_warmup, aux_k, aux_weight, dead_after,
    resample, centre, precision
        See `TrainConfig`.
    """

    architecture: str
    width: int
    parts: tuple[int, ...]
    latents: int
    k: int
    groups: tuple[int, ...]
    epoch_rows: int
    rows: int
    batch_rows: int
    lr: float
    warmup: float
    decay: float
    schedule: str
    beta1: float
    k_start: int
    k_anneal: float
    penalty: str
    sparsity: float
    sparsity_warmup: float
    threshold: float | None
    bandwidth: float
    aux_k: int
    aux_weight: float
    dead_after: int
    resample: int
    centre: str
    precision: str

    @property
    def width_out(self) -> int:
        """Width of what is written."""
        return sum(self.parts)

    @property
    def n_steps(self) -> int:
        """Number of batches; an epoch's last one may be short."""
        epochs, rest = divmod(self.rows, self.epoch_rows)
        return epochs * math.ceil(self.epoch_rows / self.batch_rows) + math.ceil(rest / self.batch_rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the products; weights and their moments are float32."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def lr_at(self, rows_done: int) -> float:
        """Learning rate after some rows: a linear rise, a plateau, a fall to zero."""
        done = rows_done / self.rows
        rise = rising(done + 1 / self.n_steps, self.warmup)
        return self.lr * min(rise, falling(done, self.decay, self.schedule))

    def k_at(self, rows_done: int) -> int:
        """Active latents of a row after some rows: from `k_start` to `k` in a line."""
        share = rising(rows_done / self.rows, self.k_anneal)
        return round(self.k_start + share * (self.k - self.k_start))

    def sparsity_at(self, rows_done: int) -> float:
        """Weight of the sparsity penalty after some rows: from 0 to `sparsity` in a line."""
        return self.sparsity * rising(rows_done / self.rows, self.sparsity_warmup)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "parts": list(self.parts), "groups": list(self.groups)}


def choose_settings(config: SaeConfig, width: int, epoch_rows: int, parts: tuple[int, ...] | None = None) -> Settings:
    """Fill in what the configuration leaves to the data.

    Parameters
    ----------
    config : SaeConfig
        As given.
    width : int
        Of the hook point, trailing axes laid side by side.
    epoch_rows : int
        Rows of training documents, special tokens left out.
    parts : tuple of int, optional
        Widths of the hook points that are written, where they are not the one that is read.

    Raises
    ------
    UserError
        If k is larger than the number of latents, there are no rows, or an option is given that the architecture does
        not have.
    """
    train, architecture = config.train, config.architecture
    if epoch_rows < 1:
        raise UserError("no rows to train on: every row is a special token or belongs to a held-out document")
    latents = config.latents or max(2, round(config.expansion * width))
    k = config.k or min(32, max(1, width // 8), latents)
    for name, value in (("k", k), ("train.k_start", train.k_start)):
        if value is not None and value > latents:
            raise UserError(f"{name}={value}: must be at most {latents}, the number of latents")
    if config.sparsity is not None and architecture in COUNTED:
        raise UserError(f"sparsity={config.sparsity:g}: {architecture} has no sparsity penalty; set k instead")
    if config.k is not None and architecture in L1:
        raise UserError(f"k={config.k}: {architecture} has as many active latents as its penalty leaves; set sparsity")
    rows = train.rows or max(epoch_rows, min(EPOCHS_BY_DEFAULT * epoch_rows, ROWS_BY_DEFAULT))
    batch_rows = train.batch_rows or min(4096, max(256, 1 << (rows // STEPS_WANTED).bit_length()))
    return Settings(
        architecture=architecture,
        width=width,
        parts=parts or (width,),
        latents=latents,
        k=k,
        groups=ends_of_groups(config.matryoshka.groups, latents) if architecture == "matryoshka" else (),
        epoch_rows=epoch_rows,
        rows=rows,
        batch_rows=min(batch_rows, epoch_rows),
        lr=train.lr or min(4e-3, 1.5e-3 * math.sqrt(2048 / latents)),
        warmup=train.warmup,
        decay=train.decay,
        schedule=train.schedule,
        beta1=train.beta1,
        k_start=train.k_start or (min(2 * k, latents) if architecture == "topk" else k),
        k_anneal=train.k_anneal,
        penalty=config.jumprelu.penalty if architecture == "jumprelu" else "",
        sparsity=sparsity_of(config, k),
        sparsity_warmup=train.sparsity_warmup,
        threshold=None if config.jumprelu.threshold is None else config.jumprelu.threshold * math.sqrt(width),
        bandwidth=config.jumprelu.bandwidth * math.sqrt(width),
        aux_k=max(1, width // 2) if train.aux_k is None else train.aux_k,
        aux_weight=train.aux_weight,
        dead_after=train.dead_after or max(rows // 100, 10 * batch_rows),
        resample=train.resample,
        centre=train.centre,
        precision=train.precision,
    )


def sparsity_of(config: SaeConfig, k: int) -> float:
    """Return the weight of the sparsity penalty, as given or by default; 0 where there is no penalty."""
    if config.architecture in COUNTED:
        return 0.0
    if config.sparsity is not None:
        return config.sparsity
    if config.architecture in L1:
        return L1_SPARSITY[config.architecture] / math.sqrt(k)
    return SPARSITY[config.jumprelu.penalty]


def ends_of_groups(shares: tuple[float, ...], latents: int) -> tuple[int, ...]:
    """Return where groups of latents end, from the share of the latents in each; each has one at least.

    Raises
    ------
    UserError
        If the shares do not add up to 1, or there are more groups than latents.

    Examples
    --------
    >>> ends_of_groups((0.25, 0.25, 0.5), 10)
    (2, 5, 10)
    """
    if abs(sum(shares) - 1) > 1e-6 or len(shares) > latents:
        raise UserError(
            f"matryoshka.groups={list(shares)}: must be shares of {latents} latents that add up to 1, at least one "
            "latent in each"
        )
    ends: list[int] = []
    done = 0.0
    for number, share in enumerate(shares, start=1):
        done += share
        left = len(shares) - number
        ends.append(min(max(round(done * latents), (ends[-1] if ends else 0) + 1), latents - left))
    return tuple(ends)


class Source(Protocol):
    """Where rows are read: a store, or a subject model."""

    @property
    def folder(self) -> Path | str:
        """What messages call it."""

    @property
    def hook_points(self) -> Mapping[str, ActivationSpec]:
        """What a row of each hook point is."""


def settings_of(store: Source, config: SaeConfig, epoch_rows: int) -> Settings:
    """Return what `choose_settings` gives for the hook points that a configuration names."""
    reads, writes = (
        tuple(math.prod(store.hook_points[name].shape) for name in names) for names in choose_hook_points(store, config)
    )
    return choose_settings(config, sum(reads), epoch_rows, writes)


def choose_hook_points(store: Source, config: SaeConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the hook points that are read, by default the store's only one, and those that are reconstructed."""
    names = list(store.hook_points)
    if config.hook_point is None and len(names) > 1:
        raise UserError(
            f"{store.folder} has {len(names)} hook points: choose one with hook_point=…, of {', '.join(names)}"
        )
    reads = named(config.hook_point) or (names[0],)
    writes = named(config.hook_out) or reads
    for option, wanted in (("hook_point", reads), ("hook_out", writes)):
        for name in wanted:
            if name not in names:
                raise UserError(f"{option}: {store.folder} has no hook point {name!r}; nearest: {nearest(name, names)}")
        if len(set(wanted)) < len(wanted):
            raise UserError(f"{option}={list(wanted)}: a hook point is named twice")
    return reads, writes


def named(hook_points: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return one name, several or none as a tuple."""
    return (hook_points,) if isinstance(hook_points, str) else tuple(hook_points or ())
