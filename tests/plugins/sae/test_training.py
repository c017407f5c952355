"""Training finds planted features, fails to on noise, and goes on after an interruption with the same bits."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.errors import UserError
from workbench.plugins.sae import MatryoshkaConfig, SaeConfig, TrainConfig
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.settings import L1, choose_settings
from workbench.plugins.sae.sites import Site, measured
from workbench.plugins.sae.trainer import HISTORY, Trainer
from workbench.plugins.sae.training import Training
from workbench.plugins.sae.weights import start
from workbench.progress import progress

FAMILY = sorted(ARCHITECTURES)
HELD_OUT = 500
HOOK = "here"


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
            yield {HOOK: self.x[chosen]}

    def state(self):
        return {"at": self.at}


def planted(n_features, width, active, rows, seed=100):
    """Return unit features, and rows that sum some of them; not the seed that training starts from."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n_features, width, generator=generator), dim=1)
    on = torch.rand(rows, n_features, generator=generator) < active / n_features
    return features, (on * (0.5 + torch.rand(rows, n_features, generator=generator))) @ features


def make_trainer(x, latents, k, architecture="topk", seed=0, groups=(5 / 6, 1 / 6), **train) -> Trainer:
    config = SaeConfig(
        architecture=architecture,
        latents=latents,
        k=None if architecture in L1 else k,
        matryoshka=MatryoshkaConfig(groups),
        train=TrainConfig(**train),
    )
    settings = choose_settings(config, x.shape[1], len(x) - HELD_OUT)
    sample = {HOOK: x[HELD_OUT:4500]}
    place = measured(HOOK, sample[HOOK])
    site = Site((place,), (place,))
    scaled, _ = site.take(sample, torch.device("cpu"))
    weights = start(scaled, scaled, settings, torch.Generator().manual_seed(seed))
    weights.extra = ARCHITECTURES[architecture].extra(scaled, weights, settings)
    variance = float((scaled - scaled.mean(0)).pow(2).mean())
    return Trainer(settings, weights, site, variance, {HOOK: x[:HELD_OUT]})


def train(trainers, x, folder: Path, source=Shuffle, checkpoint_s=1e9):
    """Train one or several, from the folder's checkpoint if there is one; returns what was given."""
    training = Training(trainers if isinstance(trainers, list) else [trainers], folder / "checkpoint.safetensors")
    training.load()
    settings, rows = training.trainers[0].settings, x[HELD_OUT:]
    with progress(settings.rows, "rows", "training", logging.getLogger("test")) as ticker:
        training.run(lambda epoch, state: source(rows, settings.batch_rows, epoch, state), checkpoint_s, ticker)
    return trainers


def recovery(features, trainer) -> float:
    """Return the mean over features of the largest cosine with a decoder row."""
    return float((features @ trainer.weights.W_dec.detach().T).amax(1).mean())


@pytest.mark.parametrize("architecture", FAMILY)
def test_planted_features_are_found_and_noise_is_not(architecture, tmp_path):
    features, x = planted(32, 24, active=2, rows=10_500)
    rows = 80_000 if architecture in ("topk", "batchtopk", "jumprelu") else 160_000
    make = {"latents": 48, "k": 3, "architecture": architecture, "rows": rows}
    trainer = train(make_trainer(x, **make), x, tmp_path)
    assert recovery(features, trainer) > 0.95
    assert trainer.checks[-1][1] > 0.85
    torch.testing.assert_close(trainer.weights.W_dec.detach().norm(dim=1), torch.ones(48))
    # trained with the best of a batch or with a penalty, used with thresholds: as many are active
    dictionary = trainer.site.dictionary(trainer.weights, trainer.inference())
    active = (dictionary.encode(x[:HELD_OUT])[0] > 0).sum(1).float().mean()
    assert 1.5 < active < 4
    # negative control: rows without any sparse features
    noise = torch.randn(10_500, 24, generator=torch.Generator().manual_seed(1))
    (tmp_path / "noise").mkdir()
    on_noise = train(make_trainer(noise, **make), noise, tmp_path / "noise")
    assert on_noise.checks[-1][1] < 0.65
    assert recovery(features, on_noise) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILY)
def test_a_planted_dictionary_of_128_features_in_64_dimensions_is_recovered(architecture, tmp_path):
    features, x = planted(128, 64, active=4, rows=60_500)
    trainer = train(make_trainer(x, latents=128, k=5, architecture=architecture, rows=300_000), x, tmp_path)
    assert recovery(features, trainer) >= 0.95


def tree(parents, children, width, rows):
    """Return orthonormal features of parents and of their children, rows, and where each is there.

    A child comes only with its parent, and at most one child with each; a parent comes alone, too.
    """
    generator = torch.Generator().manual_seed(100)
    features = torch.linalg.qr(torch.randn(width, parents * (1 + children), generator=generator))[0].T
    on = torch.rand(rows, parents, generator=generator) < 2 / parents
    which = torch.randint(children + 1, (rows, parents), generator=generator)
    child = torch.nn.functional.one_hot(which, children + 1)[..., :children].bool() & on[..., None]
    there = torch.cat([on, child.flatten(1)], dim=1)
    size = 0.8 + 0.4 * torch.rand(there.shape, generator=generator)
    return features[:parents], (there * size) @ features, on, child


def test_nested_dictionaries_keep_the_general_feature_that_others_absorb(tmp_path):
    """The first group of a Matryoshka dictionary has the parents, active whenever they are there, and no other has."""
    parents, x, on, child = tree(6, 3, 24, rows=20_500)
    silent, found = {}, {}
    for architecture in ("matryoshka", "batchtopk"):
        (tmp_path / architecture).mkdir()
        made = make_trainer(x, latents=24, k=4, architecture=architecture, rows=80_000, groups=(0.25, 0.75))
        trainer = train(made, x, tmp_path / architecture)
        cosine = parents @ trainer.weights.W_dec.detach().T
        found[architecture] = float(cosine[:, :6].amax(1).mean())
        codes = trainer.site.dictionary(trainer.weights, trainer.inference()).encode_dense(x[:HELD_OUT])
        with_child = (on & child.any(2))[:HELD_OUT]  # the parent is there, and so is one of its children
        silent[architecture] = float((codes[:, cosine.argmax(1)] <= 0)[with_child].float().mean())
    assert found["matryoshka"] > 0.9
    assert silent["matryoshka"] < 0.05
    assert found["batchtopk"] < 0.7  # the control: there the children have taken the parents' directions into theirs
    assert silent["batchtopk"] > 0.25


@pytest.mark.slow
def test_the_auxiliary_loss_keeps_latents_alive(tmp_path):
    features, x = planted(64, 32, active=3, rows=10_500)
    dead, found = {}, {}
    for aux_k in (0, 16):
        (tmp_path / f"{aux_k}").mkdir()
        trainer = make_trainer(x, latents=64, k=4, rows=80_000, aux_k=aux_k, dead_after=2_000)
        with torch.no_grad():
            trainer.weights.b_enc[:32] = -2.0  # half of them start with little chance
        dead[aux_k] = int(train(trainer, x, tmp_path / f"{aux_k}").history[-1, HISTORY.index("dead")])
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


MANY = {"k_start": 6, "k_anneal": 0.5, "resample": 3, "schedule": "cosine", "sparsity_warmup": 0.4, "dead_after": 300}


@pytest.mark.parametrize(
    ("architecture", "break_at", "options"),
    [
        *(("topk", at, {}) for at in (1, 9, 16, 17, 30)),  # an epoch has 16 batches
        *((architecture, at, MANY) for architecture in FAMILY for at in (5, 25)),
        *((architecture, 7, MANY | {"precision": "bfloat16"}) for architecture in FAMILY),
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(architecture, break_at, options, tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    make = {"latents": 24, "k": 2, "rows": 10_000, "batch_rows": 256, "dead_after": 1000} | options

    def two():
        return [make_trainer(x, architecture=architecture, seed=seed, **make) for seed in (0, 1)]

    (tmp_path / "whole").mkdir()
    whole = train(two(), x, tmp_path / "whole")
    Breaking.left = break_at
    with pytest.raises(Interrupted):
        train(two(), x, tmp_path, source=Breaking, checkpoint_s=0)
    again = two()
    training = Training(again, tmp_path / "checkpoint.safetensors")
    assert training.load()
    assert [trainer.step for trainer in again] == [break_at, break_at]
    train(again, x, tmp_path)
    for straight, resumed in zip(whole, again, strict=True):
        for name, tensor in straight.weights.named().items():
            assert torch.equal(tensor, resumed.weights.named()[name]), name
        for name in ("history", "last_fired", "smallest"):
            assert torch.equal(getattr(straight, name), getattr(resumed, name)), name
        assert straight.checks == resumed.checks
    assert not torch.equal(again[0].weights.W_enc, again[1].weights.W_enc)


def test_trained_side_by_side_they_are_what_they_would_be_alone(tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    make = {"rows": 5_000, "batch_rows": 256}
    kinds = [{"latents": 24, "k": 2}, {"latents": 40, "k": 3}, {"latents": 24, "k": 2, "architecture": "jumprelu"}]
    together = train([make_trainer(x, **kind, **make) for kind in kinds], x, tmp_path)
    for number, (kind, trainer) in enumerate(zip(kinds, together, strict=True)):
        (tmp_path / f"{number}").mkdir()
        alone = train(make_trainer(x, **kind, **make), x, tmp_path / f"{number}")
        assert torch.equal(alone.weights.W_enc, trainer.weights.W_enc)


@pytest.mark.parametrize(
    "architecture", ["topk", *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILY if each != "topk")]
)
def test_half_precision_finds_planted_features_too(architecture, tmp_path):
    features, x = planted(32, 24, active=2, rows=10_500)
    rows = 80_000 if architecture in ("topk", "batchtopk", "jumprelu") else 160_000
    make = {"latents": 48, "k": 3, "architecture": architecture, "rows": rows}
    trainer = train(make_trainer(x, precision="bfloat16", **make), x, tmp_path)
    for name, tensor in trainer.weights.named().items():
        assert tensor.dtype == torch.float32, name  # weights and moments keep small steps
    assert recovery(features, trainer) > 0.9
    moved = next(iter(make_trainer(x, precision="bfloat16", **make).weights.to(torch.bfloat16).named().values()))
    assert moved.dtype == torch.bfloat16  # the control: products are not in float32


def test_k_and_the_penalty_follow_their_schedules(tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    options = {"latents": 24, "k": 2, "rows": 10_000, "batch_rows": 256, "k_start": 8, "k_anneal": 0.5}
    trainer = train(make_trainer(x, **options), x, tmp_path)
    l0 = trainer.history[:, HISTORY.index("l0")]
    assert l0[0] > 7
    assert (l0[len(l0) // 2 + 1 :] <= 2).all()


def test_a_checkpoint_of_another_training_is_left_alone(tmp_path):
    _, x = planted(16, 12, active=2, rows=4_596)
    train(make_trainer(x, latents=24, k=2, rows=2_000), x, tmp_path)
    others = [
        [make_trainer(x, latents=24, k=3, rows=2_000)],
        [make_trainer(x, latents=24, k=2, rows=2_000, architecture="batchtopk")],
        [make_trainer(2 * x, latents=24, k=2, rows=2_000)],
        [make_trainer(x, latents=24, k=2, rows=2_000) for _ in range(2)],
    ]
    for trainers in others:
        assert not Training(trainers, tmp_path / "checkpoint.safetensors").load()
        assert trainers[0].step == 0
    assert not Training(others[0], tmp_path / "none").load()


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
trainers = [
    module.make_trainer(x, latents=24, k=2, architecture=each, rows=60_000, batch_rows=256, dead_after=1000, resample=4)
    for each in sys.argv[3].split(",")
]
training = module.Training(trainers, Path(sys.argv[2]) / "checkpoint.safetensors")
training.load()
print(trainers[0].step, flush=True)
module.train(trainers, x, Path(sys.argv[2]), checkpoint_s=0.01)
ends = {f"{i}.{n}": t.detach() for i, trainer in enumerate(trainers) for n, t in trainer.weights.named().items()}
torch.save(ends, Path(sys.argv[2]) / "end.pt")
"""


@pytest.mark.crash
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_goes_on_from_its_last_checkpoint(how, tmp_path):
    ends = {}
    for name, kills in (("whole", 0), ("killed", 3)):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", KILLED, __file__, str(tmp_path / name), ",".join(FAMILY)]
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
