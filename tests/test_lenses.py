"""The logit lens against the final norm and unembedding by hand."""

import pytest
import torch

import workbench as wb
from workbench.errors import UserError

PROMPT = "four days after Monday it is"


@pytest.fixture(scope="module")
def subject():
    return wb.load_subject("zoo:calendar")


def test_every_depth_is_read_through_the_models_own_end(subject):
    lens = wb.logit_lens(subject, PROMPT, answer="Friday")
    batch = subject.batch([PROMPT])
    names = list(dict.fromkeys(lens.frame["hook_point"]))
    assert names == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    run = subject.run(batch, capture=names)
    for name in names:
        x = torch.nn.functional.layer_norm(
            run.captured[name][0], (subject.d_model,), subject.weights("ln_final.w"), subject.weights("ln_final.b")
        )
        log_p = (x @ subject.weights("W_U")).log_softmax(-1)
        rows = lens.frame[lens.frame["hook_point"] == name]
        assert rows["prediction"].tolist() == subject.decode(log_p.argmax(-1).tolist())
        assert rows["probability"].to_numpy() == pytest.approx(log_p.max(-1).values.exp().numpy(), abs=1e-4)
    last = lens.frame.iloc[-1]
    assert (last["next"].strip(), last["rank_next"], last["divergence"]) == ("Friday", 0, pytest.approx(0, abs=1e-6))
    assert lens.frame.iloc[0]["divergence"] > 0.1
    assert "<img" in lens._repr_html_() or "<svg" in lens._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hook_points": "blocks.0.mlp.hook_post"}, "no place in the residual stream"),
        ({"answer": "Friday Monday"}, "must be one token of zoo:calendar, but is 2"),
        ({"hook_points": "blocks.9.hook_resid_post"}, "has no hook point"),
    ],
)
def test_wrong_input(subject, options, message):
    with pytest.raises(UserError, match=message):
        wb.logit_lens(subject, PROMPT, **options)
