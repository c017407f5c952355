"""What `zoo:shapes-clip` can do: naming attributes without training on them, telling two objects apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workbench.datasets.shapes import Shapes
from workbench.datasets.shapes_captions import phrase, prompts
from workbench.datasets.shapes_scenes import ATTRIBUTES, MAIN, Scene, Thing, is_held_out
from workbench.subjects.stacked import StackedSubject
from workbench.zoo.towers import Towers
from workbench.zoo.trainer import Lesson

BATCH = 128
SEEDS = (0, 1, 2, 3)  # of the renderings; the record names each
N_SHOWN = 504  # scenes of combinations that were shown
Measurements = dict[str, Any]


def embed(subject: StackedSubject, examples: Sequence[Any]) -> Tensor:
    """Return embeddings of length one, float32 [example, embedding]."""
    found = []
    for i in range(0, len(examples), BATCH):
        value = subject.run(subject.batch(examples[i : i + BATCH])).value
        assert value is not None
        found.append(F.normalize(value.float(), dim=-1).cpu())
    return torch.cat(found)


def embed_classes(text: StackedSubject, classes: Sequence[Sequence[str]]) -> Tensor:
    """Return an embedding of length one of each class, float32 [class, embedding]: the mean of its prompts'."""
    flat = [prompt for each in classes for prompt in each]
    of_class = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(each) for each in classes]))
    embedded = embed(text, flat)
    total = torch.zeros(len(classes), embedded.shape[1]).index_add_(0, of_class, embedded)
    return F.normalize(total, dim=-1)


class ZeroShot:
    """Names what a scene of one object shows: the class whose prompts lie nearest to the image.

    Parameters
    ----------
    towers : Towers
        The subject.
    """

    def __init__(self, towers: Towers) -> None:
        self.towers = towers
        self.attributes = {
            name: embed_classes(towers.text, [prompts({name: value}) for value in ATTRIBUTES[name]]) for name in MAIN
        }
        self.kinds = list(product(*(range(len(ATTRIBUTES[name])) for name in MAIN)))

    @cached_property
    def whole(self) -> Tensor:
        """Embeddings of what names all four attributes, [kind, embedding]."""
        said = [{n: ATTRIBUTES[n][v] for n, v in zip(MAIN, kind, strict=True)} for kind in self.kinds]
        return embed_classes(self.towers.text, [prompts(each) for each in said])

    def attributes_right(self, scenes: Sequence[Scene], images: Tensor) -> dict[str, np.ndarray]:
        """Return where each attribute is named rightly, bool [scene], images [scene, embedding]."""
        return {
            name: (images @ classes.T).argmax(1).numpy() == truth_of(scenes)[:, i]
            for i, (name, classes) in enumerate(self.attributes.items())
        }

    def right(self, scenes: Sequence[Scene], images: Tensor) -> dict[str, np.ndarray]:
        """Return where each attribute is named rightly, and all four at once, bool [scene].

        ``together`` asks for the right one of all 1728 captions of shape, colour, texture and place; ``all four`` for
        each attribute's own question to be answered rightly.
        """
        found = self.attributes_right(scenes, images)
        found["all four"] = np.logical_and.reduce(list(found.values()))
        best = np.array(self.kinds)[(images @ self.whole.T).argmax(1).numpy()]
        found["together"] = (best == truth_of(scenes)).all(1)
        return found


def truth_of(scenes: Sequence[Scene]) -> np.ndarray:
    """Return the values of the first object's attributes, int64 [scene, attribute of `MAIN`]."""
    return np.array([[getattr(scene.things[0], name) for name in MAIN] for scene in scenes])


def share(right: np.ndarray) -> Measurements:
    """Return a share with its Wilson interval (95 %), which does not shrink to a point where all is right."""
    n, p, z = len(right), float(right.mean()), 1.959964
    middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [round((middle + sign * width) / (1 + z * z / n), 4) for sign in (-1, 1)]
    return {"share": round(p, 4), "interval": bounds}


def scenes_of(dataset: Shapes, held_out: bool | None = None, most: int | None = None) -> list[Scene]:
    """Return a dataset's scenes, or those whose objects are, or are not, of combinations that were held out."""
    every = (dataset.scene(i) for i in range(len(dataset)))
    kept = (
        s for s in every if held_out is None or any(is_held_out(thing.combination) for thing in s.things) == held_out
    )
    return [scene for scene, _ in zip(kept, range(most or len(dataset)), strict=False)]


def pictures(scenes: Sequence[Scene]) -> list[Image.Image]:
    """Render scenes."""
    from workbench.datasets.shapes_renderer import render

    return [Image.fromarray(render(scene)[0]) for scene in scenes]


def single_objects(zero_shot: ZeroShot, scenes: Sequence[Scene]) -> Measurements:
    """Return how often each attribute is named rightly, and the combination that fares worst."""
    right = zero_shot.right(scenes, embed(zero_shot.towers.vision, pictures(scenes)))
    names = [scene.things[0].combination for scene in scenes]
    worst = min(
        (float(np.mean([ok for ok, of in zip(right["together"], names, strict=True) if of == name])), name)
        for name in sorted(set(names))
    )
    words = [ATTRIBUTES[attribute][value] for attribute, value in zip(MAIN, worst[1], strict=False)]
    return {
        "scenes": len(scenes),
        **{name: share(values) for name, values in right.items()},
        "worst combination": {"which": " ".join(words), "together": round(worst[0], 4)},
    }


def said_of(thing: Thing, **instead: str) -> str:
    """Return a phrase about an object, with another word for some attributes."""
    return phrase({name: {**thing.words, **instead}[name] for name in MAIN}, "colour first")


def two_objects(zero_shot: ZeroShot, scenes: Sequence[Scene]) -> Measurements:
    """Return what is told apart in scenes of two objects.

    ``both named``: the two best classes of an attribute are those of the two objects (which differ in it). ``bound``:
    the true caption beats the one in which the objects have swapped their values. ``found``: the true caption is the
    best of all the scenes'.
    """
    towers = zero_shot.towers
    images = embed(towers.vision, pictures(scenes))
    both, bound = {}, {}
    own = embed(towers.text, [f"{said_of(s.things[0])} and {said_of(s.things[1])}" for s in scenes])
    for name in MAIN:
        differ = np.array([getattr(s.things[0], name) != getattr(s.things[1], name) for s in scenes])
        truth = np.sort([[getattr(thing, name) for thing in s.things] for s in scenes], axis=1)
        best = np.sort((images @ zero_shot.attributes[name].T).topk(2).indices.numpy(), axis=1)
        both[name] = share((best == truth).all(1)[differ])
        swapped = [
            " and ".join(
                said_of(thing, **{name: other.words[name]})
                for thing, other in zip(s.things, reversed(s.things), strict=True)
            )
            for s in scenes
        ]
        margin = (images * (own - embed(towers.text, swapped))).sum(1).numpy()
        bound[name] = share(margin[differ] > 0)
    found = (images @ own.T).argmax(1).numpy() == np.arange(len(scenes))
    return {"scenes": len(scenes), "both named": both, "bound": bound, "found": share(found)}


HOW = {
    "zero_shot": "the class whose prompts' mean embedding is nearest; together: the best of 1728 captions",
    "interval": "95 %, Wilson, over scenes",
    "held_out": "every held-out combination at every place, under each seed of the rendering",
    "two objects": "both named: the two best classes; bound: the true caption beats that with values swapped; "
    "found: the true caption is the best of all scenes'",
}


def measure(subject: Any, lesson: Lesson) -> Measurements:
    """Return the record's measurements: single objects held out and shown, two objects, an untrained twin."""
    assert isinstance(subject, Towers)
    zero_shot = ZeroShot(subject)
    by_seed = {str(seed): single_objects(zero_shot, scenes_of(Shapes(seed=seed), held_out=True)) for seed in SEEDS}
    every = [scene for seed in SEEDS for scene in scenes_of(Shapes(seed=seed), held_out=True)]
    held_out = single_objects(zero_shot, every)
    untrained = lesson.as_subject("untrained", lesson.new_network().eval())
    least, which = min((held_out[name]["share"], name) for name in MAIN)
    together = held_out["together"]["share"]
    return {
        "summary": "held-out combinations, zero-shot: "
        f"each attribute at least {100 * least:.1f} % right ({which}), all together {100 * together:.1f} %",
        "fingerprints": {"vision": subject.vision.fingerprint(), "text": subject.text.fingerprint()},
        "how": HOW,
        "held_out": held_out,
        "held_out_by_seed": by_seed,
        "shown": single_objects(zero_shot, scenes_of(Shapes(), held_out=False, most=N_SHOWN)),
        "two_objects": two_objects(zero_shot, scenes_of(Shapes("two"))),
        "untrained": single_objects(ZeroShot(untrained), scenes_of(Shapes(), held_out=True)),
    }
