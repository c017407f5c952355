import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from torch import nn

from workbench.datasets.python_source import is_held_out
from workbench.errors import UserError
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import DecoderArchitecture
from workbench.zoo.muon import Muon, orthogonalise
from workbench.zoo.pycode import PycodeLesson, encode
from workbench.zoo.trainer import CHECKPOINT, Lesson, Progress, Recipe, as_batch, new_decoder, next_token_losses, train

STACK = Architecture(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, causal=True)
RECIPE = Recipe(
    seed=3, steps=12, batch_size=4, lr=1e-2, weight_decay=0.1, warmup_steps=2, decay_share=0.5, betas=(0.9, 0.95),
    muon_lr=0.02, checkpoint_every=4,
)  # fmt: skip


class Counting(Lesson):
    """Sequences that count upwards from a random token."""

    def __init__(self, recipe: Recipe = RECIPE) -> None:
        self.recipe = recipe
        self.architecture = DecoderArchitecture(STACK, n_vocab=11, n_context=8)
        self.tokenizer = Tokenizer(models.BPE())

    def fingerprint(self) -> str:
        return "counting"

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.recipe.seed, step])
        starts = rng.integers(10, size=(self.recipe.batch_size, 1))
        tokens = 1 + (starts + np.arange(7)) % 10
        return np.concatenate([np.zeros((len(tokens), 1), np.int64), tokens], axis=1), rng.integers(3, 9, len(tokens))


class Killed(Exception):
    pass


def kill_at(step: int):
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_step


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("muon_lr", [None, 0.02])
@pytest.mark.parametrize("deaths", [(4,), (6,), (1, 5, 9, 11), (12,)])
def test_killed_and_resumed_training_gives_the_same_weights(deaths, muon_lr, tmp_path):
    lesson = Counting(replace(RECIPE, muon_lr=muon_lr))
    apart = tmp_path / "whole"
    apart.mkdir()
    whole, straight = train(lesson, apart)
    for step in deaths:
        with pytest.raises(Killed):
            train(lesson, tmp_path, on_step=kill_at(step))
    resumed, progress = train(lesson, tmp_path)
    assert same(whole, resumed)
    assert progress.losses == straight.losses
    assert [step for step, _ in progress.losses] == list(range(1, 13))


def test_training_continues_from_the_last_checkpoint(tmp_path):
    with pytest.raises(Killed):
        train(Counting(), tmp_path, on_step=kill_at(5))
    steps = []
    train(Counting(), tmp_path, on_step=lambda progress: steps.append(progress.step))
    assert steps == list(range(5, 13))  # step 5 again: the checkpoint is of step 4


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    first, _ = train(Counting(), folders[0])
    again, _ = train(Counting(), folders[1])
    other, _ = train(Counting(replace(RECIPE, seed=4)), folders[2])
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("change", [{"seed": 4}, {"steps": 13}, {"lr": 0.02}])
def test_the_checkpoint_of_another_training_is_refused(change, tmp_path):
    with pytest.raises(Killed):
        train(Counting(), tmp_path, on_step=kill_at(5))
    with pytest.raises(UserError, match="another training"):
        train(Counting(replace(RECIPE, **change)), tmp_path)


def test_a_checkpoint_half_written_is_not_looked_at(tmp_path):
    (tmp_path / "checkpoint.part").write_bytes(b"half")
    model, _ = train(Counting(), tmp_path)
    assert not model.training
    assert (tmp_path / CHECKPOINT).exists()


def test_training_learns(tmp_path):
    lesson = Counting(replace(RECIPE, steps=120, batch_size=16))
    model, progress = train(lesson, tmp_path)
    assert progress.losses[-1][1] < 0.7 < 2 < progress.losses[0][1]
    batch = as_batch(*lesson.examples(10_000))
    untrained = new_decoder(lesson.architecture, 0).eval()
    assert next_token_losses(model, batch).mean() < 0.5 * next_token_losses(untrained, batch).mean()


def test_padding_is_no_target():
    model = new_decoder(Counting().architecture, 0).eval()
    tokens, lengths = np.array([[0, 1, 2, 9, 9], [0, 3, 4, 5, 6]]), np.array([3, 5])
    losses = next_token_losses(model, as_batch(tokens, lengths))
    alone = next_token_losses(model, as_batch(tokens[:1, :3], lengths[:1]))
    assert losses.shape == (6,)
    torch.testing.assert_close(losses[:2], alone)


def test_rate_rises_stays_and_falls_to_zero():
    recipe = replace(RECIPE, steps=100, warmup_steps=10, decay_share=0.2)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:80] == [1.0] * 70
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(8, 8), (4, 32), (32, 4), (1, 5)])
def test_orthogonalise_keeps_singular_vectors_and_evens_out_their_values(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.T @ orthogonalise(g) @ v.T
    assert inside.diagonal().min() > 0.5
    assert inside.diagonal().max() < 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < 0.1


def test_muon_moves_every_direction_alike():
    weight = nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.diag(torch.tensor([1.0, 0.1, 0.01, 0.003]))
    Muon([weight], lr=1.0).step()
    moved = -weight.detach().diagonal()
    assert moved.min() > 0.2 * moved.max()  # plain descent: a factor of 300


def modules() -> dict[str, str]:
    return {f"m{i}": "\n".join(f"name_{j} = {j} + {i}" for j in range(3 * i)) for i in range(30)}


def pycode_lesson(texts: dict[str, str], seed: int = 0) -> PycodeLesson:
    return PycodeLesson(texts, replace(RECIPE, seed=seed), n_vocab=300, n_context=12, stack=STACK)


def test_an_epoch_shows_every_training_token_once_and_no_held_out_module():
    texts = modules()
    lesson = pycode_lesson(texts)
    size, length = lesson.recipe.batch_size, lesson.epoch_length()
    for epoch in (0, 1):
        shown: list[list[int]] = []
        first = epoch * length
        for step in range(first // size, (first + length) // size + 1):
            tokens, lengths = lesson.examples(step)
            rows = range(step * size, step * size + size)
            shown += [
                t[1:n].tolist() for i, t, n in zip(rows, tokens, lengths, strict=True) if first <= i < first + length
            ]
        assert max(map(len, shown)) <= 11
        kept = [text for name, text in sorted(texts.items()) if not is_held_out(name)]
        assert len(kept) < len(texts)
        assert sorted(chain.from_iterable(shown)) == sorted(np.concatenate(encode(lesson.tokenizer, kept)).tolist())


def test_epochs_cut_at_other_places():
    lesson = pycode_lesson(modules())
    assert not np.array_equal(np.sort(lesson.cut(0), axis=0), np.sort(lesson.cut(1), axis=0))
    assert np.array_equal(lesson.cut(1), pycode_lesson(modules()).cut(1))
    assert not np.array_equal(lesson.cut(1), pycode_lesson(modules(), seed=1).cut(1))


def test_the_tokenizer_knows_nothing_of_held_out_modules():
    texts = modules()
    hidden = next(name for name in texts if is_held_out(name))
    other = {**texts, hidden: "entirely different words " * 50}
    assert pycode_lesson(texts).fingerprint() == pycode_lesson(other).fingerprint()
    shown = next(name for name in texts if not is_held_out(name))
    assert pycode_lesson(texts).fingerprint() != pycode_lesson({**texts, shown: "other " * 50}).fingerprint()


def test_checkpoints_are_safetensors_with_json(tmp_path):
    train(Counting(), tmp_path)
    with safe_open(tmp_path / CHECKPOINT, "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 12
        assert {name.partition(".")[0] for name in list(file.keys())} == {"model", "optimizer"}
