"""A store of class tokens alone: they are trained on, measured, shown, and edited in the subject."""

import logging

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter, open_store
from workbench.plugins.sae import EvaluateConfig, PagesConfig, Sae, SaeConfig, TrainConfig
from workbench.plugins.sae.split import split_rows
from workbench.subjects.protocol import Batch

HOOK = "blocks.0.hook_resid_post"
N_DOCUMENTS, LENGTH = 60, 6


def test_a_store_of_class_tokens_alone_goes_all_the_way(subject, context, tmp_path, caplog):
    class WithClassToken(type(subject)):
        """The first token of a text is its special one, whichever it is."""

        def batch(self, examples):
            batch = super().batch(examples)
            special = batch.mask.clone()
            special[:, 1:] = False
            return Batch(batch.inputs, batch.mask, special)

    classed = WithClassToken()
    rng = np.random.default_rng(0)
    texts = rng.integers(1, 30, (N_DOCUMENTS, LENGTH))
    first = np.arange(LENGTH) == 0
    plan = ExamplesBuilder()
    for number, tokens in enumerate(texts):
        plan.sequence(plan.document(f"text-{number}", {"held_out": False}), tokens, special=first, rows=first)
    manifest = {"model": {"address": classed.address, "fingerprint": classed.fingerprint()}}
    spec = {HOOK: ActivationSpec(("d_model",), (16,), "float32")}
    with StoreWriter(tmp_path / "acts", spec, plan.build(), manifest) as writer:
        captured = classed.run(classed.batch(list(texts)), capture=[HOOK]).captured[HOOK]
        writer.append({HOOK: captured[:, 0].numpy()})
    store = open_store(tmp_path / "acts")
    assert store.origins["special"].all()

    config = SaeConfig(
        latents=40,
        k=3,
        train=TrainConfig(rows=6_000),
        evaluate=EvaluateConfig(held_out=0.2, splice_tokens=100, draws=20),
        pages=PagesConfig(latents=4, contexts=2, tokens=0),
    )
    with caplog.at_level(logging.INFO, "workbench"):
        result = Sae().run(context(config, store=store, subject=classed))
    assert "every row of the store is one of a special token" in caplog.text
    assert "the dataset flags none of those captured as held out" in caplog.text
    split = split_rows(store, config.evaluate, 0)
    held_out = store.origins["document"][split.held_out]
    metrics = {name: metric.value for name, metric in result.metrics.items()}
    assert metrics["held_out_documents"] == 12
    assert metrics["explained_variance"] > 0.5
    # the class token alone was edited: as if by hand, with zeros in its place
    batch = classed.batch([texts[number] for number in held_out])
    zeros = classed.intervene(batch, {HOOK: lambda x, at: x * ~at.batch.special[:, :, None]})
    loss = torch.nn.functional.cross_entropy(zeros[:, 1:-1].flatten(0, 1), batch.inputs[:, 2:].flatten())
    assert metrics["loss_zero"] == pytest.approx(float(loss), rel=1e-4)
    pages = result.sections["latents"].data["latents"]
    assert pages
    assert all(shown["activations"][0] > 0 for page in pages for shown in page["contexts"])
    assert all(not any(shown["activations"][1:]) for page in pages for shown in page["contexts"])
