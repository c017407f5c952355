"""Dictionaries: sparse autoencoders as plain weights, whoever trained them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import UserError
from workbench.kernels.topk import sparse_decode, topk_encode

if TYPE_CHECKING:
    from workbench.subjects.protocol import Edit, Subject

Activation = Literal["topk", "relu", "jumprelu"]
Normalisation = Literal["none", "centre", "layer_norm", "unit_norm"]
Layout = Literal["workbench", "saelens"]
SCHEMA = 2  # of the settings; 1 where nothing is said that a reader of 1 does not know
NORM_EPSILON = 1e-5  # SAELens's, added to the standard deviation of a row
JOIN = " + "  # between hook points that are read side by side
ROWS_AT_ONCE = 1024  # of dense codes, where the activation names no k

log = logging.getLogger("workbench")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Latents with an encoder and a decoder direction each.

    ``codes = activation(W_enc (scale x − b_pre) + b_enc)`` and ``x̂ = (W_decᵀ codes + b_dec) / scale``; where rows are
    normalised, x is the normalised row, and x̂ is brought back by the row's own numbers.

    Attributes
    ----------
    W_enc : Tensor [latents, width]
        Encoder, one latent's numbers side by side.
    b_enc : Tensor [latents]
        Encoder bias.
    W_dec : Tensor [latents, width]
        Decoder; a latent's row is its direction.
    b_dec : Tensor [width]
        Decoder bias.
    b_pre : Tensor [width]
        Taken from the scaled input before it is encoded; zeros where there is none.
    activation : "topk", "relu" or "jumprelu"
        The k largest scores, then ReLU; all positive scores; scores above their latent's threshold.
    hook_in, hook_out : str
        Hook points that are read and reconstructed; the same for an autoencoder. Several that are read side by side (a
        crosscoder) are joined by a plus between blanks; `hooks_in` and `hooks_out` part them.
    k : int, optional
        Of "topk".
    threshold : Tensor [latents], optional
        Of "jumprelu".
    scale : float
        Inputs are multiplied by it.
    normalisation : "none", "centre", "layer_norm" or "unit_norm"
        What is done to each row first: nothing; its mean taken off; that, and its standard deviation divided by; its
        norm brought to sqrt(width).
    subject_address, subject_fingerprint : str
        The subject that it was trained on; the fingerprint is "" where it is not known.
    address : str
        Where it was loaded from.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor
    activation: Activation
    hook_in: str
    hook_out: str
    k: int | None = None
    threshold: Tensor | None = None
    scale: float = 1.0
    normalisation: Normalisation = "none"
    subject_address: str = ""
    subject_fingerprint: str = ""
    address: str = ""

    def __post_init__(self) -> None:
        latents, width = self.W_enc.shape
        wanted = {"b_enc": (latents,), "b_pre": (width,), "W_dec": (latents, self.b_dec.shape[0])}
        if self.activation == "jumprelu":
            wanted["threshold"] = (latents,)
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is None or tuple(tensor.shape) != shape:
                got = "missing" if tensor is None else tuple(tensor.shape)
                raise UserError(f"dictionary {self.address}: {name} is {got}, must be {shape} to fit W_enc and b_dec")
        if self.activation not in get_args(Activation):
            raise UserError(
                f"dictionary {self.address}: activation {self.activation!r}: topk, relu and jumprelu are known"
            )
        if self.normalisation not in get_args(Normalisation):
            raise UserError(
                f"dictionary {self.address}: rows normalised by {self.normalisation!r}: "
                f"{', '.join(get_args(Normalisation))} are known"
            )
        held: set[int] = set()
        for name, tensor in self.tensors().items():  # safetensors refuses tensors that share memory: tied weights, say
            if tensor.data_ptr() in held:
                object.__setattr__(self, name, tensor.clone())
            held.add(tensor.data_ptr())
        if self.activation == "topk" and not 1 <= (self.k or 0) <= latents:
            raise UserError(f"dictionary {self.address}: k={self.k} must be between 1 and {latents}, its latents")

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return int(self.W_enc.shape[0])

    @property
    def width(self) -> int:
        """Width of the hook point that is read."""
        return int(self.W_enc.shape[1])

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """Hook points that are read, side by side in this order."""
        return tuple(self.hook_in.split(JOIN))

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """Hook points that are reconstructed, side by side in this order."""
        return tuple(self.hook_out.split(JOIN))

    # --- use ------------------------------------------------------------------------------------------------------
    def rows_in(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what is read, [rows, width], from each hook point's rows [rows, ...]."""
        return side_by_side(batch, self.hooks_in)

    def rows_out(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what is to be reconstructed, [rows, width of hook_out], from each hook point's rows [rows, ...]."""
        return side_by_side(batch, self.hooks_out)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the active latents of each row.

        Parameters
        ----------
        x : Tensor [rows, width]
            Activations as the subject gives them; converted to the dictionary's dtype.

        Returns
        -------
        values : Tensor [rows, n]
            Activations, descending, zero where a row has fewer than n active latents. n is k for "topk", for the
            others the largest number of active latents in the batch (at least 1).
        indices : int64 Tensor [rows, n]
            Their latents.
        """
        scaled = self._scaled(x)
        if self.activation == "topk":
            assert self.k is not None
            values, indices = topk_encode(scaled, self.W_enc, self.b_enc, self.k)
            return values.relu(), indices
        parts = [self._active(rows) for rows in torch.split(scaled, ROWS_AT_ONCE)]
        n = max(values.shape[1] for values, _ in parts)
        values = torch.cat([torch.nn.functional.pad(values, (0, n - values.shape[1])) for values, _ in parts])
        return values, torch.cat([torch.nn.functional.pad(where, (0, n - where.shape[1])) for _, where in parts])

    def _scaled(self, x: Tensor) -> Tensor:
        """Return rows as the encoder takes them."""
        rows = x.to(self.W_enc.dtype)
        if self.normalisation != "none":
            mean, length = self._of_rows(rows)
            rows = (rows - mean) / (length + NORM_EPSILON * (self.normalisation == "layer_norm"))
        return (rows if self.scale == 1 else self.scale * rows) - self.b_pre

    def _of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what normalisation takes from each row, and what it divides by, [rows, 1] each."""
        if self.normalisation in ("centre", "layer_norm"):
            mean = rows.mean(1, keepdim=True)
            centred = self.normalisation == "centre"
            return mean, torch.ones_like(mean) if centred else (rows - mean).std(1, keepdim=True)
        length = rows.norm(dim=1, keepdim=True) / self.width**0.5
        return torch.zeros_like(length), length.clamp_min(torch.finfo(length.dtype).tiny)

    def _active(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        codes = self._gated(scaled @ self.W_enc.T + self.b_enc)
        n = max(1, int((codes > 0).sum(1).max())) if len(codes) else 1
        values, indices = codes.topk(n, dim=1)
        return values, indices

    def _gated(self, scores: Tensor) -> Tensor:
        return scores.relu() if self.threshold is None else scores.relu() * (scores > self.threshold)

    def encode_dense(self, x: Tensor) -> Tensor:
        """Return every latent's activation, x [rows, width] -> [rows, latents]; as many numbers as that says."""
        if self.activation != "topk":
            return self._gated(self._scaled(x) @ self.W_enc.T + self.b_enc)
        values, indices = self.encode(x)
        return values.new_zeros(len(x), self.n_latents).scatter(1, indices, values)

    def decode(self, values: Tensor, indices: Tensor, x: Tensor | None = None) -> Tensor:
        """Return reconstructions in the subject's own scale.

        Parameters
        ----------
        values, indices : Tensor [rows, n]
            From `encode`.
        x : Tensor [rows, width], optional
            The rows that were encoded; needed where rows are normalised, as each is brought back by its own numbers.

        Returns
        -------
        Tensor [rows, width of hook_out]

        Raises
        ------
        UserError
            If rows are normalised and `x` is not given.
        """
        out = sparse_decode(values, indices, self.W_dec, self.b_dec) / self.scale
        if self.normalisation == "none":
            return out
        if x is None:
            raise UserError(
                f"dictionary {self.address} normalises each row by itself ({self.normalisation}): give decode the rows "
                "that were encoded, decode(values, indices, x)"
            )
        mean, length = self._of_rows(x.to(self.W_enc.dtype))
        return out * length + mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode, x [rows, width] -> [rows, width of hook_out], in the dictionary's dtype."""
        return self.decode(*self.encode(x), x)

    def edit(self, *, special: bool = False) -> Edit:
        """Return an edit that puts the reconstruction in the activation's place.

        Parameters
        ----------
        special : bool
            Reconstruct special tokens (beginning of sequence, class token, …) too. By default they are left as they
            are: dictionaries are trained without them, and their activations are often far outside the rest.

        Returns
        -------
        function
            For ``subject.run(batch, edits={dictionary.hook_out: dictionary.edit()})``. Padding is left as it is.

        Raises
        ------
        UserError
            For a dictionary that reads another hook point than it reconstructs; when used, for an activation of
            another width or another hook point.
        """
        from workbench.splice import reconstruction_of

        return reconstruction_of(self, special=special)

    def edits(self, *, special: bool = False) -> dict[str, Edit]:
        """Return edits that put the reconstruction in place, for transcoders too.

        Parameters
        ----------
        special : bool
            As in `edit`.

        Returns
        -------
        dict of str to function
            For ``subject.run(batch, edits=dictionary.edits())``. A transcoder's hook points that are read are left as
            they are, and remembered until the forward pass comes to the one that is written.

        Raises
        ------
        UserError
            For a dictionary that reconstructs several hook points (a crosscoder); when used, if a hook point that is
            read comes after the one that is written.
        """
        from workbench.splice import edits_of

        return edits_of(self, special=special)

    def steer(self, latent: int, by: float, *, special: bool = False) -> dict[str, Edit]:
        """Return edits that add a latent's direction, as if its activation were `by` higher.

        Parameters
        ----------
        latent : int
            0 to latents - 1.
        by : float
            In the latent's own units (its activations tell what is much); may be negative.
        special : bool
            At special tokens too.

        Returns
        -------
        dict of str to function
            For ``subject.run(batch, edits=...)`` and ``subject.generate(prompt, edits=...)``.

        Raises
        ------
        UserError
            If there is no such latent; see also `edits`.
        """
        from workbench.latent_edits import steering

        return steering(self, latent, by, special=special)

    def clamp(self, latent: int, to: float, *, special: bool = False) -> dict[str, Edit]:
        """Return edits that hold a latent at an activation, whatever it would be; the dictionary's error is kept.

        Parameters
        ----------
        latent : int
            0 to latents - 1.
        to : float
            In the latent's own units.
        special : bool
            At special tokens too.
        """
        from workbench.latent_edits import clamping

        return clamping(self, {latent: to}, special=special)

    def ablate(self, latents: int | Iterable[int], *, special: bool = False) -> dict[str, Edit]:
        """Return edits that take away what some latents write and leave all else, the dictionary's error included.

        Parameters
        ----------
        latents : int or several
            0 to latents - 1 each.
        special : bool
            At special tokens too.
        """
        from workbench.latent_edits import clamping

        chosen = [latents] if isinstance(latents, int) else list(latents)
        return clamping(self, dict.fromkeys(chosen, 0.0), special=special)

    def check_subject(self, subject: Subject, *, other: bool = False) -> None:
        """Refuse a subject that this dictionary was not trained on.

        Parameters
        ----------
        subject : Subject
            That it is to be used with.
        other : bool
            Allow a subject with another fingerprint (a fine-tuned one, say); the log then says so.

        Raises
        ------
        UserError
            If the subject has another fingerprint (unless `other`) or lacks a hook point. A dictionary whose subject
            is not known (SAELens's layout has no fingerprint) is let through with a warning in the log.
        """
        subject.expand([*self.hooks_in, *self.hooks_out])
        if not self.subject_fingerprint:
            log.warning(
                "dictionary %s does not say which weights it was trained on (%s): it is used on %s unchecked",
                self.address, self.subject_address or "no subject named", subject.address,
            )  # fmt: skip
            return
        found = subject.fingerprint()
        if found == self.subject_fingerprint:
            return
        difference = (
            f"dictionary {self.address} was trained on {self.subject_address} (fingerprint "
            f"{self.subject_fingerprint[:12]}), but {subject.address} has fingerprint {found[:12]}"
        )
        if not other:
            raise UserError(f"{difference}: give the subject it was trained on, or allow another one explicitly")
        log.warning("%s: allowed as asked", difference)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Dictionary:
        """Return the dictionary on another device or in another dtype (itself if nothing changes)."""
        moved = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors().items()}
        if all(moved[name] is tensor for name, tensor in self.tensors().items()):
            return self
        return replace(self, **moved)  # type: ignore[arg-type]  # tensors only, checked anew by __post_init__

    # --- identity and files ---------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre", "threshold")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def config(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON values."""
        newer = {} if self.normalisation == "none" else {"normalisation": self.normalisation}
        return {
            "schema": SCHEMA if newer else 1,
            "activation": self.activation,
            "k": self.k,
            "hook_in": self.hook_in,
            "hook_out": self.hook_out,
            "scale": self.scale,
            **newer,
            "subject": {"address": self.subject_address, "fingerprint": self.subject_fingerprint},
        }

    def fingerprint(self) -> str:
        """Return a hash of configuration and weights, whatever device they are on and whoever holds them."""
        digest = xxhash.xxh3_128(json.dumps(self.config(), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: str | Path, *, layout: Layout = "workbench") -> None:
        """Write a folder that `load_dictionary` reads, made if missing.

        Parameters
        ----------
        folder : path
            Where to.
        layout : "workbench" or "saelens"
            ``dictionary.safetensors`` and ``dictionary.json``; or the files of SAELens 6, for
            ``sae_lens.SAE.load_from_disk`` (see `workbench.dictionary_saelens.save_saelens`).
        """
        folder = Path(folder)
        if layout == "saelens":
            from workbench.dictionary_saelens import save_saelens

            save_saelens(self, folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(weights, folder / "dictionary.safetensors")
        (folder / "dictionary.json").write_text(json.dumps(self.config(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], address: str = "") -> Dictionary:
        """Put together what `tensors` and `config` take apart.

        Raises
        ------
        UserError
            If a tensor or a setting is missing, does not fit, or comes from a newer version.
        """
        if config.get("schema", SCHEMA) > SCHEMA:
            raise UserError(f"dictionary {address} was written by a newer version (schema {config['schema']})")
        try:
            weights = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre")}
            return cls(
                **weights,
                activation=config["activation"],
                hook_in=config["hook_in"],
                hook_out=config["hook_out"],
                k=config["k"],
                threshold=tensors.get("threshold"),
                scale=float(config["scale"]),
                normalisation=config.get("normalisation", "none"),
                subject_address=config["subject"]["address"],
                subject_fingerprint=config["subject"]["fingerprint"],
                address=address,
            )
        except KeyError as missing:
            raise UserError(f"dictionary {address} is incomplete: {missing.args[0]} is missing") from None

    def __repr__(self) -> str:
        what = f"topk, k={self.k}" if self.activation == "topk" else self.activation
        where = self.hook_in if self.hook_in == self.hook_out else f"{self.hook_in} -> {self.hook_out}"
        return f"Dictionary({self.address!r}, {self.n_latents} latents, width {self.width}, {what}, at {where})"


def side_by_side(batch: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Lay the rows [rows, ...] of some hook points side by side, trailing axes flattened: [rows, sum of widths]."""
    parts = [batch[name].flatten(1) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def load_dictionary(address: str | Path, *, device: str = "cpu") -> Dictionary:
    """Load a dictionary.

    Parameters
    ----------
    address : str or Path
        A run folder of ``sae``, a folder that `Dictionary.save` wrote, a folder in SAELens's layout, or
        ``saelens:RELEASE/ID`` (downloaded by sae_lens).
    device : str
        Where its weights go.

    Raises
    ------
    UserError
        If there is no dictionary at the address, or it is of a kind that is not supported.
    """
    from workbench.dictionary_formats import read_dictionary

    return read_dictionary(str(address)).to(device)
