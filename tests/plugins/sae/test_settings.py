"""From a configuration to the numbers of a training, and the split by documents."""

from dataclasses import replace

import numpy as np
import pytest

from workbench.configuration import build
from workbench.errors import UserError
from workbench.plugins.sae import EvaluateConfig, SaeConfig, TrainConfig
from workbench.plugins.sae.settings import choose_hook_points, choose_settings, ends_of_groups
from workbench.plugins.sae.split import split_rows

MID = "blocks.0.hook_resid_mid"


def test_defaults_follow_from_the_data():
    small = choose_settings(SaeConfig(), width=64, epoch_rows=20_000)
    assert (small.latents, small.k, small.rows, small.batch_rows, small.aux_k) == (512, 8, 160_000, 256, 32)
    large = choose_settings(SaeConfig(), width=768, epoch_rows=50_000_000)
    assert (large.latents, large.k, large.rows, large.batch_rows) == (6144, 32, 50_000_000, 4096)
    assert large.lr < small.lr


def test_what_is_given_is_taken():
    train = TrainConfig(rows=1000, batch_rows=100, lr=0.5, aux_k=0, dead_after=7)
    settings = choose_settings(SaeConfig(latents=10, k=3, train=train), width=4, epoch_rows=250)
    found = (settings.latents, settings.k, settings.rows, settings.lr, settings.aux_k, settings.dead_after)
    assert found == (10, 3, 1000, 0.5, 0, 7)
    assert settings.n_steps == 4 * 3  # an epoch's last batch is short


BAD_INPUT = [
    pytest.param({"latents": 10, "k": 11}, "k=11: must be at most 10", id="k"),
    pytest.param({"latents": 10, "train.k_start": 11}, "train.k_start=11: must be at most 10", id="k at the start"),
    pytest.param({"sparsity": 0.1}, "sparsity=0.1: topk has no sparsity penalty; set k instead", id="penalty of topk"),
    pytest.param({"architecture": "gated", "k": 3}, "k=3: gated has as many .* as its penalty", id="k of gated"),
    pytest.param(
        {"architecture": "matryoshka", "matryoshka.groups": [0.5, 0.4]}, "must be shares of 32 latents", id="groups"
    ),
    pytest.param(
        {"architecture": "matryoshka", "latents": 4}, "at least one latent in each", id="more groups than latents"
    ),
]


@pytest.mark.parametrize(("options", "says"), BAD_INPUT)
def test_options_that_do_not_fit_are_explained(options, says):
    with pytest.raises(UserError, match=says):
        choose_settings(build(SaeConfig, options), 4, 250)


def test_without_rows_there_is_nothing_to_train_on():
    with pytest.raises(UserError, match="no rows to train on"):
        choose_settings(SaeConfig(), 4, 0)


def test_each_architecture_has_the_penalty_that_it_is_known_for():
    def sparsity(**options):
        return choose_settings(build(SaeConfig, options), 16, 1000).sparsity

    assert sparsity() == sparsity(architecture="batchtopk") == 0
    assert sparsity(architecture="jumprelu") == 1
    assert sparsity(architecture="jumprelu", **{"jumprelu.penalty": "l0"}) == 1e-3
    assert sparsity(architecture="jumprelu", sparsity=0.5) == 0.5


def test_groups_end_where_their_shares_say_and_none_is_empty():
    assert ends_of_groups((1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32), 512) == (16, 48, 112, 240, 512)
    assert ends_of_groups((0.01, 0.01, 0.98), 10) == (1, 2, 10)
    assert ends_of_groups((0.98, 0.01, 0.01), 10) == (8, 9, 10)
    assert choose_settings(SaeConfig(), 4, 250).groups == ()


def test_k_and_the_penalty_follow_straight_lines():
    train = TrainConfig(rows=10_000, batch_rows=10, k_start=40, k_anneal=0.5, sparsity_warmup=0.2)
    settings = choose_settings(SaeConfig(architecture="jumprelu", k=8, train=train), width=64, epoch_rows=10_000)
    assert [settings.k_at(rows) for rows in (0, 2_500, 5_000, 9_999)] == [40, 24, 8, 8]
    assert [settings.sparsity_at(rows) for rows in (0, 1_000, 2_000, 9_999)] == [0, 0.5, 1, 1]
    steady = choose_settings(SaeConfig(architecture="batchtopk", k=8), width=64, epoch_rows=10_000)
    assert {steady.k_at(rows) for rows in range(0, 10_000, 100)} == {8}
    topk = choose_settings(SaeConfig(k=8, latents=12), width=64, epoch_rows=10_000)  # twice k, if there are as many
    assert [topk.k_at(round(share * topk.rows)) for share in (0, 0.1, 0.2, 1)] == [12, 10, 8, 8]


def test_the_rate_rises_stays_and_falls():
    train = TrainConfig(rows=10_000, batch_rows=10, lr=1.0, warmup=0.1, decay=0.2)
    settings = choose_settings(SaeConfig(train=train), width=8, epoch_rows=10_000)
    rates = np.array([settings.lr_at(rows) for rows in range(0, 10_000, 10)])
    assert rates[0] == pytest.approx(0.01)
    assert np.all(rates[100:800] == 1.0)
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[800:]) < 0).all()
    assert 0 < rates[-1] < 0.01
    bent = choose_settings(SaeConfig(train=replace(train, schedule="cosine")), width=8, epoch_rows=10_000)
    curve = np.array([bent.lr_at(rows) for rows in range(0, 10_000, 10)])
    assert np.array_equal(curve[:800], rates[:800])
    assert curve[900] == pytest.approx(0.5)
    assert curve[950] < rates[950]


def test_options_are_reached_by_dotted_keys_and_held_to_their_ranges():
    config = build(SaeConfig, {"k": "4", "train.lr": "1e-4", "evaluate.splice_tokens": 0})
    assert (config.k, config.train.lr, config.evaluate.splice_tokens) == (4, 1e-4, 0)
    for key, value in [("k", 0), ("train.lr", -1), ("evaluate.held_out", 1.5), ("train.centre", "mode")]:
        with pytest.raises(UserError, match=f"{key}={value}"):
            build(SaeConfig, {key: value})


def test_documents_are_held_out_whole(store):
    split = split_rows(store, EvaluateConfig(held_out=0.25), seed=0)
    document = store.origins["document"]
    train, held_out = set(document[split.train]), set(document[split.held_out])
    assert (len(train), len(held_out)) == (30, 10) == (split.n_train_documents, split.n_held_out_documents)
    assert not train & held_out
    assert not store.origins["special"][split.train | split.held_out].any()
    assert set(document[split_rows(store, EvaluateConfig(held_out=0.25), seed=1).held_out]) != held_out


def test_the_datasets_own_flag_decides(capture, subject, tmp_path):
    flagged = capture(subject, tmp_path / "acts", n_documents=6, fields=lambda index: {"held_out": index == 2})
    split = split_rows(flagged, EvaluateConfig(), seed=0)
    assert set(flagged.origins["document"][split.held_out]) == {2}


@pytest.mark.parametrize("flag", [True, False])
def test_flags_that_part_nothing_give_way_to_a_seeded_share(capture, subject, tmp_path, flag):
    alike = capture(subject, tmp_path / "acts", n_documents=4, fields=lambda index: {"held_out": flag})
    split = split_rows(alike, EvaluateConfig(held_out=0.25), seed=0)
    assert (split.n_train_documents, split.n_held_out_documents) == (3, 1)
    assert f"the dataset flags {'all' if flag else 'none'} of those captured" in split.how
    most = split_rows(alike, EvaluateConfig(held_out=0.99), seed=0)
    assert (most.n_train_documents, most.n_held_out_documents) == (1, 3)
    alone = capture(subject, tmp_path / "one", n_documents=1, fields=lambda index: {"held_out": flag})
    with pytest.raises(UserError, match="has rows of 1 document: at least 2 are needed"):
        split_rows(alone, EvaluateConfig(), seed=0)


def test_the_hook_point_may_be_left_out_where_there_is_one(store):
    (only,) = store.hook_points
    for config in (SaeConfig(), SaeConfig(hook_point=only), SaeConfig(hook_point=(only,), hook_out=only)):
        assert choose_hook_points(store, config) == ((only,), (only,))


BAD_HOOK_POINTS = [
    pytest.param({}, "has 5 hook points: choose one with hook_point=", id="none of several"),
    pytest.param({"hook_point": "blocks.0.hook_mlp_uot"}, "hook_point: .*nearest: blocks.0.hook_mlp_out", id="unknown"),
    pytest.param(
        {"hook_point": MID, "hook_out": "blocks.0.hook_mlp_uot"}, "hook_out: .*nearest: blocks.0.hook_mlp_out", id="out"
    ),
    pytest.param({"hook_point": (MID, MID)}, "hook_point=.*: a hook point is named twice", id="twice"),
]


@pytest.mark.parametrize(("options", "says"), BAD_HOOK_POINTS)
def test_hook_points_that_do_not_serve_are_explained(options, says, store_of_five):
    with pytest.raises(UserError, match=says):
        choose_hook_points(store_of_five, SaeConfig(**options))
