"""Ways to encode with, and to train, a TopK autoencoder: ours, and the libraries' own.

Every way starts from the same weights. `loss` is the mean over rows of the squared error, summed over the width; a
`step` is forward, backward and Adam, as the library itself does it. What a library does beside that is said with it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from topk_sae_data import Task
from torch import Tensor

from workbench.kernels.choice import use
from workbench.kernels.topk import topk_encode
from workbench.kernels.training import FactoredAdam, LatentMatrix

LR = 1e-5  # weights hardly move, so that every step is as hard as the first


class Way:
    """A way: made from a task's own copy of the weights."""

    def __init__(self, task: Task, k: int) -> None:
        self.x, self.k = task.x, k
        self.weights = Task(task.x, *(t.clone() for t in (task.W_enc, task.b_enc, task.W_dec, task.b_dec)))

    def encode(self) -> object:
        """Find the active latents."""
        raise NotImplementedError

    def step(self) -> object:
        """Take a training step."""
        raise NotImplementedError

    def loss(self) -> float:
        """Return the loss of the weights as they are."""
        raise NotImplementedError


class Ours(Way):
    """Factored gradients, Adam inside the gradient loop."""

    kernel = "auto"

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        own = self.weights
        self.b_dec = own.b_dec.requires_grad_()
        self.encoder, self.decoder = LatentMatrix(own.W_enc, own.b_enc), LatentMatrix(own.W_dec)
        self.adam = FactoredAdam({"encoder": self.encoder, "decoder": self.decoder}, {"b_dec": self.b_dec}, lr=LR)

    def forward(self) -> Tensor:
        values, indices = self.encoder.encode(self.x, self.k, centre=self.b_dec)
        return self.decoder.decode_error(values.relu(), indices, self.b_dec, self.x)[0].mean()

    def encode(self) -> tuple[Tensor, Tensor]:
        own = self.weights
        with use(self.kernel), torch.no_grad():
            return topk_encode(self.x - own.b_dec, own.W_enc, own.b_enc, self.k)

    def step(self) -> None:
        with use(self.kernel):
            self.forward().backward()
            self.adam.step()

    def loss(self) -> float:
        with use(self.kernel), torch.no_grad():
            return float(self.forward())


class OursUnit(Ours):
    """The same, with gradient projection and decoder normalisation."""

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        self.decoder.unit_rows = True


class OursFloat(Ours):
    """The same on a processor without products of small numbers."""

    screen = "float32"

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        with use("auto") as best:
            assert best.library is not None, f"no compiled kernel: {best.why}"
            self.kernel = f"{best.library.unit.name}:{self.screen}"


class OursInt8(OursFloat):
    """The same with int8, whatever the sizes."""

    screen = "int8"


class OursBfloat16(OursFloat):
    """The same with bfloat16, whatever the sizes."""

    screen = "bfloat16"


class PlainTorch(Way):
    """Dense PyTorch with its fused Adam."""

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        own = self.weights
        self.parameters = [t.requires_grad_() for t in (own.W_enc, own.b_enc, own.W_dec, own.b_dec)]
        self.adam = torch.optim.Adam(self.parameters, lr=LR, fused=True)

    def codes(self) -> Tensor:
        own = self.weights
        scores = torch.addmm(own.b_enc, self.x - own.b_dec, own.W_enc.T)
        top = scores.topk(self.k, dim=1)
        return torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())

    def encode(self) -> object:
        own = self.weights
        with torch.no_grad():
            return torch.addmm(own.b_enc, self.x - own.b_dec, own.W_enc.T).topk(self.k, dim=1)

    def forward(self) -> Tensor:
        own = self.weights
        return (torch.addmm(own.b_dec, self.codes(), own.W_dec) - self.x).pow(2).sum(1).mean()

    def step(self) -> None:
        self.adam.zero_grad()
        self.forward().backward()
        self.adam.step()

    def loss(self) -> float:
        with torch.no_grad():
            return float(self.forward())


class SaeLens(Way):
    """SAELens's trainer: also counts firings."""

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        own, (latents, width) = self.weights, task.W_enc.shape
        config = TopKTrainingSAEConfig(
            d_in=width, d_sae=latents, k=k, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False,
            aux_loss_coefficient=0.0,
        )  # fmt: skip
        self.sae = TopKTrainingSAE(config)
        with torch.no_grad():
            self.sae.W_enc.copy_(own.W_enc.T)
            self.sae.W_dec.copy_(own.W_dec)
            self.sae.b_enc.copy_(own.b_enc)
            self.sae.b_dec.copy_(own.b_dec)
        del self.weights
        trainer = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=10**9,
            device="cpu", autocast=False, lr=LR, lr_end=LR, lr_scheduler_name="constant", lr_warm_up_steps=0,
            adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1,
            train_batch_size_samples=len(task.x), dead_feature_window=10**9, feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer: Any = SAETrainer(trainer, self.sae, iter([]))

    def encode(self) -> object:
        with torch.no_grad():
            return self.sae.encode(self.x)

    def step(self) -> object:
        return self.trainer.step(self.x)

    def loss(self) -> float:
        with torch.no_grad():
            return float((self.sae(self.x) - self.x).pow(2).sum(1).mean())


class Sparsify(Way):
    """eai-sparsify's autoencoder, whose loss is divided by the variance, with torch's fused Adam."""

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        with contextlib.redirect_stdout(io.StringIO()):  # it says at import that there is no Triton
            from sparsify import SparseCoder, SparseCoderConfig

        own, (latents, width) = self.weights, task.W_enc.shape
        self.sae: Any = SparseCoder(width, SparseCoderConfig(num_latents=latents, k=k))
        with torch.no_grad():
            self.sae.encoder.weight.copy_(own.W_enc)
            self.sae.encoder.bias.copy_(own.b_enc)
            self.sae.W_dec.copy_(own.W_dec)
            self.sae.b_dec.copy_(own.b_dec)
        del self.weights
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=LR, fused=True)

    def encode(self) -> object:
        with torch.no_grad():
            return self.sae.encode(self.x)

    def step(self) -> None:
        self.adam.zero_grad()
        self.sae(self.x).fvu.backward()
        self.adam.step()

    def loss(self) -> float:
        with torch.no_grad():
            return float((self.sae(self.x).sae_out - self.x).pow(2).sum(1).mean())


class DictionaryLearning(Way):
    """dictionary-learning's trainer: also clips, projects and normalises, and counts firings."""

    def __init__(self, task: Task, k: int) -> None:
        super().__init__(task, k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dictionary_learning.trainers.top_k import TopKTrainer

        own, (latents, width) = self.weights, task.W_enc.shape
        self.trainer: Any = TopKTrainer(
            steps=10**9, activation_dim=width, dict_size=latents, k=k, layer=0, lm_name="", lr=LR, warmup_steps=0,
            device="cpu",
        )  # fmt: skip
        with torch.no_grad():
            self.trainer.ae.encoder.weight.copy_(own.W_enc)
            self.trainer.ae.encoder.bias.copy_(own.b_enc)
            self.trainer.ae.decoder.weight.copy_(own.W_dec.T)
            self.trainer.ae.b_dec.copy_(own.b_dec)
        del self.weights

    def encode(self) -> object:
        with torch.no_grad():
            return self.trainer.ae.encode(self.x, return_topk=True)

    def step(self) -> object:
        return self.trainer.update(1, self.x)  # 0 would start anew from the rows' median

    def loss(self) -> float:
        with torch.no_grad():
            return float((self.trainer.ae(self.x) - self.x).pow(2).sum(1).mean())


FORCED = {"ours (int8)": OursInt8, "ours (bfloat16)": OursBfloat16}  # only when asked for: not every processor can
OURS = {"ours": Ours, "ours (unit rows)": OursUnit, "ours (float32)": OursFloat, **FORCED}
PEERS = {
    "SAELens": SaeLens,
    "eai-sparsify": Sparsify,
    "dictionary-learning": DictionaryLearning,
    "plain torch": PlainTorch,
}
WAYS: dict[str, type[Way]] = {**OURS, **PEERS}


@contextlib.contextmanager
def floor(task: Task) -> Iterator[Any]:
    """Give the bare float32 product of rows and latents, written to memory that is there already."""
    out = torch.empty(len(task.x), len(task.W_enc))
    yield lambda: torch.mm(task.x, task.W_enc.T, out=out)
