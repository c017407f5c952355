"""SAELens's runner that caches activations, beside our capture of the same hook point of the same tokens."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from measuring import all_turns

from workbench.cache import ExamplesBuilder, StoreWriter, open_store
from workbench.capture_passes import forward
from workbench.capture_plan import Plan
from workbench.capture_rows import activation_spec
from workbench.datasets.text import TextList
from workbench.subjects.sources import load_subject

CONTEXT, BATCH_SIZE, LAYER = 256, 4, 7


def make_checkpoint(folder: Path) -> Path:
    """Save a model of GPT-2 small's size with random weights, with the zoo's tokenizer; returns its folder."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from workbench.zoo.shelf import zoo_folder

    path = folder / "gpt2"
    if not path.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(path)
        tokenizer = zoo_folder("pycode") / "tokenizer.json"
        PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), bos_token="<bos>").save_pretrained(path)
    return path


def run(folder: Path, n_tokens: int, rounds: int) -> None:
    """Print how fast each caches one hook point of a model of GPT-2 small's size."""
    import datasets
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    datasets.disable_progress_bars()
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    model = make_checkpoint(folder)
    subject = load_subject(f"hf:{model}", device="cpu")
    n_sequences = n_tokens // (CONTEXT * BATCH_SIZE) * BATCH_SIZE
    tokens = np.random.default_rng(0).integers(0, 3072, (n_sequences, CONTEXT))
    out = folder / "cached"

    builder = ExamplesBuilder()
    for i, sequence in enumerate(tokens):
        builder.sequence(builder.document(str(i)), sequence)
    plan = Plan(builder.build(), tuple(range(n_sequences)))
    hook_point = subject.hook_points[f"blocks.{LAYER}.hook_resid_post"]
    specs = {hook_point.name: activation_spec(hook_point, subject, CONTEXT, "float32")}

    config = CacheActivationsRunnerConfig(
        dataset_path="tokens",
        model_name=str(model),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=BATCH_SIZE,
        hook_name=f"transformer.h.{LAYER}",
        d_in=subject.d_model,
        training_tokens=tokens.size,
        context_size=CONTEXT,
        new_cached_activations_path=str(out),
        shuffle=False,
        device="cpu",
        buffer_size_gb=BATCH_SIZE * CONTEXT * subject.d_model * 4 / 1e9,  # a shard for each batch
        prepend_bos=False,
        streaming=False,
    )
    given = datasets.Dataset.from_dict({"tokens": tokens.tolist()})
    runners: list[CacheActivationsRunner] = []

    def ours() -> None:
        with StoreWriter(out, specs, plan.examples, {}) as writer:
            forward(subject, TextList(["tokens are given"]), plan, specs, writer, BATCH_SIZE)

    def theirs() -> None:
        with redirect_stderr(StringIO()):
            runners.pop().run()

    def before(name: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        if name == "SAELens's runner":
            with redirect_stderr(StringIO()):
                runners.append(CacheActivationsRunner(config, override_dataset=given))

    before("ours")
    ours()
    rows = open_store(out).read(hook_point.name)
    before("SAELens's runner")
    theirs()
    cached = datasets.load_from_disk(str(out)).with_format("numpy")[config.hook_name][:]
    np.testing.assert_allclose(np.array(cached).reshape(rows.shape), rows, atol=1e-5)

    seconds = all_turns({"ours": ours, "SAELens's runner": theirs}, rounds, before=before)
    print(f"\none hook point ({hook_point.name}) of {tokens.size:,} tokens as float32, the same rows to 1e-5")
    for name, found in seconds.items():
        print(f"  {name:<32} {tokens.size / statistics.median(found):8,.0f} tokens/s")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"  ours is {statistics.median(ratios):.2f} times as fast (median of the rounds)")
    shutil.rmtree(out, ignore_errors=True)
