"""Second-order effects: what the neurons of a vision tower add to its output through the values of later heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result


@dataclass(frozen=True)
class SegmentationConfig:
    """Zero-shot segmentation by neurons whose direction is like the class name."""

    images: Annotated[int, Option("images with masks, half of them to choose by; 0 for none", unit="images", ge=0)] = (
        400
    )
    data: Annotated[
        str | None,
        Option("dataset whose pixels are labelled, asked class by class; by default the run's, shapes:four for shapes"),
    ] = None
    neurons: Annotated[
        int | tuple[int, ...], Option("numbers of neurons to choose from on other images", unit="neurons", ge=1)
    ] = (10, 25, 50, 100, 200, 400, 800)


@dataclass(frozen=True)
class SecondOrderConfig:
    """Second-order effects of neurons on the embedding of an image."""

    layer: Annotated[
        int | tuple[int, ...] | None,
        Option("layers whose neurons are looked at; by default the five whose ablation changes most", ge=0),
    ] = None
    convention: Annotated[
        Literal["linear", "published"],
        Option("each neuron's own mean is taken off, or means and biases are shared out as in the paper's code"),
    ] = "linear"
    images: Annotated[int, Option("images drawn from the dataset: half fit, a fifth choose, the rest test", ge=20)] = (
        1200
    )
    label: Annotated[
        str | tuple[str, ...] | None, Option("labels whose categories are the classes; by default all with categories")
    ] = None
    classes: Annotated[
        str | None, Option("file of class names, a name a line, or category, tab, name; for one label")
    ] = None
    template: Annotated[str, Option("text that names a class, {} for its name")] = "a photo of a {}"
    texts: Annotated[
        str | None, Option("file of texts to decompose into, one a line; by default the dataset's, or common words")
    ] = None
    phrases: Annotated[bool, Option("take the dataset's descriptions of several words into the pool as well")] = False
    text_model: Annotated[str | None, Option("address of the text tower; by default that beside #vision")] = None
    terms: Annotated[
        int | None, Option("texts in a decomposition; by default 32, or an eighth of the embedding's size", ge=1)
    ] = None
    naming_terms: Annotated[int, Option("of these, the first so many tell which concept is named", ge=1)] = 5
    top: Annotated[int, Option("images of largest effect, to which a direction is fitted", unit="images", ge=2)] = 100
    selective: Annotated[int, Option("most selective neurons, whose decompositions are held to account", ge=2)] = 50
    indirect: Annotated[bool, Option("also hold each layer's neurons at their mean in the running subject")] = True
    masks: Annotated[str | None, Option("folder of masks, PNG files with the images' names, 0 for the background")] = (
        None
    )
    shown: Annotated[int, Option("neurons shown with their images", ge=0)] = 12
    controls: Annotated[bool, Option("repeat with random weights, random directions and permuted labels")] = True
    permutations: Annotated[int, Option("behind each p-value", ge=100)] = 10_000
    draws: Annotated[int, Option("resamples of images behind each interval", ge=10)] = 1000
    segmentation: SegmentationConfig = SegmentationConfig()

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ValueError(f"template={self.template!r}: must have {{}} where the name of the class goes")


class SecondOrder(Plugin):
    """Exact second-order effects of neurons, which layers matter, what single neurons write and what texts say so."""

    name = "second-order"
    help = "what do neurons of a CLIP vision tower add to the embedding through later attention, in images and words?"
    version = "1"
    Config = SecondOrderConfig
    needs = Needs(subject=True, data=True)
    default_model = "zoo:shapes-clip#vision"
    default_data = "shapes"

    def run(self, context: Context) -> Result:
        """See `Plugin.run`."""
        from workbench.plugins.second_order.run import run

        return run(context)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer `second-order`."""
    return [SecondOrder]
