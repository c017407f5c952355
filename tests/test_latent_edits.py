"""Latents pushed, held and taken away, against arithmetic on the rows."""

import pytest
import torch

from workbench.dictionary import Dictionary
from workbench.errors import UserError
from workbench.zoo.loading import load_zoo

READ, WRITTEN = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
STREAM = "blocks.0.hook_resid_post"


def dictionary(hook_in=STREAM, hook_out=STREAM, **other):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    weights = {
        "W_enc": draw(64, 128),
        "b_enc": draw(64),
        "W_dec": draw(64, 128),
        "b_dec": draw(128),
        "b_pre": draw(128),
    }
    options = {"activation": "topk", "k": 8, "scale": 0.5} | other
    return Dictionary(**weights, hook_in=hook_in, hook_out=hook_out, **options)


@pytest.fixture(scope="module")
def subject():
    return load_zoo("calendar")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "k": None},
        {"normalisation": "layer_norm"},
        {"hook_in": READ, "hook_out": WRITTEN},
    ],
)
def test_edits_of_single_latents_change_what_those_latents_write_and_nothing_else(subject, options):
    held = dictionary(**options)
    batch = subject.batch(["four days after Monday it is Friday", "in July it is"])
    names = [held.hook_in, held.hook_out]
    clean = subject.run(batch, capture=names).captured
    chosen = batch.mask & ~batch.special
    x, there = clean[held.hook_in][chosen], clean[held.hook_out][chosen]
    codes = held.encode_dense(x)
    latent = int(codes.sum(0).argmax())
    unit = held.W_dec[latent] / held.scale
    if held.normalisation != "none":
        unit = unit * (x - x.mean(1, keepdim=True)).std(1, keepdim=True)
    cases = {
        "steer": (held.steer(latent, by=2.5), torch.full((len(x), 1), 2.5)),
        "clamp": (held.clamp(latent, to=3.0), 3.0 - codes[:, [latent]]),
        "ablate": (held.ablate(latent), -codes[:, [latent]]),
    }
    for edits, change in cases.values():
        found = subject.run(batch, capture=[held.hook_out], edits=edits).captured[held.hook_out]
        torch.testing.assert_close(found[chosen], there + change * unit, rtol=1e-4, atol=1e-3)
        assert torch.equal(found[~chosen], clean[held.hook_out][~chosen])  # special tokens and padding


def test_ablating_all_latents_leaves_the_error_and_the_bias(subject):
    held = dictionary()
    batch = subject.batch(["in July it is"])
    clean = subject.run(batch, capture=[STREAM]).captured[STREAM][0, 1:]
    gone = subject.run(batch, capture=[STREAM], edits=held.ablate(range(64))).captured[STREAM][0, 1:]
    torch.testing.assert_close(gone, clean - held.reconstruct(clean) + held.b_dec / held.scale, rtol=1e-4, atol=1e-3)


def test_wrong_latents_are_refused():
    for call in (lambda d: d.steer(64, 1.0), lambda d: d.clamp(-1, 1.0), lambda d: d.ablate([3, 99])):
        with pytest.raises(UserError, match="has 0 to 63"):
            call(dictionary())
    with pytest.raises(UserError, match="no latent given"):
        dictionary().ablate([])
