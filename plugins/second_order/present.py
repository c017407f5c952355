"""The result: tables, figures, directions, and what to make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from workbench.plugins.second_order.ablation import SECOND
from workbench.plugins.second_order.controls import BY_EFFECT, CONTROLS
from workbench.plugins.second_order.figures import (
    ablation_figure,
    agreement_figure,
    neurons_figure,
)
from workbench.plugins.second_order.sample import shown_pixels
from workbench.plugins.second_order.segmentation import on_pixels
from workbench.plugins.second_order.segmented import (
    add_segmentation_figures,
    add_segmentation_metrics,
    segmentation_paragraphs,
    segmentation_rows,
)
from workbench.plugins.second_order.tables import (
    approximation_rows,
    held_rows,
    neuron_table,
    parts_of,
    polysemous,
    selective_table,
    term_text,
    top_images,
)
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.second_order.run import Findings
    from workbench.subjects.vit_subject import VisionSubject

OVER = "95 % interval over test images"
IMAGES_SHOWN = 6
TABLES = {
    "ablations": "Layers whose neurons are held at their mean, on test images: their second-order effect, their "
    "first-order (direct) effect, or their activations in the running subject (total indirect). change: mean squared "
    "change of the embedding of length 1; fall: of accuracy, paired, with its interval.",
    "approximations": "What classification keeps when the second-order effects of all neurons of a layer are replaced. "
    "significant: kept only on images where they are larger than on all but the largest fitting images, elsewhere at "
    "the mean; insignificant: the reverse; rank one: projected on each neuron's direction; texts: projected on the sum "
    "of its texts. error: squared, as a share of what all neurons do together.",
    "neurons": "All neurons looked at. spread: root mean square length of the effect, less its mean, as a share of the "
    "embedding's; rank_one: share of the squared length on the images of largest effect that lies along the direction; "
    "held_by: smallest share of images that holds nine tenths of the squared length; coherence: mean cosine between "
    "pairs of its first texts; auc: of the concept that its effect tells apart best on test images; named: what its "
    "texts name.",
    "selective": "The neurons whose effects tell a concept apart best on test images, and what their texts name.",
    "agreement": "Of how many selective neurons the texts name the concept, and of controls. chance: concepts renamed "
    "at random within their label; p: of a share as large under that.",
    "polysemous": "Neurons of large effect whose first texts belong together least.",
    "segmentation": "Maps against masks of test images: what an image is taken for, all at once, or each class that it "
    "holds by itself (label: of its kind; all: together). Variant and threshold (standard deviations above a map's "
    "mean) were chosen on other images, for each method and label. gain: second order less the method, paired over "
    "images. At the mean: the same variants, thresholded there.",
}


def present(context: Context, subject: VisionSubject, found: Findings, embeddings: Tensor) -> Result:
    """Put the result together."""
    frames = tables_of(context, found, embeddings)
    result = Result()
    add_metrics(result, found, frames)
    result.add_section(
        "how-to-read", "text", reading(context, found, frames), "What was done, and how far to trust it."
    )
    add_figures(context, result, subject, found, frames)
    for name, description in TABLES.items():
        if name in frames:
            result.add_table(name, frames[name], description=description)
    for layer, neurons in found.neurons.items():
        result.add_array(
            f"directions-{layer}",
            xr.DataArray(neurons.direction, dims=("neuron", "output")),
            description=f"direction of each neuron of layer {layer}, of length 1; 0 for a neuron without effect",
        )
    return result


def tables_of(context: Context, found: Findings, embeddings: Tensor) -> dict[str, pd.DataFrame]:
    """Return the tables that this run has."""
    frames = {
        "ablations": pd.DataFrame(found.ablations),
        "approximations": pd.DataFrame(
            approximation_rows(context, found.sample, found.neurons, embeddings, found.judge)
        ),
        "neurons": neuron_table(found, context.config),
    }
    if found.held:
        frames["selective"] = selective_table(found)
        frames["agreement"] = pd.DataFrame(held_rows(found.held))
    if "coherence" in frames["neurons"]:
        frames["polysemous"] = polysemous(frames["neurons"])
    if any(each.outcomes for each in found.segmentations):
        frames["segmentation"] = pd.DataFrame(segmentation_rows(found.segmentations))
    return frames


def add_metrics(result: Result, found: Findings, frames: dict[str, pd.DataFrame]) -> None:
    """Add what one wants to know first."""
    ablations, neurons = frames["ablations"], frames["neurons"]
    if "accuracy" in ablations:
        known = found.judge is not None and found.judge.known
        clean = ablations.iloc[0]
        what = "zero-shot accuracy, mean over labels" if known else "agreement with the subject as it is"
        add(result, "accuracy", clean, "accuracy", "lo", "hi", f"{what}; {OVER}")
        for layer in found.neurons:
            row = ablations[(ablations["effect"] == SECOND) & (ablations["layer"] == layer)].iloc[0]
            add(
                result, f"fall.layer-{layer}", row, "fall", "fall_lo", "fall_hi",
                f"of it when the second-order effects of layer {layer} are held at their mean; {OVER}, paired",
            )  # fmt: skip
    for name, text in (
        (
            "rank_one",
            "median share of a neuron's effects, squared, on its images of largest effect, along one direction",
        ),
        ("held_by", "median smallest share of images that holds nine tenths of a neuron's effects, squared"),
    ):
        result.add_metric(name, float(neurons[name].median()), description=text)
    for held in found.held:
        share, p = held.agreement.share, held.agreement.p
        name = "named" if held.what == "neurons" else held.what.replace(" ", "-")
        name += "" if held.response == BY_EFFECT else "-by-activation"
        result.add_metric(
            name,
            share.value,
            lo=share.lo,
            hi=share.hi,
            description=f"share of the {len(held.neuron)} most selective neurons ({held.what}, by {held.response}) "
            f"whose texts name the concept; concepts renamed at random {held.agreement.chance:.3f}, p = {p:.2g}; 95 % "
            "interval over neurons",
        )
        if held.what == "neurons":
            result.add_metric(f"{name}.p", p, description="of a share as large, concepts renamed at random")
    controls = [held for held in found.held if held.what in CONTROLS]
    if controls:
        result.add_metric(
            "negative_control",
            float(np.mean([held.agreement.p > 0.01 for held in controls])),
            description="share of the controls (random weights, random directions, permuted labels) whose texts name "
            "concepts no more often than chance (p > 0.01); should be 1",
        )
    add_segmentation_metrics(result, found.segmentations)


def add(result: Result, name: str, row: pd.Series[Any], value: str, lo: str, hi: str, description: str) -> None:
    """Add one number with its interval, where it has one."""
    known = {"lo": row[lo], "hi": row[hi]} if row[lo] <= row[hi] else {}
    result.add_metric(name, float(row[value]), description=description, **known)


def add_figures(
    context: Context, result: Result, subject: VisionSubject, found: Findings, frames: dict[str, pd.DataFrame]
) -> None:
    """Add the figures."""
    result.add_figure(
        "ablations",
        ablation_figure(frames["ablations"]),
        description="One layer's neurons held at their mean over fitting images, on test images: only what they add "
        "through later values (second order), only what they add directly (first order), or their activations in the "
        "running subject (total indirect). 95 % intervals over images.",
    )
    if context.config.shown:
        shown = shown_neurons(context, subject, found, frames["neurons"])
        result.add_figure(
            "neurons",
            neurons_figure(shown),
            description="Neurons, the texts that their directions are sums of, and the images where their effects "
            "reach furthest along the direction; over each image the neuron's activations.",
        )
    if "agreement" in frames:
        result.add_figure(
            "agreement",
            agreement_figure(frames["agreement"]),
            description="Of how many of the most selective neurons the texts name the concept that they tell apart on "
            "images to which nothing was fitted; grey: controls, which must be where concepts renamed at random are.",
        )
    add_segmentation_figures(result, subject, found.segmentations, frames.get("segmentation"))


def shown_neurons(
    context: Context, subject: VisionSubject, found: Findings, table: pd.DataFrame
) -> list[dict[str, Any]]:
    """Choose neurons to show, each concept once before any comes again, and run their images for the maps."""
    by = ["auc", "spread"] if "auc" in table else ["spread"]
    order = table.sort_values(by, ascending=False, kind="stable")
    if "selective_for" in table:
        order = order.head(max(context.config.selective, context.config.shown))
        again = order.groupby("selective_for").cumcount()
        order = order.iloc[np.argsort(again.to_numpy(), kind="stable")]
    shown = []
    for _, row in order.head(context.config.shown).iterrows():
        layer, neuron = int(row["layer"]), int(row["neuron"])
        images = top_images(found.neurons[layer], neuron, IMAGES_SHOWN)
        pictures = [found.sample.picture(int(image)) for image in images]
        hook = f"blocks.{layer}.mlp.hook_post"
        batch = subject.batch(pictures)
        post = subject.capture(batch, [hook])[hook][:, subject.arch.n_prefix :, neuron].float().cpu().numpy()
        title = f"layer {layer}, neuron {neuron}"
        if "selective_for" in table:
            title += f": {row['selective_for']} ({row['auc']:.2f})"
        neurons = found.neurons[layer]
        texts = (
            "" if found.pool is None else term_text(neurons.texts[neuron], neurons.coefficients[neuron], found.pool, 6)
        )
        shown.append(
            {
                "title": title,
                "texts": texts,
                "images": [shown_pixels(subject, picture) for picture in pictures],
                "maps": list(on_pixels(subject, batch, post)),
            }
        )
    return shown


def reading(context: Context, found: Findings, frames: dict[str, pd.DataFrame]) -> list[str]:
    """Say in words what was done, what was found, and what to beware of."""
    sample, layers = found.sample, ", ".join(map(str, found.neurons))
    paragraphs = [
        f"Second-order effects: what a neuron adds to the embedding through the values of later attention heads, "
        f"attention patterns and the scales of layer norms held at what they are ({context.config.convention} "
        f"convention). {parts_of(sample)}. Means, directions and texts come from the first part; layers, map variants "
        "and thresholds were chosen on the first two; every score is from the last."
    ]
    neurons = frames["neurons"]
    paragraphs.append(
        f"Neurons of layers {layers}: the median neuron has {100 * neurons['rank_one'].median():.0f} % of its effects "
        f"(squared, on the {context.config.top} fitting images where they are largest) along one direction, and "
        f"{100 * neurons['held_by'].median():.0f} % of the images hold nine tenths of them."
    )
    if found.pool is not None:
        n_terms = next(iter(found.neurons.values())).texts.shape[1]
        paragraphs.append(
            f"Directions are put into words as sums of at most {n_terms} of {found.pool.source}, whose "
            f"mean embedding is taken off first; the median sum explains {100 * neurons['explained'].median():.0f} % "
            "of a direction. Coefficients are signed: a negative one says what the neuron speaks against."
        )
    for held in found.held:
        share = held.agreement.share
        paragraphs.append(
            f"{held.what.capitalize()}, selective by {held.response}: of {len(held.neuron)}, the texts of "
            f"{100 * share.value:.0f} % [{100 * share.lo:.0f}, {100 * share.hi:.0f}] name the concept; concepts "
            f"renamed at random {100 * held.agreement.chance:.0f} %, p = {held.agreement.p:.2g}."
        )
    return paragraphs + segmentation_paragraphs(found.segmentations) + list(found.notes)
