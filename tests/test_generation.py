"""Continuations against a loop over single passes; what edits, stops and seeds do to them."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.errors import UserError

PROMPTS = ["four days after Monday it is", "in July the weather is"]


@pytest.fixture(scope="module")
def subject():
    return wb.load_subject("zoo:calendar")


def by_hand(subject, prompt, n_tokens):
    ids = subject.windows(prompt)[0].tokens.tolist()
    written, chances = [], []
    for _ in range(n_tokens):
        log_p = subject.run(subject.batch([ids])).value[0, -1].log_softmax(-1)
        written.append(int(log_p.argmax()))
        chances.append(float(log_p.max()))
        ids.append(written[-1])
    return written, chances


def test_several_prompts_are_continued_as_each_alone(subject):
    together = subject.generate(PROMPTS, max_new_tokens=4)
    for prompt, found in zip(PROMPTS, together, strict=True):
        written, chances = by_hand(subject, prompt, 4)
        assert found.tokens == tuple(written)
        np.testing.assert_allclose(found.log_probabilities, chances, atol=1e-5)
        assert found.text == "".join(subject.decode(written))
    assert together[0].pieces[0].strip() == "Friday"
    assert str(together[0]).startswith(PROMPTS[0] + " Friday")


def test_draws_follow_the_seed_and_not_the_company(subject):
    options = {"max_new_tokens": 6, "temperature": 1.5}
    alone = subject.generate(PROMPTS[0], **options, seed=3)
    assert subject.generate(PROMPTS, **options, seed=3)[0].tokens == alone.tokens
    assert any(subject.generate(PROMPTS[0], **options, seed=seed).tokens != alone.tokens for seed in range(4, 8))


def test_edits_act_in_every_pass_and_a_stop_ends_the_text(subject):
    zero = {"blocks.1.hook_mlp_out": lambda x, at: torch.zeros_like(x)}
    edited = subject.generate(PROMPTS[0], max_new_tokens=3, edits=zero)
    ids = subject.windows(PROMPTS[0])[0].tokens.tolist()
    for token in edited.tokens:
        assert token == int(subject.intervene(subject.batch([ids]), zero)[0, -1].argmax())
        ids.append(token)
    assert subject.generate(PROMPTS[0], stop="Friday").text.strip() == "Friday"
    assert "Friday" in subject.generate(PROMPTS[0], stop="Friday")._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0"),
        ({"max_new_tokens": 500}, "has 7 tokens and 500 are to follow, but zoo:calendar takes 32"),
        ({"edits": {"blocks.7.hook_mlp_out": lambda x, at: x}}, "has no hook point 'blocks.7.hook_mlp_out'"),
    ],
)
def test_wrong_input(subject, options, message):
    with pytest.raises(UserError, match=message):
        subject.generate(PROMPTS[0], **options)


@pytest.mark.slow
def test_a_character_of_several_tokens_is_written_whole(tmp_path):
    from workbench.testing.tiny import save_tiny_decoder

    subject = wb.load_subject(f"zoo:{save_tiny_decoder(tmp_path / 'bytes')}")
    both = iter(subject.windows("é")[0].tokens[1:].tolist() * 2)

    def force(logits, at):
        chosen = torch.full_like(logits, -30.0)
        chosen[:, :, next(both)] = 0.0
        return chosen

    assert subject.generate("ab", max_new_tokens=2, edits={"hook_output": force}).text == "é"
