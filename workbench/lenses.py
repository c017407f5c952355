"""What a language subject would predict if it stopped after each block: the logit lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.errors import UserError
from workbench.subjects.protocol import At, Edits, Subject

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass(frozen=True)
class LogitLens:
    """Predictions at every position from every depth of one prompt.

    Attributes
    ----------
    tokens : tuple of str
        The prompt's.
    frame : pandas.DataFrame
        A row per hook point and position: ``hook_point``, ``position``, ``token`` (there), ``prediction`` (of the next
        one), ``probability`` (of it), ``next`` (the token that came, or the given answer; None where there is none),
        ``p_next``, ``rank_next`` (0: the likeliest), ``divergence`` (of the subject's own output from this prediction,
        KL in nats).
    """

    tokens: tuple[str, ...]
    frame: pandas.DataFrame

    def figure(self) -> matplotlib.figure.Figure:
        """Draw depth against position: the likeliest next token, shaded by its probability."""
        from matplotlib.figure import Figure

        hook_points = list(dict.fromkeys(self.frame["hook_point"]))
        shape = len(hook_points), len(self.tokens)
        chance = self.frame["probability"].to_numpy().reshape(shape)[::-1]
        words = self.frame["prediction"].to_numpy().reshape(shape)[::-1]
        figure = Figure(figsize=(1.0 + 0.85 * shape[1], 0.9 + 0.36 * shape[0]), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(chance, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for row in range(shape[0]):
            for column in range(shape[1]):
                colour = "white" if chance[row, column] > 0.55 else "black"
                axes.text(column, row, _shown(words[row, column]), ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(shape[1]), [_shown(token) for token in self.tokens], rotation=45, ha="right")
        axes.set_yticks(range(shape[0]), hook_points[::-1])
        axes.set_xlabel("token")
        figure.colorbar(image, ax=axes, label="probability")
        return figure

    def _repr_html_(self) -> str:
        from workbench.display import figure_html
        from workbench.results_parts import Figure

        return figure_html(Figure(self.figure(), "The likeliest next token after each block, and its probability."))


def logit_lens(
    subject: Subject,
    prompt: str | Sequence[int],
    *,
    hook_points: str | Sequence[str] = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"),
    answer: str | None = None,
    edits: Edits | None = None,
) -> LogitLens:
    """Put the residual stream at several depths through the subject's own final norm and unembedding.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    prompt : str or sequence of int
        One sequence, or its token ids.
    hook_points : str or sequence of str
        Places in the residual stream, by name or pattern.
    answer : str, optional
        The token that ought to follow the prompt: its rank and probability stand in the last position's row.
    edits : mapping, optional
        In place while the stream is read, as in `Subject.run`.

    Returns
    -------
    LogitLens
        In a notebook, drawn.

    Raises
    ------
    UserError
        For a subject without next-token logits, or a hook point that is no place in the stream.

    Notes
    -----
    nostalgebraist, "interpreting GPT: the logit lens" (2020). The last block's output is replaced by the stream at each
    depth and the subject runs on from there, so that whatever it does at its end (norm, soft cap) is its own.
    """
    import pandas

    if not subject.causal or subject.modality != "text":
        raise UserError(f"{subject.address} predicts no next token: the logit lens needs a causal language model")
    names = subject.expand([hook_points] if isinstance(hook_points, str) else hook_points)
    stream = subject.hook_points[last := f"blocks.{subject.n_layers - 1}.hook_resid_post"]
    for name in names:
        if ".hook_resid_" not in name:
            near = "blocks.*.hook_resid_pre, hook_resid_mid or hook_resid_post"
            raise UserError(f"{name} is no place in the residual stream: the logit lens reads {near}")
    batch = subject.batch([prompt])
    run = subject.run(batch, capture=[*names, stream.name], edits=edits)
    assert run.value is not None
    final = run.value[0].float().log_softmax(-1)
    ids = batch.inputs[0].tolist()
    following: list[int | None] = [*ids[1:], None if answer is None else token_of(subject, answer)]
    rows = []
    for name in names:
        stream_there = run.captured[name]

        def replaced(activation: torch.Tensor, at: At, value: torch.Tensor = stream_there) -> torch.Tensor:
            return value

        log_p = subject.intervene(batch, {last: replaced})[0].float().log_softmax(-1)
        top = log_p.max(-1)
        divergence = (final.exp() * (final - log_p)).sum(-1)
        predictions = subject.decode(top.indices.tolist())
        for position, (token, then) in enumerate(zip(subject.decode(ids), following, strict=True)):
            rows.append(
                {
                    "hook_point": name,
                    "position": position,
                    "token": token,
                    "prediction": predictions[position],
                    "probability": float(top.values[position].exp()),
                    "next": None if then is None else subject.decode([then])[0],
                    "p_next": float("nan") if then is None else float(log_p[position, then].exp()),
                    "rank_next": None if then is None else int((log_p[position] > log_p[position, then]).sum()),
                    "divergence": float(divergence[position]),
                }
            )
    return LogitLens(tuple(subject.decode(ids)), pandas.DataFrame(rows).astype({"rank_next": "Int64"}))


def token_of(subject: Subject, token: str | int) -> int:
    """Return the id of a text that is one token for the subject; an id is returned as it is.

    Raises
    ------
    UserError
        If the text is no token or several; the message shows them.
    """
    if isinstance(token, int):
        return token
    ids = [int(each) for window in subject.windows(token) for each in window.tokens[~window.special]]
    if len(ids) != 1:
        pieces = subject.decode(ids) if ids else []
        raise UserError(f"{token!r} must be one token of {subject.address}, but is {len(ids)}: {pieces}")
    return ids[0]


def _shown(token: str) -> str:
    """Return a token as a label: white space that would not be seen is written out, dollars are no mathematics."""
    text = token.replace("\n", "⏎").replace("\t", "⇥")
    return (text.strip() or text.replace(" ", "␣"))[:14].replace("$", r"\$")
