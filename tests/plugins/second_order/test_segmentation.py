"""Maps against the effects they are parts of; questions and choices against what is known of rendered scenes."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.datasets.shapes import Shapes
from workbench.plugins.second_order.effects import second_order_effects
from workbench.plugins.second_order.maps import ATTENTION, FIRST, METHODS, SECOND, MapMaker, Variant
from workbench.plugins.second_order.passes import Chunks
from workbench.plugins.second_order.questions import class_question
from workbench.plugins.second_order.sample import CHOOSE, TEST
from workbench.plugins.second_order.segmentation import choose, compare, measure
from workbench.plugins.second_order.tracing import trace
from workbench.subjects.sources import load_subject


@pytest.fixture(scope="module")
def towers():
    return [load_subject(f"zoo:shapes-clip#{tower}", device="cpu") for tower in ("vision", "text")]


@pytest.fixture
def context(tmp_path):
    """Return what the functions under test take of a run's context."""

    class Ticker:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, n):
            pass

    shapes = Shapes("four", seed=3, n_scenes=30, folder=tmp_path / "pictures")
    return SimpleNamespace(
        config=SimpleNamespace(segmentation=SimpleNamespace(images=20, data="scenes"), draws=100),
        loading=SimpleNamespace(data=lambda address: shapes),
        rng=lambda name: np.random.default_rng(0),
        progress=lambda *args: Ticker(),
        work=tmp_path,
    )


@pytest.mark.slow
def test_maps_are_parts_of_the_effects_they_show(towers):
    """Over all tokens a neuron's map adds up to its effect along its direction; patches are all but the class token."""
    vision = towers[0]
    rng = np.random.default_rng(0)
    shapes = Shapes("two", n_scenes=2)
    batch = vision.batch([shapes.document(i).image for i in range(2)])
    layers = (0, vision.n_layers - 2)
    unit = [F.normalize(torch.from_numpy(rng.normal(size=(vision.d_mlp, 64))).float(), dim=1) for _ in layers]
    held = {layer: SimpleNamespace(direction=each.numpy(), spread=np.ones(vision.d_mlp, np.float32))
            for layer, each in zip(layers, unit, strict=True)}  # fmt: skip
    maker = MapMaker(vision, held, [3, 10_000])
    seen = maker.look(batch)
    traced = trace(vision, batch, layers)
    for number, layer in enumerate(layers):
        columns = slice(number * vision.d_mlp, (number + 1) * vision.d_mlp)
        whole = torch.einsum("bno,no->bn", second_order_effects(vision, batch, layer), unit[number])
        mixing = traced.mixing(maker.paths[layer])[:, :, 0]
        of_class = torch.einsum("bs,sn->bn", mixing, maker.unit[layer]) * traced.post(layer)[:, 0]
        got = seen.along[:, :, columns].sum(1) + of_class
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-3)
    queries = F.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    maps = maker.maps(seen, queries)
    assert [*maps] == maker.variants
    first = trace(vision, batch, [0], [f"blocks.{vision.n_layers - 1}.attn.hook_{n}" for n in ("v", "pattern")])
    last = vision.n_layers - 1
    pattern = first.captured[f"blocks.{last}.attn.hook_pattern"][1, :, 0, 1:]
    v = first.captured[f"blocks.{last}.attn.hook_v"][1, 1:]
    want = sum((pattern[h, :, None] * v[:, h]) @ maker.heads[last, h] @ queries[1] for h in range(vision.n_heads))
    got = maps[Variant(FIRST, "last layer")][1] * float(first.captured["ln_final.hook_scale"][1, 0])
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(maps[Variant(ATTENTION, "last layer")][1], pattern.sum(0).numpy(), rtol=1e-4)
    cosines = queries[1] @ unit[0].T
    best = torch.cat([cosines, queries[1] @ unit[1].T]).abs().topk(3).indices
    signs = torch.cat([cosines, queries[1] @ unit[1].T])[best].sign()
    want = (seen.post[1][:, best] * signs).sum(1)
    np.testing.assert_allclose(maps[Variant(SECOND, "3 similar neurons")][1], want.numpy(), rtol=1e-4, atol=1e-4)


def test_classes_are_asked_for_one_by_one_where_they_are(towers, context):
    question = class_question(context, towers[1], SimpleNamespace(dataset=SimpleNamespace(address="")))
    shapes = context.loading.data("")
    assert question.labels == ("shape_here", "colour_here", "texture_here")
    assert len(question.images(CHOOSE)) == len(question.images(TEST)) == 10
    assert len(np.intersect1d(question.images(CHOOSE), question.images(TEST))) == 0
    np.testing.assert_allclose(question.queries.norm(dim=1), 1, rtol=1e-5)
    for at in range(0, len(question.image), 7):
        index = int(question.sample.indices[question.image[at]])
        attribute, value = question.labels[question.label[at]].removesuffix("_here"), question.said[question.query[at]]
        things = shapes.scene(index).things
        wearing = [i + 1 for i, thing in enumerate(things) if thing.words[attribute] == value]
        assert wearing
        mask = question.mask(towers[0], at)
        assert np.array_equal(mask, np.isin(shapes.mask(index), wearing))
    of_image = question.image == 0
    assert (question.label[of_image] < 2).sum() == 8  # four shapes, four colours


@dataclass
class Planted:
    """Maps that are known: how colourful each patch is, its opposite, a constant slope and noise."""

    colourful: torch.Tensor
    variants: ClassVar = [
        Variant(SECOND, "opposite"), Variant(SECOND, "colourful"), Variant(ATTENTION, "slope"), Variant(FIRST, "noise"),
    ]  # fmt: skip

    def look(self, batch):
        pixels = batch.inputs.amax(1) - batch.inputs.amin(1)
        return Planted(F.avg_pool2d(pixels[:, None], 8).flatten(1))

    def of(self, images):
        return Planted(self.colourful[images])

    def maps(self, seen, queries):
        values = seen.colourful
        noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
        given = -values, values, torch.arange(81.0).expand_as(values), noise
        return {v: m.numpy() for v, m in zip(self.variants, given, strict=True)}


@pytest.mark.slow
def test_what_fits_is_chosen_on_some_images_and_measured_on_others(towers, context):
    vision, maker = towers[0], Planted(torch.zeros(0))
    question = class_question(context, towers[1], SimpleNamespace(dataset=SimpleNamespace(address="")))
    choices = choose(context, vision, maker, question)
    assert set(choices) == {(method, label) for method in METHODS for label in range(3)}
    assert all(choices[SECOND, label][0].name == "colourful" for label in range(3))
    at, counts, precision = measure(context, vision, maker, question, choices)
    assert set(question.image[at]) == set(question.images(TEST))
    outcomes = {(o.label, o.method): o for o in compare(context, question, choices, at, counts, precision)}
    assert len(outcomes) == 4 * 3
    for label in (*question.labels, "all"):
        for method in (ATTENTION, FIRST):
            gain = outcomes[label, method].gains["mIoU"]
            assert 0 < gain.lo < gain.value < gain.hi
            difference = outcomes[label, SECOND].values["mIoU"].value - outcomes[label, method].values["mIoU"].value
            assert gain.value == pytest.approx(difference)
    iou = []  # over all that is asked of test images, from the counts alone
    for said in (0, 1):
        same = counts[:, 0, 0, said, said].sum()
        iou.append(same / (same + counts[:, 0, 0, 0, 1].sum() + counts[:, 0, 0, 1, 0].sum()))
    assert outcomes["all", SECOND].values["mIoU"].value == pytest.approx(np.mean(iou))
    again = measure(context, vision, None, question, choices)  # nothing is run again
    assert np.array_equal(again[1], counts)
    assert len(Chunks(context.work / "measuring, class by class").folders) == 1
