"""Several processes train what one does: planted with threads, started with torchrun, one of them lost."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.capturing import capture
from workbench.cli import main
from workbench.plugins.sae import MatryoshkaConfig, SaeConfig, TrainConfig
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.settings import L1, choose_settings
from workbench.plugins.sae.sites import Site, measured
from workbench.plugins.sae.trainer import HISTORY, Trainer
from workbench.plugins.sae.weights import start
from workbench.ranks import ALONE, LostRankError
from workbench.runs import load_run
from workbench.testing.ranks import on_threads
from workbench.testing.tiny import save_tiny_decoder

FAMILY = sorted(ARCHITECTURES)
ROWS, FEATURES, WIDTH = 2_000, 16, 12


def planted():
    generator = torch.Generator().manual_seed(100)
    features = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=1)
    on = torch.rand(ROWS, FEATURES, generator=generator) < 2 / FEATURES
    return (on * (0.5 + torch.rand(ROWS, FEATURES, generator=generator))) @ features


def make_trainer(x, architecture, **options) -> Trainer:
    train = TrainConfig(rows=5_000, batch_rows=101, lr=1e-3, dead_after=300, **options)
    k = None if architecture in L1 else 2
    config = SaeConfig(architecture=architecture, latents=40, k=k, matryoshka=MatryoshkaConfig((0.5, 0.5)), train=train)
    settings = choose_settings(config, WIDTH, len(x))
    place = measured("here", x)
    site = Site((place,), (place,))
    scaled, _ = site.take({"here": x}, torch.device("cpu"))
    weights = start(scaled, scaled, settings, torch.Generator().manual_seed(0))
    weights.extra = ARCHITECTURES[architecture].extra(scaled, weights, settings)
    return Trainer(settings, weights, site, float((scaled - scaled.mean(0)).pow(2).mean()), {"here": x[:200]})


def train(x, architecture, ranks, steps, **options) -> Trainer:
    """Train on batches of an odd number of rows, one of which has fewer rows than there are processes."""
    trainer = make_trainer(x, architecture, **options)
    for step in range(steps):
        first = 101 * step
        trainer.one_step({"here": x[first : first + (1 if step == 7 else 101)]}, ranks)
    return trainer


@pytest.mark.parametrize("architecture", FAMILY)
@pytest.mark.parametrize("options", [{}, {"resample": 8, "k_start": 5, "k_anneal": 0.2}], ids=["plain", "resampled"])
def test_processes_end_where_one_does(architecture, options):
    x = planted()
    alone = train(x, architecture, ALONE, 19, **options)
    for size in (2,) if options else (3,):
        each = on_threads(size, lambda ranks: train(x, architecture, ranks, 19, **options))
        for trainer in each:
            for name, tensor in alone.weights.named().items():
                torch.testing.assert_close(trainer.weights.named()[name], tensor, rtol=2e-4, atol=2e-5, msg=name)
                assert torch.equal(trainer.weights.named()[name], each[0].weights.named()[name])  # the same bits on all
            torch.testing.assert_close(trainer.history, alone.history, rtol=1e-3, atol=1e-6)
            assert torch.equal(trainer.last_fired, alone.last_fired)
            torch.testing.assert_close(trainer.smallest, alone.smallest, rtol=1e-4, atol=1e-6)
    if architecture == "topk":  # the auxiliary loss, and resampling, had something to do
        assert alone.history[:19, HISTORY.index("dead")].max() > 0


@pytest.mark.parametrize("architecture", FAMILY)
def test_in_half_precision_too_they_have_the_same_bits(architecture):
    """And end as near to one process as sums of other rows in bfloat16 let them."""
    x = planted()
    alone = train(x, architecture, ALONE, 19, precision="bfloat16")
    one, other = on_threads(2, lambda ranks: train(x, architecture, ranks, 19, precision="bfloat16"))
    for name, tensor in alone.weights.named().items():
        assert torch.equal(one.weights.named()[name], other.weights.named()[name])
        torch.testing.assert_close(one.weights.named()[name], tensor, rtol=0, atol=0.01, msg=name)


def test_without_an_exchange_they_would_not():
    """The control: two that train on half of each batch, and do not speak, end elsewhere."""
    x = planted()
    alone = train(x, "topk", ALONE, 19)
    half = make_trainer(x, "topk")
    for step in range(19):
        half.one_step({"here": x[101 * step : 101 * step + 50]})
    assert (half.weights.W_enc - alone.weights.W_enc).abs().max() > 0.01


def test_an_error_on_one_ends_all():
    def work(ranks):
        if ranks.rank == 1:
            raise LostRankError("gone")
        return train(planted(), "topk", ranks, 3)

    with pytest.raises(LostRankError, match="gone"):
        on_threads(2, work)


def test_plugins_of_one_process_refuse_several(monkeypatch, tmp_path, capsys):
    @contextmanager
    def two(device):
        yield SimpleNamespace(rank=0, size=2)

    monkeypatch.setattr("workbench.execution.open_ranks", two)
    assert main(["run", "sparse-probe", "--out", str(tmp_path / "run")]) == 2
    assert "sparse-probe is run by one process, and torchrun started 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- started with torchrun -------------------------------------------------------------------------------------------
HOOK = "blocks.1.hook_resid_post"
OPTIONS = ["hook_point=" + HOOK, "latents=32", "train.rows=3000", "train.batch_rows=100", "live.rows=1500"]
OPTIONS += ["evaluate.splice_tokens=0", "evaluate.labels=0", "evaluate.draws=20", "pages.latents=0"]
LOST = """
import os
import sys
from workbench.plugins.sae.trainer import Trainer
step = Trainer.one_step
def failing(self, *rest):
    if self.step == 20 and os.environ["RANK"] == "1":
        raise MemoryError("planted")
    return step(self, *rest)
Trainer.one_step = failing
from workbench.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return the address of a model, a file of texts, and a store of these."""
    folder = tmp_path_factory.mktemp("inputs")
    model = f"zoo:{save_tiny_decoder(folder / 'tiny', d_model=16)}"
    rng, texts = np.random.default_rng(0), folder / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": "".join(rng.choice(list("abcde  "), 25))}) for _ in range(120)))
    capture(model, data=texts, hooks=HOOK, rows=1_500, out=folder / "acts", device="cpu")
    return {"store": ["--store", str(folder / "acts")], "live": ["--model", model, "--data", str(texts)]}


def start_two(words, out, options=(), script=("-m", "workbench")):
    """Run `sae` with two processes."""
    settings = [word for option in [*OPTIONS, *options] for word in ("--set", option)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "run", "sae", *words, "--out", str(out), *settings, "--device", "cpu"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("source", "architecture"), [("store", "batchtopk"), ("live", "topk")])
def test_two_processes_make_the_run_that_one_makes(source, architecture, inputs, tmp_path):
    done = start_two(inputs[source], tmp_path / "two", [f"architecture={architecture}"])
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]  # the first one alone has written
    assert done.stdout.count("explained_variance ") == 1
    settings = [word for option in [*OPTIONS, f"architecture={architecture}"] for word in ("--set", option)]
    assert main(["run", "sae", *inputs[source], "--out", str(tmp_path / "one"), *settings, "--device", "cpu"]) == 0
    one, two = (load_run(tmp_path / name) for name in ("one", "two"))
    assert one.identity == two.identity
    for name, tensor in one.result.weights["dictionary"].items():
        torch.testing.assert_close(two.result.weights["dictionary"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for name, metric in one.result.metrics.items():
        assert two.result.metrics[name].value == pytest.approx(metric.value, rel=0.01, abs=1e-3), name


@pytest.mark.slow
def test_a_process_that_is_lost_ends_all_and_the_same_command_goes_on(inputs, tmp_path):
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    whole = start_two(inputs["live"], tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    lost = start_two(inputs["live"], tmp_path / "run", ["train.checkpoint_s=0"], script=(str(script),))
    assert lost.returncode != 0
    assert "MemoryError: planted" in lost.stderr
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "run.part" / "work" / "checkpoint.safetensors").is_file()
    again = start_two(inputs["live"], tmp_path / "run", ["train.checkpoint_s=0"])
    assert again.returncode == 0, again.stderr
    assert re.search(r"continuing after 1\d\d\d of 3000 rows", again.stderr)  # 20 steps, shorter ones among them
    first, second = (wb.load_dictionary(tmp_path / name) for name in ("whole", "run"))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


@pytest.mark.slow
def test_wrong_input_is_explained_by_processes_too(inputs, tmp_path):
    done = start_two(inputs["store"], tmp_path / "run", ["k=33"])
    assert done.returncode != 0
    assert "k=33: must be at most 32" in done.stderr
    assert not list(tmp_path.iterdir())
