"""Text written by a language subject, token by token, with or without edits in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Edits, Subject, TokenWindow

if TYPE_CHECKING:
    from workbench.subjects.protocol import Batch


@dataclass(frozen=True)
class Generation:
    """What a subject wrote after one prompt.

    Attributes
    ----------
    prompt, text : str
        What was given, and what was written after it.
    tokens : tuple of int
        Ids of what was written; shorter than asked for if the end of the text or a stop string came.
    pieces : tuple of str
        The text of each of them.
    log_probabilities : tuple of float
        Of each, as the edited subject gave it at temperature 1, nats.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    log_probabilities: tuple[float, ...]

    def __str__(self) -> str:
        return self.prompt + self.text

    def _repr_html_(self) -> str:
        from workbench.display import generation_html

        return generation_html(self)


def generate(
    subject: Subject,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    stop: str | None = None,
    edits: Edits | None = None,
    seed: int = 0,
) -> Generation | list[Generation]:
    """Let a language subject go on from prompts; edits act in every pass, at every position.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    prompts : str or sequence of str
        Each as its tokenizer starts a text.
    max_new_tokens : int
        At least 1; prompt and these must fit the context.
    temperature : float
        0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
    stop : str, optional
        Writing ends once this has been written; it stays in the text.
    edits : mapping of hook point to function, optional
        As in `Subject.run`: ``dictionary.steer(12, by=8.0)``, ``edits_of(projection)``, a function of your own.
    seed : int
        Of the draws; each prompt draws from its own generator, so that a prompt alone and among others is the same.

    Returns
    -------
    Generation, or list of Generation if a list was given

    Raises
    ------
    UserError
        For a subject that predicts no next token, a prompt without text, or one that leaves no room.

    Notes
    -----
    Every token costs a whole forward pass: an edit may change what earlier positions hold, so nothing is cached.
    """
    if not subject.causal or subject.modality != "text":
        raise UserError(f"{subject.address} predicts no next token: generate needs a causal language model")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if temperature < 0:
        raise UserError(f"temperature={temperature}: must be 0 (the likeliest token) or above")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    begun = [_window(subject, text, max_new_tokens) for text in texts]
    written: list[list[int]] = [[] for _ in texts]
    chances: list[list[float]] = [[] for _ in texts]
    draws = [torch.Generator().manual_seed(seed) for _ in texts]
    unfinished = list(range(len(texts)))
    ends = end_of_text(subject)
    while unfinished:
        batch = subject.batch([_longer(begun[i], written[i]) for i in unfinished])
        logits = last_logits(subject.intervene(batch, edits or {}), batch).float().cpu()
        log_p = logits.log_softmax(-1)
        going = []
        for row, i in enumerate(unfinished):
            token = _choose(logits[row], temperature, draws[i])
            if token in ends:
                continue
            written[i].append(token)
            chances[i].append(float(log_p[row, token]))
            stopped = stop is not None and stop in text_of(subject, written[i])
            if len(written[i]) < max_new_tokens and not stopped:
                going.append(i)
        unfinished = going
    done = [
        Generation(
            texts[i], text_of(subject, ids), tuple(ids), tuple(subject.decode(ids) if ids else ()), tuple(chances[i])
        )
        for i, ids in enumerate(written)
    ]
    return done[0] if isinstance(prompts, str) else done


def last_logits(logits: Tensor, batch: Batch) -> Tensor:
    """Return the logits [batch, vocab] at each example's last real position."""
    last = batch.mask.sum(1) - 1
    return logits[torch.arange(len(logits), device=logits.device), last.to(logits.device)]


def end_of_text(subject: Subject) -> set[int]:
    """Return the ids with which a text ends; none where the tokenizer names none."""
    end = getattr(subject.tokenizer, "eos_token_id", None)
    return set() if end is None else {int(end)}


def text_of(subject: Subject, tokens: Sequence[int]) -> str:
    """Return the text of tokens in a row: characters that several tokens share are whole, leading spaces are kept."""
    first = list(subject.decode(tokens[:1]))
    text: str = subject.tokenizer.decode(list(tokens)) if len(tokens) else ""
    leading = bool(first) and first[0][:1] == " " and text[:1] != " "
    return " " + text if leading else text


def _window(subject: Subject, text: str, room: int) -> TokenWindow:
    windows = subject.windows(text)
    if not windows:
        raise UserError(f"prompt {text!r} has no token: give it at least one word")
    n_tokens = sum(len(window.tokens) for window in windows)
    if len(windows) > 1 or n_tokens + room - 1 > subject.n_context:
        raise UserError(
            f"prompt {text[:40]!r} has {n_tokens} tokens and {room} are to follow, but {subject.address} takes "
            f"{subject.n_context}: shorten it, or lower max_new_tokens"
        )
    window = windows[0]
    if window.special.all():
        return window
    end = int(np.flatnonzero(~window.special)[-1]) + 1  # the text goes on: no token that ends one
    return TokenWindow(window.tokens[:end], window.special[:end], window.offsets[:end])


def _longer(window: TokenWindow, tokens: Sequence[int]) -> TokenWindow:
    """Return a window with more tokens after it."""
    n = len(tokens)
    return TokenWindow(
        np.concatenate([window.tokens, np.asarray(tokens, np.int64)]),
        np.concatenate([window.special, np.zeros(n, bool)]),
        np.concatenate([window.offsets, np.full((n, 2), -1, np.int64)]),
    )


def _choose(logits: Tensor, temperature: float, draws: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=draws))
