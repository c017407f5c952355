"""Every built-in plugin passes the suite that its authors give to everyone else's; a new one needs a class here."""

from __future__ import annotations

from typing import ClassVar

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


class TestNullspace(PluginConformance):
    plugin = "nullspace"
    capture = CaptureDefault("zoo:calendar", "calendar", HOOKS, rows=1500)
    options: ClassVar = {
        "label": "direction=after",
        "controls": 1,
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
        "layer": [3, 4],
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
