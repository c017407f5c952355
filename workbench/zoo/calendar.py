"""How `zoo:calendar` is made: a two-layer decoder on sentences about days, months and other things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import xxhash

from workbench.datasets.calendar_text import (
    PHRASINGS,
    TASKS,
    Mixture,
    Problem,
    held_out_problems,
    problems,
    prompt,
    sentences,
    vocabulary,
)
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.tape import Tape
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import Lesson, Recipe, as_batch, new_decoder
from workbench.zoo.words import encode, fourier_shares, word_tokenizer

ABOUT = "decoder language model of days and months arithmetic, exact and vague, and of other sentences"
N_SENTENCES = 120_000
N_CONTEXT = 32
RECIPE = Recipe(
    seed=0, steps=8000, batch_size=256, lr=1e-3, weight_decay=0.5, warmup_steps=200, decay_share=0.25, betas=(0.9, 0.98)
)  # fmt: skip
STACK = Architecture(n_layers=2, d_model=128, n_heads=4, d_head=32, d_mlp=512, causal=True)


class CalendarLesson(Lesson):
    """Sentences in random order, drawn afresh at each step.

    Parameters
    ----------
    recipe : Recipe
        Its seed decides the sentences too.
    n_sentences : int
        Size of the training text.
    mixture : Mixture, optional
        What the sentences are about.
    """

    def __init__(self, recipe: Recipe = RECIPE, n_sentences: int = N_SENTENCES, mixture: Mixture | None = None) -> None:
        self.recipe = recipe
        self.tokenizer = word_tokenizer(vocabulary())
        self.mixture = mixture or Mixture()
        self.tokens, self.lengths = encode(self.tokenizer, sentences(n_sentences, recipe.seed, self.mixture))
        self.architecture = DecoderArchitecture(STACK, self.tokenizer.get_vocab_size(), N_CONTEXT)

    def fingerprint(self) -> str:
        """See `Lesson`."""
        return xxhash.xxh3_128_hexdigest(self.tokens.tobytes() + self.tokenizer.to_str().encode())

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Lesson`."""
        rng = np.random.default_rng([self.recipe.seed, step])
        rows = rng.integers(len(self.tokens), size=self.recipe.batch_size)
        lengths = self.lengths[rows]
        return self.tokens[rows, : lengths.max()], lengths


def accuracy(model: Decoder, tokenizer: Any, chosen: Sequence[Problem], phrasing: str) -> float:
    """Return the share of problems whose answer is the likeliest next token of all the vocabulary."""
    tokens, lengths = encode(tokenizer, [prompt(problem, phrasing) for problem in chosen])
    answers = [tokenizer.token_to_id(TASKS[problem.task].words[problem.answer]) for problem in chosen]
    with torch.no_grad():
        batch = as_batch(tokens, lengths)
        logits = model(batch, Tape(model.hook_points(), batch))
    last = logits[torch.arange(len(chosen)), torch.from_numpy(lengths) - 1]
    return float((last.argmax(-1).numpy() == np.array(answers)).mean())


def accuracies(model: Decoder, tokenizer: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Return accuracy by shown or held out, task and phrasing; each cell over all problems of its kind."""
    hidden = held_out_problems()
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("held_out", "shown"):
        for task in TASKS:
            chosen = [p for p in problems(task) if (p in hidden) == (kind == "held_out")]
            by_phrasing = {name: accuracy(model, tokenizer, chosen, name) for name in PHRASINGS}
            result.setdefault(kind, {})[task] = {**by_phrasing, "all": float(np.mean(list(by_phrasing.values())))}
    return result


def make_lesson(recipe: Recipe = RECIPE) -> CalendarLesson:
    """Return the lesson of the shipped subject."""
    return CalendarLesson(recipe, N_SENTENCES)


def measure(subject: ZooSubject, lesson: Lesson) -> dict[str, Any]:
    """Return the record's measurements: right answers, an untrained twin's, the circles in the embedding."""
    assert isinstance(lesson, CalendarLesson)
    assert isinstance(subject.network, Decoder)
    untrained = new_decoder(lesson.architecture, lesson.recipe.seed).eval()
    hidden = held_out_problems()
    embedding = subject.weights("W_E")
    circles = {
        name: fourier_shares(embedding[[lesson.tokenizer.token_to_id(word) for word in task.words]])
        for name, task in TASKS.items()
    }
    found = accuracies(subject.network, lesson.tokenizer)
    right = " and ".join(f"{100 * found['held_out'][name]['all']:.1f} % of {name}s" for name in TASKS)
    return {
        "summary": f"held-out operands: {right} right",
        "dataset": {
            "sentences": len(lesson.tokens),
            "mixture": asdict(lesson.mixture),
            "held_out_problems": {name: sum(p.task == name for p in hidden) for name in TASKS},
        },
        "accuracy": {
            "how": "the answer is the likeliest of all tokens; every problem of its kind, exact arithmetic",
            **found,
            "untrained": accuracies(untrained, lesson.tokenizer)["held_out"],
        },
        "circles": {"how": "share of the variance of the words' embeddings at frequencies 1, 2, 3, ...", **circles},
    }
