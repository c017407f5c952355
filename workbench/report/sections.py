"""From a section's data to what its template shows. A new kind is a function here and a template beside the others."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.report.numbers import column, number

_LEVELS = 20  # shades of activation; the style sheet has as many
_SHOWN_WITHOUT_SCRIPT = 5
_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT = 280, 84


@dataclass(frozen=True)
class Rendering:
    """A template's file name and the values for it."""

    template: str
    values: dict[str, Any]


def rendering(kind: str, data: Any) -> Rendering:
    """Choose the template for a section and prepare its values.

    Parameters
    ----------
    kind : str
        One of `KINDS`; another one is shown as plain data.
    data : JSON value
        Of the form that the kind needs; of another form it is shown as plain data, with a note.

    Returns
    -------
    Rendering
    """
    if kind not in KINDS:
        return Rendering("plain.html.jinja", {"data": data, "note": f"This report knows no sections of kind “{kind}”."})
    try:
        return KINDS[kind](data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return Rendering("plain.html.jinja", {"data": data, "note": f"Not of the form that kind “{kind}” needs."})


def _text(data: Any) -> Rendering:
    """Show a text (blank lines part its paragraphs) or a list of paragraphs."""
    paragraphs = data.split("\n\n") if isinstance(data, str) else data
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise TypeError("neither a text nor a list of texts")
    return Rendering("text.html.jinja", {"paragraphs": paragraphs})


def _latents(data: Any) -> Rendering:
    """Show what `latents_section` made."""
    shown = {latent["index"] for latent in data["latents"]}
    latents = [_latent(latent, shown) for latent in data["latents"]]
    return Rendering(
        "latents.html.jinja",
        {
            "latents": latents,
            "n_latents": data["n_latents"],
            "measures": data["measures"],
            "n_static": _SHOWN_WITHOUT_SCRIPT,
        },
    )


KINDS: dict[str, Callable[[Any], Rendering]] = {"latents": _latents, "text": _text}


def _latent(latent: dict[str, Any], shown: set[int]) -> dict[str, Any]:
    strongest = max([latent["max_activation"] or 0, *(max(c["activations"]) or 0 for c in latent["contexts"])])
    tokens = [*latent["top_tokens"], *latent["bottom_tokens"]]
    widest = max((abs(effect or 0) for _, effect in tokens), default=0)
    bars = [
        (token, text, _share(effect, widest))
        for (token, text), (_, effect) in zip(_scored(tokens), tokens, strict=True)
    ]
    words = [str(latent["index"]), *(str(label) for label, _ in latent["labels"]), *(token for token, _ in tokens)]
    return {
        **latent,
        "density_text": percentage(latent["density"]),
        "density_width": _log_share(latent["density"]),
        "histogram": _histogram(latent["histogram"]["counts"], latent["histogram"]["edges"]),
        "contexts": [_context(context, strongest) for context in latent["contexts"]],
        "top_tokens": bars[: len(latent["top_tokens"])],
        "bottom_tokens": bars[len(latent["top_tokens"]) :],
        "labels": _scored(latent["labels"]),
        "label_score": (latent["labels"][0][1] or 0) if latent["labels"] else 0,
        "neighbours": [(index, score, index in shown) for index, score in _scored(latent["neighbours"])],
        "search": " ".join(words).lower(),
    }


def _scored(pairs: Sequence[tuple[Any, float | None]]) -> list[tuple[Any, str]]:
    """Write the scores of named things to the same decimals, three digits for the largest."""
    write = column([score for _, score in pairs if score is not None], 3)
    return [(name, number(None) if score is None else write(score)) for name, score in pairs]


def percentage(share: float | None) -> str:
    """Write a share of 0 to 1 in per cent, with its small values told apart."""
    if share is None or share == 0:
        return number(share)
    return f"{number(100 * share, 2 if share < 0.1 else 3)} %"


def _context(context: dict[str, Any], strongest: float) -> dict[str, Any]:
    peak, activations = context["peak"], context["activations"]
    runs: list[dict[str, Any]] = []
    for at, (token, activation) in enumerate(zip(context["tokens"], activations, strict=True)):
        level = min(_LEVELS, math.ceil(_LEVELS * (activation or 0) / strongest)) if strongest else 0
        if level <= 0 and at != peak and runs and runs[-1]["quiet"]:
            runs[-1]["tokens"].append(token)
            continue
        runs.append(
            {
                "tokens": [token],
                "quiet": level <= 0 and at != peak,
                "level": max(0, level),
                "peak": at == peak,
                "activation": number(activation, 3),
            }
        )
    return {"document": context["document"], "runs": runs, "activation": number(activations[peak], 3)}


def _share(value: float | None, whole: float) -> float:
    return round(100 * abs(value or 0) / whole, 1) if whole else 0


def _log_share(density: float | None) -> float:
    """Place a density between one in a million (0) and all rows (100)."""
    return round(100 * (1 + max(-6.0, math.log10(density)) / 6), 1) if density else 0


def _histogram(counts: Sequence[int], edges: Sequence[float]) -> dict[str, Any] | None:
    """Outline bars on a logarithmic scale: activations have long tails that a linear one hides."""
    if not counts or max(counts) == 0:
        return None
    top = math.log10(1 + max(counts))
    step = _HISTOGRAM_WIDTH / len(counts)
    bars = []
    for at, count in enumerate(counts):
        height = _HISTOGRAM_HEIGHT * math.log10(1 + count) / top
        if count:
            bars.append(f"M{at * step:.1f} {_HISTOGRAM_HEIGHT}v{-height:.1f}h{max(0.5, step - 1):.1f}v{height:.1f}z")
    return {
        "path": "".join(bars),
        "width": _HISTOGRAM_WIDTH,
        "height": _HISTOGRAM_HEIGHT,
        "lo": number(edges[0], 2),
        "hi": number(edges[-1], 3),
        "most": number(max(counts)),
    }
