"""The run: which layers matter, what their neurons write, which texts say so, and where in the image it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.second_order.ablation import ablate, matter_most
from workbench.plugins.second_order.controls import Held, hold_to_account
from workbench.plugins.second_order.judging import Judge, make_judge
from workbench.plugins.second_order.maps import MapMaker
from workbench.plugins.second_order.matching import centred_texts
from workbench.plugins.second_order.neurons import Neurons, describe_neurons
from workbench.plugins.second_order.passes import measure_layers, measure_neurons
from workbench.plugins.second_order.pool import Pool, make_pool
from workbench.plugins.second_order.present import present
from workbench.plugins.second_order.published import published_hook_points
from workbench.plugins.second_order.questions import class_question, whole_question
from workbench.plugins.second_order.readout import architecture
from workbench.plugins.second_order.sample import Sample, draw_sample
from workbench.plugins.second_order.segmentation import Segmentation, segment, why_not
from workbench.plugins.second_order.texts import embed_texts, text_tower

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.second_order import SecondOrderConfig
    from workbench.results import Result
    from workbench.subjects.vit_subject import VisionSubject


@dataclass
class Findings:
    """What a run found.

    Attributes
    ----------
    sample : Sample
        The images.
    pool : Pool, optional
        The texts; None without a text tower.
    texts : Tensor, optional
        [text, output] centred.
    judge : Judge, optional
        None without classes or a text tower.
    ablations : list of dict
        Rows of the table.
    neurons : dict of int to Neurons
        By layer.
    held : list of Held
        Whether texts name what neurons are selective for, with the controls.
    segmentations : list of Segmentation
        Of each question; none where nothing could be segmented.
    notes : list of str
        For the report.
    """

    sample: Sample
    pool: Pool | None
    texts: Tensor | None
    judge: Judge | None
    ablations: list[dict[str, Any]] = field(default_factory=list)
    neurons: dict[int, Neurons] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    segmentations: list[Segmentation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(context: Context) -> Result:
    """Measure second-order effects and put the result together.

    Raises
    ------
    UserError
        If the subject, the images or an option does not fit.
    """
    config: SecondOrderConfig = context.config
    subject = context.subject()
    architecture(subject)
    vision = cast("VisionSubject", subject)
    wanted = checked_layers(config.layer, subject.n_layers, subject.address)
    if config.convention == "published":
        published_hook_points(subject, 0)  # refuses a tower that it is not for, before anything is run
    sample = draw_sample(context)
    n_output = int(subject.hook_points["hook_output"].shape[-1] or 0)
    tower = text_tower(context, subject, n_output)
    pool = None if tower is None else make_pool(config, sample.dataset, sample.all_concepts)
    prompts, texts = (None, None) if tower is None or pool is None else embedded(context, tower, sample, pool)
    classes = class_question(context, tower, sample) if tower is not None and config.segmentation.images else None
    layers = measure_layers(context, subject, sample)
    embeddings = torch.from_numpy(layers.rows("embeddings"))
    judge = make_judge(sample, prompts, embeddings)
    found = Findings(sample, pool, texts, judge)
    if tower is None:
        found.notes.append(
            f"{subject.address} has no text tower beside it (option text_model): directions are not put into words, "
            "and ablations are measured by the change of the embedding alone."
        )
    elif judge is None:
        found.notes.append("The dataset has no classes (options label, classes): nothing is classified.")
    elif not judge.known:
        found.notes.append("Nobody says what the images show: accuracy is agreement with the subject as it is.")
    found.ablations = ablate(context, subject, sample, layers, judge)
    chosen = wanted if wanted is not None else matter_most(sample, layers, judge)
    chunks = measure_neurons(context, subject, sample, chosen, config.convention)
    for layer in chosen:
        path = context.work / f"neurons-{layer}.npz"
        if not path.exists():
            describe_neurons(context, subject, sample, chunks, layer, config.convention, texts).save(path)
        found.neurons[layer] = Neurons.load(path)
    if pool is not None and texts is not None and sample.all_concepts and (sample.codes >= 0).any():
        found.held = hold_to_account(context, vision, sample, pool, texts, found.neurons)
    reason = why_not(context, vision, sample, judge)
    if reason is None and judge is not None:
        counts = config.segmentation.neurons
        maker = MapMaker(subject, found.neurons, [counts] if isinstance(counts, int) else counts)
        asked = whole_question(context, sample, judge, embeddings), classes
        found.segmentations = [segment(context, vision, maker, question) for question in asked if question is not None]
    else:
        found.notes.append(f"Nothing was segmented: {reason}.")
    return present(context, vision, found, embeddings)


def checked_layers(layer: int | Sequence[int] | None, n_layers: int, address: str) -> list[int] | None:
    """Return the layers asked for, ascending; one that no later attention reads is an error."""
    if layer is None:
        return None
    layers = sorted({layer} if isinstance(layer, int) else set(layer))
    if not layers or layers[-1] > n_layers - 2:
        raise UserError(
            f"layer={layer}: the layers of {address} that later attention reads are 0 to {n_layers - 2}, at least one"
        )
    return layers


def embedded(context: Context, tower: Any, sample: Sample, pool: Pool) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all concepts' prompts [prompt, output], and of the pool, centred [text, output]."""
    path = context.work / "texts.npy"
    prompts = [prompt for concept in sample.all_concepts for prompt in concept.prompts]
    if not path.exists():
        rows = embed_texts(context, tower, [*prompts, *pool.texts], "texts").cpu().numpy()
        part = path.with_name("texts.part.npy")
        np.save(part, rows)
        part.replace(path)
    held = torch.from_numpy(np.load(path))
    return held[: len(prompts)], centred_texts(held[len(prompts) :])
