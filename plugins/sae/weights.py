"""The parameters of a dictionary in training, and where they start."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workbench.kernels.topk import scatter_outer, sparse_decode, topk_encode
from workbench.plugins.sae.settings import Settings

MEDIAN_STEPS = 32


@dataclass
class Weights:
    """Parameters on rows that are already scaled.

    Attributes
    ----------
    W_enc : Tensor [latents, width read]
        Encoder.
    b_enc : Tensor [latents]
        Its bias.
    W_dec : Tensor [latents, width written]
        Decoder; unit rows.
    b_dec : Tensor [width written]
        Its bias; also taken from what is read (the pre-bias), unless `b_pre` is given.
    extra : dict of str to Tensor
        What one architecture trains beside these, each [latents].
    b_pre : Tensor [width read], optional
        Pre-bias that is not trained, where what is read is not what is written.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    b_pre: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Return what is trained, by name."""
        common = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return common | self.extra

    def centred(self, x: Tensor) -> Tensor:
        """Take the pre-bias from rows [rows, width read]."""
        return x - (self.b_dec if self.b_pre is None else self.b_pre)

    def encode(self, centred: Tensor, k: int, *, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores and latents [rows, k] of the k best, for rows [rows, width read] without the pre-bias.

        `among`, int64 [n], are the latents to choose among.
        """
        if among is None:
            return topk_encode(centred, self.W_enc, self.b_enc, k)
        values, places = topk_encode(centred, self.W_enc[among], self.b_enc[among], k)
        return values, among[places]

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return sums of decoder rows [rows, width written], without the bias, for activations [rows, n]."""
        return sparse_decode(values, indices, self.W_dec)

    def error(self, values: Tensor, indices: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared error of a reconstruction of y [rows, width written], mean of an entry, and what is left.

        Activations are [rows, n]; what is left over is [rows, width written].
        """
        left = y - (self.decode(values, indices) + self.b_dec).to(y.dtype)
        return left.pow(2).mean(), left

    def to(self, dtype: torch.dtype) -> Weights:
        """Return the weights in another dtype, in the graph; themselves where nothing changes."""
        if self.W_enc.dtype == dtype:
            return self
        moved = {name: tensor.to(dtype) for name, tensor in self.named().items()}
        common = {name: moved.pop(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, **common, extra=moved, b_pre=None if self.b_pre is None else self.b_pre.to(dtype))


def start(x: Tensor, y: Tensor, settings: Settings, generator: torch.Generator) -> Weights:
    """Return the weights before the first step, without those that one architecture alone has.

    Parameters
    ----------
    x, y : Tensor [rows, width read], [rows, width written]
        Scaled training rows; the same tensor for an autoencoder.
    settings : Settings
        Sizes, and how the pre-bias starts.
    generator : torch.Generator
        On the CPU, so that every device starts alike.

    Notes
    -----
    Decoder rows are random unit vectors and the encoder is their copy, as in Gao et al. 2024, times the factor with
    which the first reconstruction, from the k best latents, has the least error. Where something else is written than
    read, a latent's encoder row is random, and its decoder row the direction of what is written when it is active.
    """
    same = x is y
    read, written = (each.mean(0) if settings.centre == "mean" else geometric_median(each) for each in (x, y))
    W_enc = unit_rows(settings.latents, settings.width, generator).to(x.device)
    b_enc = W_enc.new_zeros(settings.latents)
    values, indices = topk_encode(x - read, W_enc, b_enc, settings.k)
    W_dec = W_enc
    if not same:
        W_dec = what_follows(values.relu(), indices, y - written, settings.latents, generator)
    first = sparse_decode(values.relu(), indices, W_dec)
    factor = ((y - written) * first).sum() / first.pow(2).sum().clamp_min(1e-12)
    return Weights(factor * W_enc, b_enc, W_dec, written, b_pre=None if same else read)


def what_follows(values: Tensor, indices: Tensor, y: Tensor, n_latents: int, generator: torch.Generator) -> Tensor:
    """Return for each latent the direction of rows y [rows, width] weighed by its activation, at random without any."""
    follows = scatter_outer(values, indices, y.contiguous(), n_latents)
    silent = follows.norm(dim=1) == 0
    follows[silent] = unit_rows(int(silent.sum()), y.shape[1], generator).to(y.device)
    return torch.nn.functional.normalize(follows, dim=1)


def unit_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return random directions [rows, width], on the CPU."""
    drawn = torch.randn(rows, width, generator=generator)
    drawn /= drawn.norm(dim=1, keepdim=True)
    return drawn


def geometric_median(x: Tensor) -> Tensor:
    """Return the point with the smallest summed distance to the rows of x [rows, width], by Weiszfeld's iteration."""
    centre = x.mean(0)
    for _ in range(MEDIAN_STEPS):
        nearness = 1 / (x - centre).norm(dim=1).clamp_min(1e-6)
        centre = (x * nearness[:, None]).sum(0) / nearness.sum()
    return centre
