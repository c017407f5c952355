"""Training without a store is training from a store of the same rows; larger data than what is kept; errors."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.capturing import capture
from workbench.cli import main
from workbench.context import Context, Inputs
from workbench.datasets.loading import load_dataset
from workbench.live_rows import LiveRows
from workbench.plugins.sae import EvaluateConfig, LiveConfig, PagesConfig, Sae, SaeConfig, SweepConfig, TrainConfig
from workbench.plugins.sae import live as live_module
from workbench.plugins.sae.live import go_live
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

HOOK = "blocks.1.hook_resid_post"
CONFIG = SaeConfig(
    latents=32,
    train=TrainConfig(rows=3_000, batch_rows=128, checkpoint_s=0),
    evaluate=EvaluateConfig(splice_tokens=300, draws=20, labels=2, probe_rows=300),
    pages=PagesConfig(latents=5, contexts=2),
    live=LiveConfig(rows=1_500, batch_size=8),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a file of texts, every fifth held out, with a label."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rng, lines = np.random.default_rng(0), []
    for number in range(120):
        text = "".join(rng.choice(list("abcde  "), 25))
        vowels = [[at, at + 1] for at, letter in enumerate(text) if letter in "ae"]
        lines.append({"text": text, "name": f"d{number}", "held_out": number % 5 == 0, "labels": {"vowel": vowels}})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'), d_model=16)}", device="cpu")


@pytest.fixture
def live(corpus, subject, tmp_path):
    """Return what makes a context without a store."""

    def make(config=CONFIG, work="work", **inputs):
        (tmp_path / work).mkdir(exist_ok=True)
        given = Inputs(model=subject, data=load_dataset(str(corpus)), **inputs)
        return Context(config, given, "cpu", 0, tmp_path / work)

    return make


def test_it_is_bit_for_bit_what_a_store_of_the_same_rows_gives(live, corpus, subject, tmp_path):
    """Where buffer and sample have room for all: the same order, the same bits, the same metrics and pages."""
    ours = Sae().run(live())
    store = capture(subject, data=corpus, hooks=HOOK, rows=1_500, batch_size=8, out=tmp_path / "acts")
    theirs = Sae().run(Context(CONFIG, Inputs(store=store, model=subject), "cpu", 0, tmp_path / "acts"))
    for name, tensor in theirs.weights["dictionary"].items():
        assert torch.equal(tensor, ours.weights["dictionary"][name]), name
    assert list(ours.metrics) == list(theirs.metrics)
    assert ours.metrics == theirs.metrics
    assert ours.sections["latents"].data == theirs.sections["latents"].data
    assert "vowel" in ours.tables["labels"]["label"].tolist()


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr(live_module, "SAMPLE_ROWS", 300)
    monkeypatch.setattr(live_module, "VALIDATION_ROWS", 100)
    evaluate = EvaluateConfig(splice_tokens=0, draws=20, labels=0, rows=150, probe_rows=100)
    return SaeConfig(latents=32, train=CONFIG.train, evaluate=evaluate, pages=PagesConfig(0),
                     live=LiveConfig(rows=1_500, batch_size=8, buffer_rows=400))  # fmt: skip


def test_what_is_kept_is_bounded_and_documents_stay_on_their_side(live, small_sample):
    context, split, feed = go_live(live(small_sample))
    store = context.store
    assert store.n_rows < 700 < feed.source.n_rows
    assert 300 <= split.train.sum() < 350
    assert 150 <= split.held_out.sum() < 200
    names = np.array(store.documents)[store.origins["document"]]
    held_out = np.array([int(name[1:]) % 5 == 0 for name in names])
    assert held_out[split.held_out].all()
    assert not held_out[split.train].any()
    of_feed = np.array(feed.source.documents)[feed.source.origins["document"][feed.rows]]
    assert not any(int(name[1:]) % 5 == 0 for name in of_feed)
    assert not feed.source.origins["special"][feed.rows].any()


@pytest.mark.slow
def test_with_a_small_buffer_and_sample_it_finds_as_good_a_dictionary(live, small_sample, corpus, subject, tmp_path):
    ours = Sae().run(live(small_sample))
    store = capture(subject, data=corpus, hooks=HOOK, rows=1_500, batch_size=8, out=tmp_path / "acts")
    theirs = Sae().run(Context(small_sample, Inputs(store=store, model=subject), "cpu", 0, tmp_path / "acts"))
    found, wanted = (each.metrics["explained_variance"] for each in (ours, theirs))
    assert found.value == pytest.approx(wanted.value, abs=0.03)
    assert not torch.equal(ours.weights["dictionary"]["W_enc"], theirs.weights["dictionary"]["W_enc"])


class StopError(Exception):
    pass


@pytest.mark.parametrize("after", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_an_interrupted_training_ends_with_the_same_bits(live, small_sample, after, monkeypatch, caplog):
    whole = Sae().run(live(small_sample, "whole"))
    compute, left = LiveRows.compute, [after]

    def breaking(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise StopError
        return compute(self, *args)

    monkeypatch.setattr(LiveRows, "compute", breaking)
    with pytest.raises(StopError):
        Sae().run(live(small_sample, "broken"))
    monkeypatch.setattr(LiveRows, "compute", compute)
    with caplog.at_level(logging.INFO, "workbench"):
        again = Sae().run(live(small_sample, "broken"))
    assert ("continuing after" in caplog.text) == (after > 3)  # rows of three passes fill the buffer
    for name, tensor in whole.weights["dictionary"].items():
        assert torch.equal(tensor, again.weights["dictionary"][name]), name


@pytest.mark.slow
def test_a_sweep_over_hook_points_runs_the_model_once_for_all(live, small_sample, monkeypatch):
    from dataclasses import replace

    config = replace(small_sample, sweep=SweepConfig(hook_point=("blocks.0.hook_mlp_out", HOOK), k=(2, 3)))
    seen = []
    compute = LiveRows.compute
    monkeypatch.setattr(LiveRows, "compute", lambda self, n, names, w: seen.append(names) or compute(self, n, names, w))
    result = Sae().run(live(config))
    assert len(result.weights) == 4
    assert all(names == ["blocks.0.hook_mlp_out", HOOK] for names in seen)


@pytest.mark.slow
def test_a_dictionary_that_is_given_is_measured_without_a_store(live, small_sample, tmp_path):
    trained = Sae().run(live(small_sample))
    trained.save(tmp_path / "run")
    again = Sae().run(live(small_sample, "again", dictionary=wb.load_dictionary(tmp_path / "run")))
    assert again.metrics["explained_variance"].value == pytest.approx(trained.metrics["explained_variance"].value)


def test_the_command_line_makes_a_run_without_a_store(corpus, subject, tmp_path):
    words = ["run", "sae", "--model", subject.address, "--data", str(corpus), "--out", str(tmp_path / "run")]
    for option in ("latents=32", "train.rows=2000", "live.rows=1500", "evaluate.splice_tokens=0", "pages.latents=0"):
        words += ["--set", option]
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["store"] is None
    assert manifest["data"]["fingerprint"] == load_dataset(str(corpus)).fingerprint()
    assert wb.load_dictionary(tmp_path / "run").hook_in == HOOK  # of two blocks, the middle
    assert "no store: " in (tmp_path / "run" / "log.txt").read_text()


BAD_INPUT = [
    pytest.param({"hook_point": "blocks.1.hook_resid_pots"}, "no hook point 'blocks.1.hook_resid_pots'", id="hook"),
    pytest.param({"live.positions": "lasst"}, "lasst", id="positions"),
    pytest.param({"live.context_length": 99}, "context length 99: .* takes 1 to 16 tokens", id="context"),
    pytest.param({"live.rows": 10}, "rows of 1 document: at least 2 are needed", id="one document"),
    pytest.param({"k": 33, "latents": 32}, "k=33: must be at most 32", id="k, before anything is written"),
    pytest.param({"hook_point": f"[{HOOK}, {HOOK}]"}, "a hook point is named twice", id="twice"),
    pytest.param({"live.buffer_rows": 0}, "live.buffer_rows=0: must be at least 1", id="buffer"),
]


@pytest.mark.parametrize(("options", "says"), BAD_INPUT)
def test_wrong_input_is_explained_and_nothing_is_left(options, says, corpus, subject, tmp_path, capsys):
    words = ["run", "sae", "--model", subject.address, "--data", str(corpus), "--out", str(tmp_path / "run")]
    words += [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    assert main(words) == 2
    assert re.search(says, " ".join(capsys.readouterr().err.split()))
    assert not list(tmp_path.iterdir())


@pytest.mark.crash
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(corpus, subject, tmp_path):
    words = [sys.executable, "-m", "workbench", "run", "sae", "--model", subject.address, "--data", str(corpus)]
    options = ("latents=32", "train.rows=60000", "train.batch_rows=64", "train.checkpoint_s=0", "live.buffer_rows=400")
    for option in (*options, "live.rows=1500", "evaluate.splice_tokens=0", "evaluate.labels=0", "pages.latents=0"):
        words += ["--set", option]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "--out", str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    checkpoint = tmp_path / "run.part" / "work" / "checkpoint.safetensors"
    for how, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(
            [*words, "--out", str(tmp_path / "run")], env=environment, stderr=subprocess.PIPE, text=True
        )
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(how)
        _, told = process.communicate()
        assert process.returncode == code
        assert how == signal.SIGKILL or "the same command continues" in told
    command = [*words, "--out", str(tmp_path / "run")]
    last = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "continuing after" in last.stderr
    whole, stopped = (wb.load_dictionary(tmp_path / name) for name in ("whole", "run"))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, stopped.tensors()[name]), name
