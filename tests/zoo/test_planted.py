"""Planted subjects: they do their task by their true heads alone, whatever the seed, and are made anew each time."""

import numpy as np
import pytest
import torch

from workbench.errors import UserError
from workbench.zoo.loading import load_zoo
from workbench.zoo.planted import BLOCKS, D_MODEL, LISTED, Recipe, span
from workbench.zoo.planted_heads import design
from workbench.zoo.planted_prompts import BOS, END, FILLERS, NAMES, pairs
from workbench.zoo.planted_truth import planted_record, truth
from workbench.zoo.planted_weights import construct
from workbench.zoo.shelf import zoo_names, zoo_record

KINDS = [f"planted-{task}{shadow}" for task in ("induction", "hops", "ioi") for shadow in ("", "-shadow")]
N_TRUE = {"induction": 2, "hops": 4, "ioi": 3}
MANY = [f"{kind}-{seed}" for kind in KINDS for seed in range(10)]


def accuracy(subject, found, edits=None):
    """Share of prompts whose largest logit, among the names, is the answer's."""
    logits = subject.run(subject.batch(list(found.clean)), edits=edits or {}).value[:, -1, NAMES]
    right = logits.argmax(-1) + NAMES.start == torch.tensor([answer for (answer,) in found.answer])
    return float(right.double().mean())


def without(head):
    def edit(z, at):
        z[:, :, head] = 0
        return z

    return edit


def check_true_heads_alone_matter(name, n):
    subject, found, known = load_zoo(name, device="cpu"), pairs(name, n, seed=5), truth(name)
    assert accuracy(subject, found) == 1
    for layer in range(subject.n_layers):
        for head in range(subject.n_heads):
            left = accuracy(subject, found, {f"blocks.{layer}.attn.hook_z": without(head)})
            if f"a{layer}.h{head}" in known.heads:
                assert left <= 0.25, (name, layer, head)  # one of 16 names by chance
            else:
                assert left == 1, (name, layer, head)


def test_true_heads_alone_matter():
    check_true_heads_alone_matter("planted-ioi-shadow-2", 60)


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
def test_true_heads_alone_matter_in_many(name):
    check_true_heads_alone_matter(name, 100)


def test_truth_is_the_known_circuit():
    known = truth("zoo:planted-ioi-4")
    dup, inhibition, mover = known.heads
    assert [known.roles[head] for head in known.heads] == ["dup", "sinh", "nm"]
    assert known.edges == {
        ("input", f"{dup}<q>"), ("input", f"{dup}<k>"), ("input", f"{dup}<v>"), (dup, f"{inhibition}<k>"),
        (dup, f"{inhibition}<v>"), (inhibition, f"{mover}<q>"), ("input", f"{mover}<k>"), ("input", f"{mover}<v>"),
        (mover, "logits"),
    }  # fmt: skip
    assert known.structural == {("input", f"{inhibition}<q>"), ("input", f"{inhibition}<k>"), ("input", f"{mover}<q>")}
    previous, match = truth("planted-induction-7").heads
    assert truth("planted-induction-7").edges == {
        ("input", f"{previous}<v>"), ("input", f"{match}<q>"), (previous, f"{match}<k>"), ("input", f"{match}<v>"),
        (match, "logits"),
    }  # fmt: skip
    assert len(truth("planted-hops-1").edges) == 11


def test_only_true_heads_touch_what_true_heads_read_and_shadows_are_two_in_five():
    sizes = set()
    for name in (f"{kind}-{seed}" for kind in KINDS for seed in range(4)):
        plan = design(Recipe.of(name))
        sizes.add((plan.n_layers, plan.n_heads))
        true = [place for place, head in plan.heads.items() if head.is_true]
        assert len({layer for layer, _ in true}) == len(true) == N_TRUE[Recipe.of(name).task]
        others = [head for head in plan.heads.values() if not head.is_true]
        assert len(plan.heads) == plan.n_layers * plan.n_heads
        assert all(head.blocks("write") == {"J"} for head in others)
        reads = [plan.heads[place].blocks(side) for place in true for side in ("query", "key", "read")]
        assert all("J" not in blocks for blocks in reads)
        assert all(np.allclose(np.linalg.norm(head.write, axis=1), 1) for head in plan.heads.values())
        shadows = sum("N" in head.blocks("read") for head in others)
        assert shadows == (round(0.4 * len(others)) if "shadow" in name else 0)
    assert {layers for layers, _ in sizes} <= {2, 3, 4, 5, 6}
    assert {heads for _, heads in sizes} == {4, 5, 6, 7, 8}
    assert sum(BLOCKS.values()) == D_MODEL == span("J").stop == 136


@pytest.mark.parametrize("task", ["induction", "hops", "ioi"])
def test_prompts_keep_their_layout_and_change_their_names(task):
    found, erased = (pairs(f"planted-{task}-0", 200, 3, negatives) for negatives in ("corrupted", "erased"))
    np.testing.assert_array_equal(found.clean, erased.clean)
    assert not np.array_equal(found.clean, pairs(f"planted-{task}-0", 200, 4).clean)
    is_name = (found.clean >= NAMES.start) & (found.clean < NAMES.stop)
    fillers = (found.clean >= FILLERS.start) & (found.clean < FILLERS.stop)
    assert (is_name | fillers | (found.clean == BOS) | (found.clean == END)).all()
    assert (found.clean[:, 0] == BOS).all()
    assert ((found.clean[:, -1] == END) == (task == "ioi")).all()
    np.testing.assert_array_equal((found.negative >= NAMES.start) & (found.negative < NAMES.stop), is_name)
    assert (erased.negative[is_name] >= FILLERS.start).all()
    np.testing.assert_array_equal(erased.negative[~is_name], found.clean[~is_name])
    for row in range(len(found.clean)):
        clean, other = found.clean[row], found.negative[row]
        assert not set(clean[is_name[row]]) & set(other[is_name[row]])
        (answer,) = found.answer[row]
        assert answer not in found.wrong[row]
        if task == "ioi":
            assert len(set(other[is_name[row]])) == 3  # nothing is doubled
            assert clean[found.positions["S2"][row]] == clean[found.positions["S1"][row]] == found.wrong[row][0]
            assert clean[found.positions["IO"][row]] == answer
        else:
            at = int(np.flatnonzero(clean == clean[-1])[0]) + 1
            for _ in range(2 if task == "hops" else 0):
                at = int(np.flatnonzero((clean[:-1] == clean[at]) & is_name[row, 1:])[0]) + 1
            assert clean[at] == answer
            assert len(found.wrong[row]) == 15


def test_the_same_name_is_the_same_subject_and_other_recipes_are_others():
    one, again = (load_zoo("planted-hops-shadow-12", device="cpu") for _ in range(2))
    assert one.fingerprint() == again.fingerprint()
    assert one.fingerprint() != load_zoo("planted-hops-12", device="cpu").fingerprint()
    assert one.fingerprint() != load_zoo("planted-hops-shadow-12-beta16", device="cpu").fingerprint()
    assert truth("planted-hops-shadow-12-beta16") == truth("planted-hops-shadow-12")
    assert one.hook_points["blocks.0.hook_q_input"].shape[-1] == 136
    assert one.decode(one.windows("Ada lent the candle")[0].tokens) == [
        "<|begin|>",
        "Ada",
        "<|other|>",
        "<|other|>",
        "candle",
    ]


def test_the_zoo_lists_them_with_their_size():
    assert set(LISTED) <= set(zoo_names())
    record = zoo_record("planted-ioi-0")
    assert record == planted_record("planted-ioi-0")
    assert record["n_parameters"] == sum(p.numel() for p in construct(Recipe.of("planted-ioi-0")).parameters())


@pytest.mark.parametrize(
    "name", ["planted-ioi", "planted-oi-3", "planted-ioi-03", "planted-ioi-3-shadow", "planted-ioi--1"]
)
def test_misspelt_names_are_explained(name):
    with pytest.raises(UserError, match="planted-TASK-SEED"):
        load_zoo(name)


def test_wrong_prompts_are_refused():
    with pytest.raises(UserError, match="must be corrupted or erased"):
        pairs("planted-ioi-0", 1, 0, "deleted")
    with pytest.raises(UserError, match="at least 1"):
        pairs("planted-ioi-0", 0, 0)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_the_attention_only_model_of_transformer_lens():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    subject = load_zoo("planted-ioi-1", device="cpu", dtype="float64")
    plain = HookedTransformer(HookedTransformerConfig(
        n_layers=subject.n_layers, d_model=136, n_ctx=16, d_head=40, n_heads=subject.n_heads, d_vocab=30, act_fn=None,
        attn_only=True, normalization_type=None, use_attn_scale=False, positional_embedding_type="standard",
        dtype=torch.float64, device="cpu",
    ))  # fmt: skip
    state = {
        name: torch.zeros_like(value) if name.split(".")[-1].startswith("b_") else value
        for name, value in plain.state_dict().items()
    }
    state |= {
        "embed.W_E": subject.weights("W_E"),
        "pos_embed.W_pos": subject.weights("W_pos"),
        "unembed.W_U": subject.weights("W_U"),
    }
    for layer in range(subject.n_layers):
        for role in ("W_Q", "W_K", "W_V", "W_O"):
            scale = 40**0.5 if role == "W_Q" else 1  # ours divides the scores
            state[f"blocks.{layer}.attn.{role}"] = subject.weights(role, layer) / scale
    plain.load_state_dict(state)
    batch = subject.batch(list(pairs("planted-ioi-1", 8, 0).clean))
    torch.testing.assert_close(plain(batch.inputs), subject.run(batch).value)
