"""Heads scored by the codes that a sparse autoencoder gives their outputs (O'Neill & Bui, arXiv:2405.12522).

One small autoencoder for all heads is trained on a few prompts; a head's code on a prompt is its largest latent. A head
with codes that occur on prompts of the task and on none of the negative ones is taken to serve the task. This is no
causal score: it sees that an output takes values that it does not take otherwise, and nothing of what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from workbench.plugins.circuit.counting import appearances, count_nodes, count_pairs, share_nodes

BLOCK = 8192  # rows encoded at once
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class SaeSettings:
    """How the autoencoders are trained; defaults are the paper's.

    Attributes
    ----------
    latents : int
        Codes.
    penalty : float
        λ of the loss ``mean((x̂ − x)²) + λ · mean over rows of ‖c‖₁``, of which only the first is divided by d_model.
    steps, lr : int, float
        Of Adam, each step on all training rows.
    train_examples : int
        Prompts that it is trained on, drawn from all.
    scaled : bool
        Divide outputs by their root mean square (one number for all). Without, the penalty can kill every latent.
    """

    latents: int = 200
    penalty: float = 0.02
    steps: int = 500
    lr: float = 1e-3
    train_examples: int = 10
    scaled: bool = True


@dataclass(frozen=True)
class Codes:
    """Codes of all heads on all prompts, for each of several autoencoders.

    Attributes
    ----------
    codes : int array [seed, example, head]
        The largest latent; 0 where none is active.
    n_positive : int
        The first so many examples are of the task, the others negative.
    silent : float array [seed]
        Share of head outputs on which no latent is active.
    unexplained : float array [seed]
        Squared error of the reconstructions as a share of the outputs' variance.
    """

    codes: np.ndarray
    n_positive: int
    silent: np.ndarray
    unexplained: np.ndarray

    def parts(self, seed: int) -> tuple[Int[np.ndarray, "positives heads"], Int[np.ndarray, "negatives heads"]]:
        """Return the codes of positive and of negative examples."""
        return self.codes[seed, : self.n_positive], self.codes[seed, self.n_positive :]

    def node_scores(self, *, share: bool = False) -> Float[np.ndarray, "seed head"]:
        """Return for each head how many codes it has on positive examples only, or their share of all its codes."""
        count = share_nodes if share else count_nodes
        return np.stack([count(*self.parts(seed)) for seed in range(len(self.codes))]).astype(np.float64)

    def pair_scores(self) -> Float[np.ndarray, "seed head head"]:
        """Return for each two heads how many pairs of codes they have together on positive examples only."""
        return np.stack([count_pairs(*self.parts(seed)) for seed in range(len(self.codes))]).astype(np.float64)


def node_via_pairs(pairs: Float[np.ndarray, "seed head head"]) -> Float[np.ndarray, "seed head"]:
    """Return heads' scores by their pairs: what the paper calls edges (see `appearances`)."""
    return np.stack([appearances(each) for each in pairs]).astype(np.float64)


def discrete_codes(
    X: Float[np.ndarray, "example head d_model"],
    n_positive: int,
    rngs: Sequence[np.random.Generator],
    settings: SaeSettings | None = None,
    on_step: Callable[[], object] | None = None,
) -> Codes:
    """Train an autoencoder for each generator, side by side, and return the codes of all heads on all prompts.

    Parameters
    ----------
    X : np.ndarray
        Outputs of heads, averaged over positions; positive examples first.
    n_positive : int
        How many are positive.
    rngs : sequence of np.random.Generator
        One for each autoencoder: draws its training prompts and its weights.
    settings : SaeSettings, optional
        The paper's, with scaled outputs, if not given.
    on_step : callable, optional
        Called after each step of training.

    Raises
    ------
    ValueError
        If there are fewer prompts than it is trained on, none positive or none negative, or all outputs are zero.
    """
    settings = settings or SaeSettings()
    n, n_heads, d_model = X.shape
    if not 0 < n_positive < n or n < settings.train_examples:
        raise ValueError(
            f"{n_positive} positive and {n - n_positive} negative prompts: there must be some of each, and at least "
            f"the {settings.train_examples} of the training"
        )
    rms = float(np.sqrt(np.mean(np.square(X, dtype=np.float64))))
    if rms == 0 or not np.isfinite(rms):
        raise ValueError(f"the outputs of heads have root mean square {rms}: nothing to encode")
    scaled = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32) / (rms if settings.scaled else 1.0))
    drawn = [rng.choice(n, settings.train_examples, replace=False) for rng in rngs]
    rows = torch.stack([scaled[np.sort(at)].reshape(-1, d_model) for at in drawn])
    model = DiscreteSaes(d_model, settings.latents, rngs)
    model.fit(rows, settings, on_step)
    codes, silent, error = model.encode(scaled.reshape(-1, d_model))
    flat = scaled.reshape(-1, d_model).double()
    variance = float((flat - flat.mean(0)).pow(2).mean())
    return Codes(codes.reshape(len(rngs), n, n_heads), n_positive, silent, error / max(variance, 1e-30))


class DiscreteSaes:
    """Several autoencoders that are trained side by side, each on rows of its own.

    ``c = ReLU(W_e (x − b) + b_e)``, ``x̂ = W_d c + b``; b and b_e begin at 0. The rows of both weights have unit length
    at every pass (a row of W_d runs over latents, not over d_model), and what of a gradient is parallel to its row is
    removed.

    Parameters
    ----------
    d_model, latents : int
        Sizes.
    rngs : sequence of np.random.Generator
        One for each, for its weights.
    """

    def __init__(self, d_model: int, latents: int, rngs: Sequence[np.random.Generator]) -> None:
        def drawn(*shape: int) -> Tensor:
            values = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
            return torch.from_numpy(values).requires_grad_()

        self.W_e, self.W_d = drawn(latents, d_model), drawn(d_model, latents)  # with a first axis: which of them
        self.b = torch.zeros(len(rngs), 1, d_model, requires_grad=True)
        self.b_e = torch.zeros(len(rngs), 1, latents, requires_grad=True)

    def normalise(self) -> None:
        """Give every row of the weights unit length."""
        for weight in (self.W_e, self.W_d):
            weight.data = F.normalize(weight.data, dim=-1)

    def __call__(self, x: Float[Tensor, "sae row d_model"]) -> tuple[Tensor, Tensor]:
        """Return latents [sae, row, latent] and reconstructions [sae, row, d_model]; rows must have unit length."""
        c = torch.relu((x - self.b) @ self.W_e.transpose(1, 2) + self.b_e)
        return c, c @ self.W_d.transpose(1, 2) + self.b

    def fit(
        self, x: Float[Tensor, "sae row d_model"], settings: SaeSettings, on_step: Callable[[], object] | None = None
    ) -> None:
        """Train, every step on all rows."""
        parameters = [self.W_e, self.W_d, self.b, self.b_e]
        moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in parameters]
        for step in range(1, settings.steps + 1):
            self.normalise()
            c, x_hat = self(x)
            # c is never negative, so its sum is its norm; the sum over autoencoders keeps each one's gradient its own
            loss = (x_hat - x).pow(2).mean((1, 2)) + settings.penalty * c.sum(2).mean(1)
            gradients = torch.autograd.grad(loss.sum(), parameters)
            with torch.no_grad():
                for parameter, gradient, (mean, square) in zip(parameters, gradients, moments, strict=True):
                    if parameter is self.W_e or parameter is self.W_d:
                        gradient = gradient - (gradient * parameter).sum(-1, keepdim=True) * parameter
                    # Adam by hand: importing torch.optim takes longer than training
                    mean.lerp_(gradient, 1 - BETAS[0])
                    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                    scale = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
                    parameter.addcdiv_(mean, scale, value=-settings.lr / (1 - BETAS[0] ** step))
            if on_step is not None:
                on_step()
        self.normalise()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_model"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return codes [sae, row], the share of rows without an active latent, and the mean squared error, [sae]."""
        n_saes = len(self.W_e)
        codes = np.zeros((n_saes, len(x)), dtype=np.int64)
        silent, error = np.zeros(n_saes), np.zeros(n_saes)
        for start in range(0, len(x), BLOCK):
            block = x[start : start + BLOCK]
            c, x_hat = self(block[None].expand(n_saes, -1, -1))
            codes[:, start : start + len(block)] = c.argmax(2).numpy()  # the first of equal ones: 0 where all are 0
            silent += (c.amax(2) == 0).sum(1).numpy()
            error += (x_hat - block).double().pow(2).mean(2).sum(1).numpy()
        return codes, silent / len(x), error / len(x)
