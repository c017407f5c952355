"""Circuits: which heads, MLPs and connections of a subject model carry out a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.datasets.files import holds_pairs
from workbench.hookspecs import hookimpl
from workbench.plugin import DatasetSource, Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.datasets.protocol import Dataset
    from workbench.results import Result

Method = Literal["noising", "denoising", "eap", "eap-ig", "discrete-sae"]
Metric = Literal["logit-difference", "probability-difference", "logit-minus-max", "kl"]
Ablation = Literal["resample", "mean", "zero"]
Truth = Literal["auto", "none", "acdc", "oneill-bui"]


@dataclass(frozen=True)
class SaeConfig:
    """The discrete SAE."""

    examples: Annotated[int, Option("clean prompts, and as many negative ones", unit="prompts", ge=2)] = 250
    train_examples: Annotated[int, Option("of them, drawn for training", unit="prompts", ge=1)] = 10
    latents: Annotated[int, Option("codes that a head's output can get", ge=2)] = 200
    penalty: Annotated[float, Option("weight of the codes' size in the loss", ge=0)] = 0.02
    steps: Annotated[int, Option("of training, each on all training rows", ge=1)] = 500
    lr: Annotated[float, Option("learning rate", gt=0)] = 1e-3
    seeds: Annotated[int, Option("autoencoders trained, whose scores are averaged", ge=1)] = 5
    scaled: Annotated[bool, Option("divide outputs by their root mean square; false: as in the paper")] = True
    share: Annotated[bool, Option("a head's score is the share of its codes, not their number")] = False


@dataclass(frozen=True)
class CircuitConfig:
    """Scores of nodes and edges, and what their circuits are worth."""

    method: Annotated[
        Method | tuple[Method, ...],
        Option("activation patching (noising, denoising), attribution (eap, eap-ig), or codes of heads' outputs"),
    ] = ("noising", "eap", "eap-ig", "discrete-sae")
    examples: Annotated[int, Option("pairs, half to score on and half to evaluate on", unit="prompts", ge=4)] = 64
    metric: Annotated[
        Metric | None, Option("how an answer is scored; by default the task's own, kl where pairs have no answers")
    ] = None
    steps: Annotated[int, Option("points of the path from corrupted to clean (eap-ig)", ge=1)] = 20
    rule: Annotated[
        Literal["midpoint", "left"], Option("where in each step the gradient is taken; left as published (eap-ig)")
    ] = "midpoint"
    ablation: Annotated[
        Ablation, Option("what flows along absent edges: that of the corrupted prompt, its mean over prompts, nothing")
    ] = "resample"
    size: Annotated[
        int | None,
        Option(
            "strongest edges of which the circuit shown consists; by default as few as do nine tenths of the task", ge=1
        ),
    ] = None
    truth: Annotated[
        Truth, Option("a known circuit: of a planted subject or a published one, or none; acdc or oneill-bui by name")
    ] = "auto"
    other: Annotated[str | None, Option("a second task, as --data names it, whose circuit is compared")] = None
    copies: Annotated[int, Option("copies of the subject with random weights, as a control; 0 for none", ge=0)] = 3
    permutations: Annotated[int, Option("of labels, and of scores within layers", ge=10)] = 200
    draws: Annotated[int, Option("resamples of examples behind each interval", ge=10)] = 1000
    batch_size: Annotated[int, Option("pairs in a pass", ge=1)] = 16
    sae: SaeConfig = SaeConfig()


class Circuit(Plugin):
    """Score the heads, MLPs and edges of a subject by several methods, and measure the circuits that they name."""

    name = "circuit"
    help = "circuits: which heads, MLPs and connections carry out a task, and how much of it do they do?"
    version = "1"
    Config = CircuitConfig
    needs = Needs(subject=True)
    default_model = "zoo:planted-ioi-shadow-0"

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.circuit.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `circuit`."""
    return [Circuit]


def load_ioi(rest: str) -> Dataset:
    """Make the task of indirect objects."""
    from workbench.plugins.circuit.tasks.ioi import IndirectObject

    return IndirectObject(rest)


def load_greater_than(rest: str) -> Dataset:
    """Make the task of later years."""
    from workbench.plugins.circuit.tasks.greater_than import GreaterThan

    return GreaterThan(rest)


def load_docstring(rest: str) -> Dataset:
    """Make the task of documented arguments."""
    from workbench.plugins.circuit.tasks.docstring import Docstring

    return Docstring(rest)


def load_induction(rest: str) -> Dataset:
    """Make the task of repeated tokens."""
    from workbench.plugins.circuit.tasks.induction import Induction

    return Induction(rest)


def load_planted(rest: str) -> Dataset:
    """Make the task of a planted subject."""
    from workbench.plugins.circuit.tasks.planted import Planted

    return Planted(rest)


def load_pairs(rest: str) -> Dataset:
    """Open a file of pairs."""
    from workbench.plugins.circuit.tasks.jsonl import PairsFile

    return PairsFile(rest)


@hookimpl
def provide_datasets() -> list[DatasetSource]:
    """Offer the tasks, and ``pairs:`` for one's own."""
    return [
        DatasetSource("ioi", "pairs: who was given it? (ioi:s2-io: corrupted in the second subject only)", load_ioi),
        DatasetSource("greater-than", "pairs: which years are later?", load_greater_than),
        DatasetSource("docstring", "pairs: which argument is documented next?", load_docstring),
        DatasetSource("induction", "pairs: random tokens that repeat, for any language model", load_induction),
        DatasetSource("planted", "pairs: the task of a zoo:planted-* subject", load_planted),
        DatasetSource("pairs", "JSON lines of clean, corrupted, answer, wrong", load_pairs, holds_pairs),
    ]
