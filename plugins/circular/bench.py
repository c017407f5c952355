"""One place of the running subject, and prompts to be moved to other operands: what goes in, what answers come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.plugins.circular.prompts import Prompts, answers, captured, put, with_operand
from workbench.probes.statistics import Interval, percentile_interval
from workbench.subjects.protocol import Subject

Position = Literal["operand", "answer"]
Z95 = 1.959964  # of the normal distribution, 95 % within


@dataclass(frozen=True)
class Outcome:
    """What the subject answered, [pairs] each.

    Attributes
    ----------
    moved : np.ndarray
        Whether the likeliest of all tokens is the answer for the other operand.
    kept : np.ndarray
        Whether it is the answer of the prompt as it stands.
    difference : np.ndarray
        Logit of the former minus logit of the latter.
    """

    moved: np.ndarray
    kept: np.ndarray
    difference: np.ndarray


class Bench:
    """Pairs of a prompt and another operand, at a hook point and a position.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    hook_point : str
        Where activations are changed.
    prompts : Prompts
        Their sequences.
    prompt, target : np.ndarray
        [pairs] which prompt, and the class of the other operand.
    position : "operand" or "answer"
        Where in the sequence.

    Attributes
    ----------
    x, swapped : np.ndarray
        [pairs, width] activations there, and those of the same prompt with the other operand in its place.
    start, goal : np.ndarray
        [pairs] class that the position holds, and the one it is to hold: operands or answers.
    """

    def __init__(
        self,
        subject: Subject,
        hook_point: str,
        prompts: Prompts,
        prompt: np.ndarray,
        target: np.ndarray,
        position: Position = "operand",
    ) -> None:
        self.subject, self.hook_point, self.prompts, self.prompt, self.target = (
            subject, hook_point, prompts, prompt, target,
        )  # fmt: skip
        self.windows = [prompts.windows[i] for i in prompt]
        self.answer_at = prompts.answer_at[prompt]
        self.at = prompts.operand_at[prompt] if position == "operand" else self.answer_at
        self.answer = prompts.c[prompt]
        self.wanted = (self.answer + target - prompts.a[prompt]) % prompts.period
        operand = position == "operand"
        self.start: np.ndarray = prompts.a[prompt] if operand else self.answer
        self.goal: np.ndarray = target if operand else self.wanted
        other = [
            with_operand(window, int(at), int(prompts.tokens[each]))
            for window, at, each in zip(self.windows, prompts.operand_at[prompt], target, strict=True)
        ]
        self.x = captured(subject, self.windows, hook_point, self.at)
        self.swapped = captured(subject, other, hook_point, self.at)

    def __len__(self) -> int:
        return len(self.prompt)

    def logits(self, values: np.ndarray | None) -> np.ndarray:
        """Put values [pairs, width] in place, or nothing, and return the logits [pairs, vocab] of the answers."""

        def edits(here: slice) -> dict[str, Any]:
            assert values is not None
            return {self.hook_point: put(values[here], self.at[here])}

        return answers(self.subject, self.windows, self.answer_at, None if values is None else edits)

    def run(self, values: np.ndarray | None) -> Outcome:
        """Put values [pairs, width] in place, or nothing, and return what the subject answers."""
        logits = self.logits(values)
        tokens, rows = self.prompts.tokens, np.arange(len(self))
        guess = logits.argmax(axis=1)
        wanted, answer = tokens[self.wanted], tokens[self.answer]
        return Outcome(guess == wanted, guess == answer, logits[rows, wanted] - logits[rows, answer])


def draw_pairs(prompts: Prompts, usable: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of a usable prompt and an operand that is not its own, without repetition.

    Returns
    -------
    prompt, target : np.ndarray
        [pairs], all there are if no more than n.
    """
    prompt = np.repeat(usable, prompts.period - 1)
    shift = np.tile(np.arange(1, prompts.period), len(usable))
    target = (prompts.a[prompt] + shift) % prompts.period
    if len(prompt) > n:
        chosen = np.sort(rng.choice(len(prompt), n, replace=False))
        prompt, target = prompt[chosen], target[chosen]
    return prompt, target


def right_prompts(subject: Subject, prompts: Prompts) -> np.ndarray:
    """Return which prompts [n] the subject answers: the answer is the likeliest of all tokens."""
    guess = answers(subject, prompts.windows, prompts.answer_at).argmax(axis=1)
    return np.asarray(guess == prompts.tokens[prompts.c])


def outcome_row(outcome: Outcome, group: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return means with 95 % intervals over problems.

    Parameters
    ----------
    outcome : Outcome
        Of [pairs].
    group : np.ndarray
        [pairs] problem of each, below the number of columns of `weights`.
    weights : np.ndarray
        [draws, problems] from `bootstrap_weights`.
    """
    row: dict[str, Any] = {"n": len(group)}
    for name, values in (("moved", outcome.moved), ("kept", outcome.kept), ("logits", outcome.difference)):
        value, lo, hi = mean_interval(values, group, weights)
        row |= {name: value, f"{name}_lo": lo, f"{name}_hi": hi}
    return row


def mean_interval(values: np.ndarray, group: np.ndarray, weights: np.ndarray) -> Interval:
    """Return the mean of values with its percentile interval over problems.

    Where all are 0 or all are 1, resampling shows no spread, and the interval is Wilson's with the problems as trials.
    """
    n_groups = weights.shape[1]
    total = np.bincount(group, weights=values, minlength=n_groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ total) / (weights @ np.bincount(group, minlength=n_groups))
    mean = float(np.mean(values))
    if values.dtype == bool and mean in (0.0, 1.0):
        least = 1 / (1 + Z95**2 / n_groups)
        return Interval(mean, mean * least, 1 - (1 - mean) * least)
    return Interval(mean, *percentile_interval(draws))


def toward(x: np.ndarray, points: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return the displacement [rows, width] that puts points' part in a subspace [k, width] in place of the rows'."""
    return np.asarray(((points - x) @ basis.T) @ basis)


def of_length(displacement: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return displacements [rows, width] stretched to lengths [rows]."""
    own = np.linalg.norm(displacement, axis=1, keepdims=True)
    return np.asarray(displacement * (length[:, None] / np.maximum(own, 1e-30)))


def random_basis(dimension: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return orthonormal random directions [dimension, width]."""
    return np.asarray(np.linalg.qr(rng.normal(size=(width, dimension)))[0].T)


def pca_basis(X: np.ndarray, k: int) -> np.ndarray:
    """Return the first principal directions [k, width] of rows."""
    return np.asarray(np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][:k])


def frequencies_text(frequencies: Sequence[int]) -> str:
    """Return frequencies as words: ``frequency 1``, ``frequencies 1, 3``."""
    return f"frequenc{'y' if len(frequencies) == 1 else 'ies'} {', '.join(map(str, frequencies))}"
