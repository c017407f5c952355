"""Every built-in plugin passes the suite that its authors give to everyone else's; a new one needs a class here."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

import workbench as wb
from workbench.dictionary import Dictionary
from workbench.plugin import CaptureDefault
from workbench.registry import registry
from workbench.testing import PluginConformance

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


class TestCircuit(PluginConformance):
    plugin = "circuit"
    model = "zoo:planted-induction-11"
    options: ClassVar = {
        "examples": 8,
        "steps": 2,
        "copies": 1,
        "draws": 20,
        "permutations": 10,
        "sae.examples": 8,
        "sae.train_examples": 4,
        "sae.latents": 20,
        "sae.steps": 10,
        "sae.seeds": 2,
    }


class TestCircular(PluginConformance):
    plugin = "circular"
    capture = CaptureDefault("zoo:calendar", "calendar", ("blocks.0.hook_resid_pre",), rows=3000)
    options: ClassVar = {
        "null.draws": 5,
        "null.rows": 50,
        "index_rows": 100,
        "draws": 10,
        "shown": 2,
        "intervene.runs": 8,
        "intervene.controls": 1,
        "intervene.grid": 0,
    }
    wrong = (({"label": "weekdays"}, "nearest: weekday"), ({"intervene.operand": "weekday"}, "as many labels"))

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        """A store, and a dictionary of the words' own embeddings instead of a trained one."""
        made = tmp_path_factory.mktemp("circular")
        subject, (hook,) = wb.load_subject(cls.capture.model, device="cpu"), cls.capture.hooks
        wb.capture(subject, data=cls.capture.data, hooks=[hook], rows=cls.capture.rows, out=made / "acts")
        embedding = subject.weights("W_E")
        centre = embedding.mean(0)
        unit = (embedding - centre) / (embedding - centre).norm(dim=1, keepdim=True)
        Dictionary(
            W_enc=unit.clone(), b_enc=torch.zeros(len(unit)), W_dec=unit.clone(), b_dec=centre.clone(),
            b_pre=centre.clone(), activation="topk", k=1, hook_in=hook, hook_out=hook, scale=1.0,
            subject_address=subject.address, subject_fingerprint=subject.fingerprint(), address="words",
        ).save(made / "words")  # fmt: skip
        return {"store": str(made / "acts"), "dictionary": str(made / "words")}


class TestNullspace(PluginConformance):
    plugin = "nullspace"
    capture = CaptureDefault("zoo:calendar", "calendar", HOOKS, rows=1500)
    options: ClassVar = {
        "label": "direction=after",
        "controls": 1,
        "permutations": 2,
        "draws": 20,
        "live.tokens": 200,
        "live.examples": 2,
        "nonlinear": False,
        "max_rounds": 4,
    }


class TestSae(PluginConformance):
    plugin = "sae"
    capture = CaptureDefault("zoo:calendar", "calendar", HOOKS[:1], rows=1500)
    options: ClassVar = {
        "latents": 64,
        "k": 4,
        "train.rows": 2560,
        "train.batch_rows": 256,
        "train.checkpoint_s": 0,
        "evaluate.splice_tokens": 300,
        "evaluate.draws": 50,
        "pages.latents": 4,
    }


class TestSecondOrder(PluginConformance):
    plugin = "second-order"
    model, data = "zoo:shapes-clip#vision", "shapes"
    options: ClassVar = {
        "layer": [1, 2],
        "label": "colour",
        "images": 40,
        "top": 8,
        "terms": 2,
        "selective": 8,
        "indirect": False,
        "controls": False,
        "permutations": 100,
        "draws": 20,
        "shown": 0,
        "segmentation.images": 8,
        "segmentation.neurons": 10,
    }
    wrong = (({"layer": 5}, "0 to 4"), ({"label": "held_out"}, "nearest of shapes"))


class TestSparseProbe(PluginConformance):
    plugin = "sparse-probe"
    capture = CaptureDefault("zoo:calendar", "calendar", HOOKS, rows=1500)
    options: ClassVar = {
        "label": ["task=weekday", "direction=after"],
        "k": [1, 2],
        "draws": 20,
        "contexts": 2,
        "max_labels": 2,
        "baselines.shuffles": 3,
        "baselines.random_units": 2,
    }
    varies = ("scores.seconds",)


def test_every_built_in_plugin_has_a_class_here():
    tested = {each.name() for each in PluginConformance.__subclasses__() if each.__module__ == __name__}
    ours = {name for name, offer in registry().plugins.items() if offer.origin.package == "interp-workbench"}
    assert ours == tested, "give each a class with options with which it runs in a second or two"
