"""Several dictionaries from one pass: which, that each is what it would be alone, and what is said of them together."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.cache import Store
from workbench.configuration import build
from workbench.context import Context, Inputs
from workbench.dictionary import load_dictionary
from workbench.errors import UserError
from workbench.plugins.sae import EvaluateConfig, PagesConfig, Sae, SaeConfig, SweepConfig, TrainConfig
from workbench.plugins.sae.comparing import Outcome, add_stability
from workbench.plugins.sae.sweep import Variant, variants
from workbench.results import Result, Weights

MID, POST = "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"
SMALL = SaeConfig(
    latents=24,
    train=TrainConfig(rows=2_500, batch_rows=128),
    evaluate=EvaluateConfig(held_out=0.2, splice_tokens=200, draws=20, labels=2),
    pages=PagesConfig(0),
)


def names(**options):
    return [variant.name for variant in variants(build(SaeConfig, options))]


def test_every_combination_is_trained_once_and_named_by_what_is_swept():
    assert names() == ["dictionary"]
    assert names(**{"sweep.k": [8, 16], "sweep.seed": [0, 1]}) == ["k8-seed0", "k8-seed1", "k16-seed0", "k16-seed1"]
    assert names(**{"sweep.lr": [1e-3, 2e-5]}) == ["lr0.001", "lr2e-05"]
    assert names(**{"sweep.hook_point": ["a.b", ["a.b", "c.d"]]}) == ["a.b", "a.b-c.d"]
    # Gated has no k, so that both values of k come to the same; TopK has no penalty
    options = {"sweep.architecture": ["topk", "gated"], "sweep.k": [8, 16], "sweep.sparsity": [0.5]}
    assert names(**options) == ["topk-k8", "topk-k16", "gated-sparsity0.5"]
    assert names(k=8, **{"sweep.architecture": ["topk", "standard"]}) == ["topk", "standard"]
    long = [f"{'x' * 90}.{number}" for number in range(3)]
    assert names(**{"sweep.hook_point": [long, long[:1]]}) == ["001", "002"]


def test_a_variant_has_the_configuration_that_it_would_have_alone():
    config = build(SaeConfig, {"latents": 99, "sweep.k": [8], "sweep.lr": [0.01], "sweep.seed": [5]})
    (variant,) = variants(config)
    assert variant.config == SaeConfig(latents=99, k=8, train=TrainConfig(lr=0.01, seed=5))


BAD_INPUT = [
    pytest.param({"k": 8, "sweep.k": [8, 16]}, r"k=8: is swept as well, sweep.k=\[8, 16\]", id="given and swept"),
    pytest.param({"train.lr": 0.1, "sweep.lr": [0.2]}, r"train.lr=0.1: is swept as well", id="rate given and swept"),
    pytest.param({"sweep.k": [8, 8]}, r"sweep.k=\[8, 8\]: each value once", id="twice"),
    pytest.param({"latents": 64, "sweep.expansion": [2, 4]}, "says nothing where latents are given", id="expansion"),
    pytest.param({"sweep.k": [0]}, r"sweep.k=\[0\]: must be at least 1", id="k below range"),
    pytest.param({"sweep.k": 16}, "sweep.k=16: must be list of whole number", id="no list"),
    pytest.param({"sweep.architecture": ["topkk"]}, "must be list of one of topk, batchtopk", id="architecture"),
    pytest.param({"sweep.batch_rows": [1]}, "no option 'sweep.batch_rows'; nearest: ", id="not to be swept"),
]


@pytest.mark.parametrize(("options", "says"), BAD_INPUT)
def test_sweeps_that_mean_nothing_are_explained(options, says):
    with pytest.raises(UserError, match=says):
        variants(build(SaeConfig, options))


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (
            SweepConfig(hook_point=(POST, "blocks.0.hook_resid_pots")),
            "no hook point 'blocks.0.hook_resid_pots'; nearest",
        ),
        (SweepConfig(k=(2, 25)), "k=25: must be at most 24"),
        (SweepConfig(sparsity=(0.5,)), "sparsity=0.5: topk has no sparsity penalty"),
    ],
)
def test_one_that_cannot_be_trained_stops_the_sweep_before_it_starts(sweep, says, context, store_of_five):
    config = replace(SMALL, hook_point=None if sweep.hook_point else POST, sweep=sweep)
    with pytest.raises(UserError, match=says):
        Sae().run(context(config, store=store_of_five))


@pytest.fixture(scope="module")
def swept(store_of_five, subject, tmp_path_factory):
    """Return the result of a sweep over hook points and seeds, and how often training rows were read."""
    config = replace(SMALL, k=3, sweep=SweepConfig(hook_point=(MID, (MID, POST)), seed=(0, 7)))
    passes = []
    shuffled = Store.shuffled

    def counted(self, hook_points, **options):
        passes.append((options.get("epoch"), options["batch_rows"], list(hook_points)))
        return shuffled(self, hook_points, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "shuffled", counted)
        work = tmp_path_factory.mktemp("work")
        result = Sae().run(Context(config, Inputs(store=store_of_five, model=subject), "cpu", 0, work))
    return result, [each for each in passes if each[1] == 128]


def test_each_is_bit_for_bit_what_it_would_be_alone(swept, context, store_of_five, tmp_path):
    result, _ = swept
    frame = result.tables["dictionaries"].set_index("dictionary")
    assert len(frame) == len(result.weights) == 4
    for hook_point, seed in ((MID, 7), ((MID, POST), 0)):
        name = f"{'-'.join((hook_point,) if isinstance(hook_point, str) else hook_point)}-seed{seed}"
        config = replace(SMALL, hook_point=hook_point, k=3, train=replace(SMALL.train, seed=seed or None))
        alone = Sae().run(context(config, store=store_of_five, work=tmp_path / name))
        for tensor, value in alone.weights["dictionary"].items():
            assert torch.equal(value, result.weights[name][tensor]), (name, tensor)
        assert alone.weights["dictionary"].config == result.weights[name].config
        for metric, found in alone.metrics.items():
            together = frame[metric][name] if metric in frame else result.metrics[metric].value
            assert together == found.value or (np.isnan(together) and np.isnan(found.value)), (name, metric)
        ends = (frame[f"explained_variance, {end}"][name] for end in ("lo", "hi"))
        assert tuple(ends) == (alone.metrics["explained_variance"].lo, alone.metrics["explained_variance"].hi)


def test_the_store_is_read_once_for_all(swept):
    _, passes = swept
    epochs = [epoch for epoch, _, _ in passes]
    assert epochs == [0, 1]
    assert all(hook_points == [MID, POST] for _, _, hook_points in passes)


def test_the_comparison_has_a_row_a_point_and_a_dictionary_for_each(swept, store_of_five, subject, tmp_path):
    result, _ = swept
    assert set(result.figures) == {"explained-variance", "training"}  # crosscoders are not spliced
    assert result.metrics["dictionaries"].value == 4
    frame = result.tables["dictionaries"]
    assert frame["hook_point"].tolist() == [MID] * 2 + [f"{MID} + {POST}"] * 2
    assert (frame["explained_variance"] > frame["explained_variance, random"]).all()
    assert frame["explained_variance"].between(frame["explained_variance, lo"], frame["explained_variance, hi"]).all()
    assert frame["l0"].tolist() == pytest.approx([3] * 4, rel=0.1)
    stability = result.tables["stability"]
    assert len(stability) == 2
    assert stability["cosine"].between(stability["cosine, lo"], stability["cosine, hi"]).all()
    result.save(tmp_path / "run")
    name = f"{MID}-seed7"
    loaded = load_dictionary(f"{tmp_path / 'run'}#{name}")
    assert (loaded.k, loaded.hook_in, loaded.address) == (3, MID, f"{tmp_path / 'run'}#{name}")
    with pytest.raises(UserError, match=f"made several dictionaries: name one, such as .*run#{MID}-seed0"):
        load_dictionary(tmp_path / "run")
    with pytest.raises(UserError, match=f"no dictionary '{MID}-seed8'; nearest: {name}"):
        load_dictionary(f"{tmp_path / 'run'}#{MID}-seed8")
    given = Inputs(store=store_of_five, model=subject, dictionary=loaded)
    with pytest.raises(UserError, match=r"sweep\.k: nothing is trained where a dictionary is given; leave it out"):
        Sae().run(Context(replace(SMALL, sweep=SweepConfig(k=(2,))), given, "cpu", 0, tmp_path))
    with pytest.raises(UserError, match="elsewhere is no run folder"):
        load_dictionary(f"{tmp_path / 'elsewhere'}#k2")


def test_a_dictionary_that_diverges_is_given_up_and_the_others_go_on(context, caplog):
    config = replace(SMALL, k=2, sweep=SweepConfig(lr=(1e-3, 1e30)))
    with caplog.at_level(logging.WARNING, "workbench"):
        result = Sae().run(context(config))
    assert "dictionary 2 of 2: training has failed at row" in caplog.text
    frame = result.tables["dictionaries"].set_index("dictionary")
    assert list(result.weights) == ["lr0.001"]
    assert "the learning rate 1e+30 is too high (train.lr)" in frame["failed"]["lr1e30"]
    assert pd.isna(frame["failed"]["lr0.001"])
    again = Sae().run(context(config))  # from the checkpoint: which has failed is in it
    assert again.tables["dictionaries"]["failed"].notna().tolist() == [False, True]
    assert torch.equal(again.weights["lr0.001"]["W_enc"], result.weights["lr0.001"]["W_enc"])
    with pytest.raises(UserError, match="training has failed at row"):
        Sae().run(context(replace(config, sweep=SweepConfig(lr=(1e29, 1e30)))))


def outcome(seed, W_dec):
    weights = Weights({"W_dec": W_dec})
    return Outcome(Variant(f"k2-seed{seed}", SaeConfig(), {"k": 2, "seed": seed}), None, {}, 0.0, weights)


def test_stability_is_that_of_planted_decoders(context):
    """Two seeds with the same latents in another order, and a third with half of them; against random ones."""
    directions = torch.randn(200, 48, generator=torch.Generator().manual_seed(3))
    half = torch.cat([directions[:100], torch.randn(100, 48, generator=torch.Generator().manual_seed(4))])
    result = Result()
    add_stability(
        context(SMALL), result, [outcome(0, directions), outcome(1, 3 * directions.flip(0)), outcome(2, half)]
    )
    frame = result.tables["stability"]
    assert frame[["seed", "other seed"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert frame["cosine"][0] == pytest.approx(1, abs=1e-6)
    assert frame["found"].tolist() == [1, 0.5, 0.5]
    assert (frame["found, random"] == 0).all()
    assert (frame["cosine, random"] < 0.5).all()
    assert result.metrics["stability_random"].value < 0.5
    assert result.metrics["stability"].value == pytest.approx(frame["cosine"].mean())
