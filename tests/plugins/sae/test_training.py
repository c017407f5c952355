"""Training finds planted features, fails to on noise, and goes on after an interruption with the same bits."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.errors import UserError
from workbench.plugins.sae import SaeConfig, TrainConfig
from workbench.plugins.sae.loss import start
from workbench.plugins.sae.settings import choose_settings
from workbench.plugins.sae.training import Trainer
from workbench.progress import progress


class Shuffle:
    """One pass over rows in memory."""

    def __init__(self, x, batch_rows, epoch, state):
        self.x, self.batch_rows = x, batch_rows
        self.order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        self.at = state["at"] if state else 0

    def __iter__(self):
        while self.at < len(self.x):
            chosen = self.order[self.at : self.at + self.batch_rows]
            self.at += len(chosen)
            yield self.x[chosen]

    def state(self):
        return {"at": self.at}


def planted(n_features, width, active, rows, seed=100):
    """Return unit features, and rows that sum some of them; not the seed that training starts from."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n_features, width, generator=generator), dim=1)
    on = torch.rand(rows, n_features, generator=generator) < active / n_features
    return features, (on * (0.5 + torch.rand(rows, n_features, generator=generator))) @ features


def make_trainer(x, latents, k, **train) -> Trainer:
    settings = choose_settings(SaeConfig(latents=latents, k=k, train=TrainConfig(**train)), x.shape[1], len(x) - 500)
    scale = math.sqrt(x.shape[1]) / float(x.norm(dim=1).mean())
    sample = scale * x[500:4500]
    weights = start(sample, settings, torch.Generator().manual_seed(0))
    variance = float((sample - sample.mean(0)).pow(2).mean())
    return Trainer(settings, weights, scale, variance, scale * x[:500])


def train(trainer, x, folder: Path, source=Shuffle, checkpoint_s=1e9) -> Trainer:
    rows = x[500:]
    with progress(trainer.settings.rows, "rows", "training", logging.getLogger("test")) as ticker:
        trainer.train(
            lambda epoch, state: source(rows, trainer.settings.batch_rows, epoch, state),
            folder / "checkpoint.safetensors",
            checkpoint_s,
            ticker,
        )
    return trainer


def recovery(features, trainer) -> float:
    """Return the mean over features of the largest cosine with a decoder row."""
    return float((features @ trainer.weights.W_dec.detach().T).amax(1).mean())


def test_planted_features_are_found_and_noise_is_not(tmp_path):
    features, x = planted(32, 24, active=2, rows=10_500)
    trainer = train(make_trainer(x, latents=48, k=3, rows=80_000), x, tmp_path)
    assert recovery(features, trainer) > 0.95
    assert trainer.checks[-1][1] > 0.85
    torch.testing.assert_close(trainer.weights.W_dec.detach().norm(dim=1), torch.ones(48))
    # negative control: rows without any sparse features
    noise = torch.randn(10_500, 24, generator=torch.Generator().manual_seed(1))
    on_noise = train(make_trainer(noise, latents=48, k=3, rows=80_000), noise, tmp_path / "..")
    assert on_noise.checks[-1][1] < 0.65
    assert recovery(features, on_noise) < 0.7


@pytest.mark.slow
def test_a_planted_dictionary_of_128_features_in_64_dimensions_is_recovered(tmp_path):
    features, x = planted(128, 64, active=4, rows=60_500)
    trainer = train(make_trainer(x, latents=128, k=5), x, tmp_path)
    assert recovery(features, trainer) >= 0.95


@pytest.mark.slow
def test_the_auxiliary_loss_keeps_latents_alive(tmp_path):
    features, x = planted(64, 32, active=3, rows=10_500)
    dead, found = {}, {}
    for aux_k in (0, 16):
        trainer = make_trainer(x, latents=64, k=4, rows=80_000, aux_k=aux_k, dead_after=2_000)
        with torch.no_grad():
            trainer.weights.b_enc[:32] = -2.0  # half of them start with little chance
        dead[aux_k] = int(train(trainer, x, tmp_path).history[-1, 2])
        found[aux_k] = recovery(features, trainer)
    assert dead[0] > 5 > dead[16]
    assert found[16] > found[0]


class Interrupted(Exception):
    pass


class Breaking(Shuffle):
    """Fails at the batch before which `left` reaches zero."""

    left = 0

    def __iter__(self):
        for batch in super().__iter__():
            if Breaking.left == 0:
                raise Interrupted
            Breaking.left -= 1
            yield batch


@pytest.mark.parametrize("break_at", [1, 9, 16, 17, 30])  # an epoch has 16 batches
def test_an_interrupted_training_ends_with_the_same_bits(break_at, tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    make = {"latents": 24, "k": 2, "rows": 10_000, "batch_rows": 256, "dead_after": 1000}
    whole = train(make_trainer(x, **make), x, tmp_path / "..")
    Breaking.left = break_at
    with pytest.raises(Interrupted):
        train(make_trainer(x, **make), x, tmp_path, source=Breaking, checkpoint_s=0)
    again = make_trainer(x, **make)
    assert again.load(tmp_path / "checkpoint.safetensors")
    assert again.step == break_at
    train(again, x, tmp_path)
    for name, tensor in whole.weights.named().items():
        assert torch.equal(tensor, again.weights.named()[name]), name
    assert torch.equal(whole.history, again.history)
    assert whole.checks == again.checks
    assert torch.equal(whole.last_fired, again.last_fired)


def test_a_checkpoint_of_another_training_is_left_alone(tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    train(make_trainer(x, latents=24, k=2, rows=2_000), x, tmp_path)
    other = make_trainer(x, latents=24, k=3, rows=2_000)
    assert not other.load(tmp_path / "checkpoint.safetensors")
    assert (other.step, other.load(tmp_path / "none")) == (0, False)


def test_rows_that_are_not_numbers_stop_the_training(tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    trainer = make_trainer(x, latents=24, k=2)
    x[3000] = torch.nan
    with pytest.raises(UserError, match="the store holds NaN or infinity"):
        train(trainer, x, tmp_path)


KILLED = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("training_test", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
import torch
torch.set_num_threads(1)
_, x = module.planted(16, 12, active=2, rows=4_596)
trainer = module.make_trainer(x, latents=24, k=2, rows=120_000, batch_rows=256, dead_after=1000)
trainer.load(Path(sys.argv[2]) / "checkpoint.safetensors")
print(trainer.step, flush=True)
module.train(trainer, x, Path(sys.argv[2]), checkpoint_s=0.01)
torch.save({n: t.detach() for n, t in trainer.weights.named().items()}, Path(sys.argv[2]) / "end.pt")
"""


@pytest.mark.crash
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_goes_on_from_its_last_checkpoint(how, tmp_path):
    ends = {}
    for name, kills in (("whole", 0), ("killed", 3)):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", KILLED, __file__, str(tmp_path / name)]
        started_at = []
        for _ in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            started_at.append(int(process.stdout.readline()))
            time.sleep(2.5)
            os.kill(process.pid, how)
            process.wait()
            process.stdout.close()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert started_at == sorted(started_at)
        ends[name] = torch.load(tmp_path / name / "end.pt", weights_only=True)  # noqa: TID251
    for name, tensor in ends["whole"].items():
        assert torch.equal(tensor, ends["killed"][name]), name
