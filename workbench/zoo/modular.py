"""How `zoo:modular` is made: a one-layer decoder on addition modulo a prime, trained until it generalises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from workbench.datasets.modular_text import NUMBERS, PRIME, Sum, shown_sums, sums
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.tape import Tape
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import Lesson, Recipe, as_batch, next_token_losses
from workbench.zoo.words import encode, fourier_shares, word_tokenizer

ABOUT = f"one-layer decoder of sums modulo {PRIME}, trained past grokking"
# The decay wears away what only memorises. Larger weights at the start put that off by thousands of steps; smaller ones
# let one or two frequencies take everything, and answers stay uncertain.
RECIPE = Recipe(
    seed=0, steps=3500, batch_size=512, lr=1e-3, weight_decay=1.0, warmup_steps=10, decay_share=0.1, betas=(0.9, 0.98),
    init_std=0.04,
)  # fmt: skip
STACK = Architecture(
    n_layers=1, d_model=128, n_heads=4, d_head=32, d_mlp=512, causal=True, norm="none", activation="relu"
)
N_CONTEXT = 6  # begin, a, +, b, =, answer
USED_SHARE = 0.02  # of the variance between the numbers' embeddings


class ModularLesson(Lesson):
    """Some of the shown sums at each step; only the answer is learned.

    Parameters
    ----------
    recipe : Recipe
        Its seed decides the initial weights, not which sums are shown.
    """

    def __init__(self, recipe: Recipe = RECIPE) -> None:
        self.recipe = recipe
        self.tokenizer = word_tokenizer((*NUMBERS, "+", "="))
        shown = sorted(shown_sums())
        self.tokens, self.lengths = encode(self.tokenizer, [f"{s.prompt} {NUMBERS[s.answer]}" for s in shown])
        self.architecture = DecoderArchitecture(STACK, self.tokenizer.get_vocab_size(), N_CONTEXT)

    def fingerprint(self) -> str:
        """See `Lesson`."""
        return xxhash.xxh3_128_hexdigest(self.tokens.tobytes() + self.tokenizer.to_str().encode())

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Lesson`."""
        rng = np.random.default_rng([self.recipe.seed, step])
        rows = rng.choice(len(self.tokens), size=self.recipe.batch_size, replace=False)
        return self.tokens[rows], self.lengths[rows]

    def loss(self, network: Any, examples: Any) -> torch.Tensor:
        """See `Lesson`: of the answer alone, for which operands come is left to chance."""
        return next_token_losses(network, as_batch(*examples), first=N_CONTEXT - 1).mean()


def accuracy(model: Decoder, tokenizer: Any, chosen: Sequence[Sum]) -> float:
    """Return the share of sums whose answer is the likeliest next token of all the vocabulary."""
    tokens, lengths = encode(tokenizer, [each.prompt for each in chosen])
    answers = [tokenizer.token_to_id(NUMBERS[each.answer]) for each in chosen]
    with torch.no_grad():
        batch = as_batch(tokens, lengths)
        logits = model(batch, Tape(model.hook_points(), batch))[:, -1]
    return float((logits.argmax(-1).numpy() == np.array(answers)).mean())


def accuracies(model: Decoder, tokenizer: Any) -> dict[str, float]:
    """Return accuracy on the sums that were held out, and on those shown."""
    shown = shown_sums()
    parts = {"held_out": [s for s in sums() if s not in shown], "shown": [s for s in sums() if s in shown]}
    return {name: accuracy(model, tokenizer, chosen) for name, chosen in parts.items()}


def make_lesson(recipe: Recipe = RECIPE) -> ModularLesson:
    """Return the lesson of the shipped subject."""
    return ModularLesson(recipe)


def numbers_embeddings(subject: ZooSubject) -> torch.Tensor:
    """Return the embeddings [number, d_model] of the numbers, in order."""
    return subject.weights("W_E")[[subject.tokenizer.token_to_id(number) for number in NUMBERS]]


def measure(subject: ZooSubject, lesson: Lesson) -> dict[str, Any]:
    """Return the record's measurements: right answers, an untrained twin's, the frequencies in the embedding."""
    assert isinstance(subject.network, Decoder)
    untrained = lesson.new_network().eval()
    found = accuracies(subject.network, lesson.tokenizer)
    shares = fourier_shares(numbers_embeddings(subject))
    used = sorted((k for k, share in enumerate(shares, 1) if share >= USED_SHARE), key=lambda k: -shares[k - 1])
    return {
        "summary": f"held-out sums: {100 * found['held_out']:.1f} % right; frequencies {', '.join(map(str, used))}",
        "dataset": {"prime": PRIME, "shown": len(shown_sums()), "held_out": PRIME**2 - len(shown_sums())},
        "accuracy": {
            "how": "the answer is the likeliest of all tokens",
            **found,
            "untrained": accuracies(untrained, lesson.tokenizer)["held_out"],
        },
        "frequencies": {
            "how": f"share of the variance of the numbers' embeddings at 1, 2, 3, ...; used: at least {USED_SHARE}",
            "used": used,
            "shares": shares,
        },
    }
