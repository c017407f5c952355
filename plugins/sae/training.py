"""The training loop: seeded, resumable to the same bits, with checkpoints that are there whole or not at all."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.adam import adam

from workbench.errors import UserError
from workbench.plugins.sae.loss import Weights, losses
from workbench.plugins.sae.settings import Settings
from workbench.progress import Ticker

HISTORY = ("error", "auxiliary", "dead", "lr")
CHECKS = 40  # looks at held-out rows in a training
ADAM_EPSILON = 6.25e-10  # Gao et al. 2024; gradients of a normalised error are small


class Pass(Protocol):
    """One pass over the training rows, such as `Store.shuffled` gives."""

    def __iter__(self) -> Iterator[Any]:
        """Give batches, Tensors [rows, ...]."""

    def state(self) -> Mapping[str, Any]:
        """Return what is needed to go on after the last batch; JSON values."""


Source = Callable[[int, "Mapping[str, Any] | None"], Pass]
"""``source(epoch, state)`` starts an epoch, or goes on with it."""


class Trainer:
    """A training under way.

    Parameters
    ----------
    settings : Settings
        All numbers.
    weights : Weights
        Where it starts; trained in place.
    scale : float
        Rows are multiplied by it.
    variance : float
        Of an entry of the scaled rows.
    validation : Tensor [rows, width]
        Scaled held-out rows, looked at now and then.

    Attributes
    ----------
    step, rows_done : int
        Progress.
    history : Tensor [steps, 4]
        For each step what `HISTORY` names: error, auxiliary loss, number of dead latents, learning rate.
    checks : list of (int, float)
        Rows done and explained variance on `validation`.
    last_fired : int64 Tensor [latents]
        Rows done when a latent was last active.
    """

    def __init__(self, settings: Settings, weights: Weights, scale: float, variance: float, validation: Tensor) -> None:
        self.settings, self.weights, self.scale, self.variance = settings, weights, scale, variance
        self.validation = validation
        for tensor in weights.named().values():
            tensor.requires_grad_()
        self.adam = Adam(weights)
        self.step = self.rows_done = self.epoch = 0
        self.loader: Mapping[str, Any] | None = None
        self.history = torch.zeros(settings.n_steps, len(HISTORY), dtype=torch.float64)
        self.checks: list[tuple[int, float]] = []
        self.last_fired = torch.zeros(settings.latents, dtype=torch.int64, device=weights.W_enc.device)

    def train(self, source: Source, checkpoint: Path, checkpoint_s: float, ticker: Ticker) -> None:
        """Train to the end, from wherever it stands.

        Parameters
        ----------
        source : callable
            Starts or continues an epoch.
        checkpoint : Path
            File that is replaced every `checkpoint_s` seconds, and once at the end.
        checkpoint_s : float
            Time between checkpoints.
        ticker : Ticker
            Shown progress, in rows.
        """
        saved = time.monotonic()
        while self.rows_done < self.settings.rows:
            batches = source(self.epoch, self.loader)
            for batch in batches:
                rows = batch[: self.settings.rows - self.rows_done]
                self.one_step(rows)
                self.loader = batches.state()
                ticker.advance(len(rows))
                if self.rows_done >= self.settings.rows:
                    break
                if time.monotonic() - saved >= checkpoint_s:
                    self.save(checkpoint)
                    saved = time.monotonic()
                if self.step % 20 == 0:
                    error, _, dead, _ = self.history[self.step - 1].tolist()
                    ticker.update(explained=1 - error, dead=int(dead))
            self.epoch, self.loader = self.epoch + 1, None
        self.save(checkpoint)

    def one_step(self, batch: Tensor) -> None:
        """Take one step of Adam on rows [rows, ...] as the store has them."""
        weights, settings = self.weights, self.settings
        x = self.scaled(batch)
        dead = (self.rows_done - self.last_fired > settings.dead_after).nonzero().squeeze(1)
        found = losses(x, weights, self.variance, dead, settings)
        error = float(found.error)
        if not math.isfinite(error):
            raise UserError(
                f"training has failed at row {self.rows_done:,}: the error is {error}; either the store holds NaN or "
                f"infinity, or the learning rate {settings.lr:.3g} is too high (train.lr)"
            )
        for parameter, grad in zip(
            weights.named().values(), torch.autograd.grad(found.total, list(weights.named().values())), strict=True
        ):
            parameter.grad = grad
        lr = settings.lr_at(self.rows_done)
        with torch.no_grad():
            remove_parallel(weights.W_dec)
            self.adam.step(lr)
            weights.W_dec /= weights.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.rows_done += len(batch)
        self.last_fired[found.fired] = self.rows_done
        self.history[self.step] = torch.tensor([error, float(found.auxiliary), len(dead), lr])
        self.step += 1
        if self.step % max(1, settings.n_steps // CHECKS) == 0 or self.step == settings.n_steps:
            self.checks.append((self.rows_done, self.explained_variance()))

    def scaled(self, batch: Tensor) -> Tensor:
        """Return rows as the autoencoder reads them: trailing axes side by side, float32, on its device, scaled."""
        return self.scale * batch.flatten(1).to(self.weights.W_enc.device, torch.float32)

    @torch.no_grad()
    def explained_variance(self) -> float:
        """Return the share of the validation rows' variance that is explained."""
        nobody = self.last_fired[:0]
        error = losses(self.validation, self.weights, 1.0, nobody, self.settings).error
        return float(1 - error / (self.validation - self.validation.mean(0)).pow(2).mean())

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the file is replaced as a whole."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.weights.named().items()}
        tensors |= self.adam.state()
        tensors |= {"history": self.history, "last_fired": self.last_fired}
        meta = {
            "settings": self.settings.to_json(),
            "step": self.step,
            "rows_done": self.rows_done,
            "epoch": self.epoch,
            "loader": None if self.loader is None else dict(self.loader),
            "checks": self.checks,
            "scale": self.scale,
            "variance": self.variance,
        }
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"state": json.dumps(meta)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def load(self, path: Path) -> bool:
        """Go on from a checkpoint of the same settings; returns whether there was one."""
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
            if (meta["settings"], meta["scale"], meta["variance"]) != (
                self.settings.to_json(),
                self.scale,
                self.variance,
            ):
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        with torch.no_grad():
            for name, parameter in self.weights.named().items():
                parameter.copy_(tensors[name])
        self.adam.load(tensors)
        self.history = tensors["history"]
        self.last_fired = tensors["last_fired"].to(self.last_fired.device)
        self.step, self.rows_done, self.epoch = meta["step"], meta["rows_done"], meta["epoch"]
        self.loader, self.checks = meta["loader"], [tuple(check) for check in meta["checks"]]
        return True


class Adam:
    """Adam (Kingma & Ba 2015) by torch's own functional form; the class of `torch.optim` imports torch's compiler."""

    def __init__(self, weights: Weights) -> None:
        self.parameters = weights.named()
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.steps = {name: torch.zeros((), device=parameter.device) for name, parameter in self.parameters.items()}

    def step(self, lr: float) -> None:
        """Move the parameters against their gradients."""
        adam(
            list(self.parameters.values()),
            [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None],
            list(self.first.values()),
            list(self.second.values()),
            [],
            list(self.steps.values()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=0.0,
            eps=ADAM_EPSILON,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts by name."""
        parts = {"first": self.first, "second": self.second, "steps": self.steps}
        return {f"adam.{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the moments and step counts from what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


def remove_parallel(W_dec: Tensor) -> None:
    """Take from the gradient of each decoder row its part along the row, which would only change the row's length."""
    assert W_dec.grad is not None
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
