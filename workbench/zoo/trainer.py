"""The training loop of the zoo: seeded, resumable, the same weights however often it was interrupted."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import Batch
from workbench.subjects.tape import Tape
from workbench.zoo.muon import Muon
from workbench.zoo.subject import ZooSubject, write_architecture
from workbench.zoo.text import ZooText

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a zoo subject is trained.

    Attributes
    ----------
    seed : int
        Of the initial weights and of the order of the examples.
    steps : int
        Updates.
    batch_size : int
        Sequences per update.
    lr : float
        Peak learning rate of AdamW.
    weight_decay : float
        Of AdamW and Muon, on matrices only.
    warmup_steps : int
        Over which the rate grows linearly from zero.
    decay_share : float
        Last share of the steps, in (0, 1], over which the rate falls linearly to zero.
    betas : pair of float
        Of AdamW.
    muon_lr : float, optional
        Peak rate of Muon on the blocks' matrices; None trains everything by AdamW.
    precision : "float32" or "bfloat16"
        Of the matrix products (weights and sums stay float32).
    checkpoint_every : int
        Steps between checkpoints.
    init_std : float
        Standard deviation of the matrices at the start.
    """

    seed: int
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    decay_share: float
    betas: tuple[float, float]
    muon_lr: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 100
    init_std: float = 0.02

    def rate(self, step: int) -> float:
        """Return the share of the peak learning rate at a step, 0 <= step < steps."""
        up = (step + 1) / max(1, self.warmup_steps)
        down = (self.steps - step) / (self.decay_share * self.steps)
        return min(1.0, up, down)


class Lesson(ABC):
    """What a subject learns: its shape, its tokenizer (of the `tokenizers` library), and the examples of each step.

    What is not overridden is a decoder's.
    """

    architecture: Any
    recipe: Recipe
    tokenizer: Any
    loss_unit: str = "nats per token"

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the training text and tokenizer: a checkpoint of another is refused."""

    @abstractmethod
    def examples(self, step: int) -> Any:
        """Return what `loss` takes, decided by seed and step alone: tokens [batch, pos] int64 and lengths [batch]."""

    def new_network(self) -> Any:
        """Return the network with random weights, the same for the same seed."""
        return new_decoder(self.architecture, self.recipe.seed, self.recipe.init_std)

    def loss(self, network: Any, examples: Any) -> Tensor:
        """Return the mean loss of the examples of a step, a scalar in the graph."""
        return next_token_losses(network, as_batch(*examples)).mean()

    def as_subject(self, address: str, network: Any) -> Any:
        """Return a trained network as the subject that is measured and fingerprinted."""
        return ZooSubject(address, network, ZooText(self.tokenizer, self.architecture.n_context))

    def write_architecture(self, path: Path) -> None:
        """Write the shape from which the subject is loaded, as JSON."""
        write_architecture(self.architecture, path)


@dataclass
class Progress:
    """Where a training stands.

    Attributes
    ----------
    step, steps : int
        Updates done, and in all.
    losses : list of (int, float)
        Each step's mean loss, in nats (per token, of a decoder).
    seconds : float
        Spent so far, interruptions left out.
    """

    step: int
    steps: int
    losses: list[tuple[int, float]]
    seconds: float = 0.0


def new_decoder(architecture: DecoderArchitecture, seed: int, std: float = 0.02) -> Decoder:
    """Return a decoder with random weights: GPT-2's initialisation (`std` apart), the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(architecture)
    initialise(model, architecture.stack.n_layers, torch.Generator().manual_seed(seed), std)
    return model


def initialise(network: nn.Module, n_layers: int, generator: torch.Generator, std: float = 0.02) -> None:
    """Draw a network's weights as GPT-2's are: matrices of standard deviation `std`, less into the residual stream."""
    shrink = (2 * n_layers) ** -0.5
    for name, parameter in network.named_parameters():
        if parameter.ndim >= 2:
            into_stream = name.endswith((".o.weight", ".outer.weight"))
            nn.init.normal_(parameter, std=std * (shrink if into_stream else 1.0), generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def as_batch(tokens: np.ndarray, lengths: np.ndarray) -> Batch:
    """Return a batch from right-padded tokens [batch, pos] and lengths [batch]; position 0 is special."""
    ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
    positions = torch.arange(ids.shape[1])
    mask = positions < torch.from_numpy(np.ascontiguousarray(lengths, dtype=np.int64))[:, None]
    return Batch(ids, mask, (positions == 0).expand_as(mask))


def next_token_losses(model: Decoder, batch: Batch, first: int = 1) -> Tensor:
    """Return -log p (nats) of each token from position `first` >= 1 on, in one flat tensor; padding left out."""
    logits = model(batch, Tape(model.hook_points(), batch, grad=torch.is_grad_enabled()))
    kept = batch.mask[:, first:]
    return F.cross_entropy(logits[:, first - 1 : -1][kept], batch.inputs[:, first:][kept], reduction="none")


def train(lesson: Lesson, folder: Path, *, on_step: Callable[[Progress], None] | None = None) -> tuple[Any, Progress]:
    """Train a network, continuing from the folder's checkpoint if it holds one.

    Parameters
    ----------
    lesson : Lesson
        What to learn.
    folder : Path
        Holds the checkpoint, which is replaced by one rename.
    on_step : function, optional
        Called after every update; what it raises (KeyboardInterrupt, say) ends the training, which can be resumed.

    Returns
    -------
    network
        As `Lesson.new_network` makes it, in evaluation mode.
    Progress
        With the whole curve of losses.

    Raises
    ------
    UserError
        If the checkpoint belongs to another recipe, architecture or text.
    """
    recipe = lesson.recipe
    identity = json.dumps([lesson.fingerprint(), asdict(recipe), asdict(lesson.architecture)], sort_keys=True)
    model = lesson.new_network().train()
    optimizers = make_optimizers(model, recipe)
    progress = Progress(0, recipe.steps, [])
    path = folder / CHECKPOINT
    if path.exists():
        progress = load_checkpoint(path, identity, model, optimizers)
    while progress.step < recipe.steps:
        began = time.monotonic()
        share = recipe.rate(progress.step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = lesson.loss(model, lesson.examples(progress.step))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        progress.step += 1
        progress.losses.append((progress.step, loss.item()))
        progress.seconds += time.monotonic() - began
        if progress.step % recipe.checkpoint_every == 0 or progress.step == recipe.steps:
            save_checkpoint(path, identity, model, optimizers, progress)
        if on_step is not None:
            on_step(progress)
    return model.eval(), progress


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or AdamW for embeddings, norms and biases and Muon for the blocks' matrices."""
    blocks, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif recipe.muon_lr is not None and ".stack." in f".{name}":
            blocks.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)]
    if blocks:
        assert recipe.muon_lr is not None
        optimizers.append(Muon(blocks, lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a name, the state that holds it and its key, for each tensor an optimizer keeps."""
    for i, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for j, parameter in enumerate(parameters):
            state = optimizer.state[parameter]
            for key in sorted(state):
                yield f"optimizer.{i}.{j}.{key}", state, key


def save_checkpoint(
    path: Path, identity: str, model: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Write weights, optimizer state and progress to one file, by rename."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {name: state[key].contiguous() for name, state, key in optimizer_tensors(optimizers)}
    # Through JSON a float keeps every bit (repr), so the curve of a resumed training is the same file.
    state = {"step": progress.step, "losses": progress.losses, "seconds": progress.seconds}
    metadata = {"identity": identity, "progress": json.dumps(state)}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=metadata)
    part.replace(path)


def load_checkpoint(path: Path, identity: str, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Read a checkpoint into model and optimizers; refuse that of another training."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("identity") != identity:
            raise UserError(
                f"{path} is the checkpoint of another training (seed, steps, text or shape differ): "
                "give the options it was started with, or another --out"
            )
        names = list(file.keys())
        weights = [name for name in names if name.startswith("model.")]
        model.load_state_dict({name.removeprefix("model."): file.get_tensor(name) for name in weights})
        for name in names:
            if name.startswith("optimizer."):
                _, i, j, key = name.split(".")
                optimizer = optimizers[int(i)]
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                optimizer.state[parameters[int(j)]][key] = file.get_tensor(name)
    state = json.loads(metadata["progress"])
    losses = [(int(step), float(loss)) for step, loss in state["losses"]]
    return Progress(state["step"], json.loads(identity)[1]["steps"], losses, state["seconds"])
