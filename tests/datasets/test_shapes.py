from itertools import combinations as pairs_of

import numpy as np
import pytest
from PIL import Image

from workbench.datasets.loading import load_dataset
from workbench.datasets.pixels import on_positions
from workbench.datasets.protocol import PixelLabel
from workbench.datasets.shapes import SPECS, Shapes, load_shapes
from workbench.datasets.shapes_captions import (
    ASIDES,
    PHRASINGS,
    SYNONYMS,
    class_prompts,
    descriptions,
    draw_caption,
    holds,
    prompts,
    vocabulary,
)
from workbench.datasets.shapes_renderer import COLOURS, SHAPES, render
from workbench.datasets.shapes_scenes import (
    ATTRIBUTES,
    MAIN,
    SIZE,
    Scene,
    Thing,
    combinations,
    draw_crowd,
    draw_scenes,
    is_held_out,
)
from workbench.errors import UserError
from workbench.plugins.datasets import provide_datasets

SOURCES = {source.name: source for source in provide_datasets()}


def plain(shape: str, position: int = 4, radius: float = 9.0, texture: int = 0) -> Scene:
    row, column = divmod(position, 3)
    centre = ((column + 0.5) * SIZE / 3, (row + 0.5) * SIZE / 3)
    at = ATTRIBUTES["shape"].index(shape)
    thing = Thing(at, 0, texture, position, 1, radius, centre, 0.2, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    return Scene((thing,), (0.6, 0.6, 0.6), (0.0, 0.0), (0, 0))


# --- scenes -------------------------------------------------------------------------------------------------------
def test_an_eighth_is_held_out_evenly_and_every_pair_is_shown():
    hidden, shown = combinations(held_out=True), combinations(held_out=False)
    assert (len(hidden), len(shown)) == (24, 168)
    for axis, name in enumerate(MAIN[:3]):
        counts = np.bincount([each[axis] for each in hidden], minlength=len(ATTRIBUTES[name]))
        assert set(counts) == {24 // len(ATTRIBUTES[name])}
    for a, b in pairs_of(range(3), 2):
        n_pairs = len(ATTRIBUTES[MAIN[a]]) * len(ATTRIBUTES[MAIN[b]])
        assert len({(each[a], each[b]) for each in shown}) == n_pairs


def test_two_objects_stand_apart_and_differ_in_shape_and_colour():
    scenes = list(draw_scenes(np.random.default_rng(0), 300, combinations(False), two_share=0.5))
    two = [scene.things for scene in scenes if len(scene.things) == 2]
    assert 100 < len(two) < 200
    for first, second in two:
        assert max(abs(a - b) for a, b in zip(divmod(first.position, 3), divmod(second.position, 3), strict=True)) == 2
        assert first.shape != second.shape
        assert first.colour != second.colour
    assert not any(is_held_out(thing.combination) for scene in scenes for thing in scene.things)


def test_places_are_sixteen_pixels_apart():
    for scene in draw_scenes(np.random.default_rng(0), 50, combinations()):
        row, column = divmod(scene.things[0].position, 3)
        np.testing.assert_allclose(scene.things[0].centre, (20 + 16 * column, 20 + 16 * row), atol=1)


def test_four_objects_stand_in_the_corners_and_differ_in_shape_and_colour():
    rng = np.random.default_rng(0)
    for scene in (draw_crowd(rng, combinations()) for _ in range(20)):
        assert sorted(thing.position for thing in scene.things) == [0, 2, 6, 8]
        assert len({thing.shape for thing in scene.things}) == len({thing.colour for thing in scene.things}) == 4


# --- pictures and masks -------------------------------------------------------------------------------------------
AREAS = {  # of radius 1, by hand or by the formula of the figure
    "circle": np.pi,
    "square": (2 * 0.88) ** 2,
    "ring": np.pi * (1.05**2 - 0.39**2),
    "cross": 4 * 1.05 * 0.72 - 0.72**2,
    "triangle": 0.5 * (1.15 + 0.75) * 2 * 1.1,
    "star": 5 * 1.2 * 0.52 * np.sin(np.pi / 5),
}


@pytest.mark.parametrize("shape", AREAS)
def test_masks_have_the_area_of_their_figure(shape):
    mask = render(plain(shape))[1]
    assert set(np.unique(mask)) == {0, 1}
    assert (mask == 1).sum() == pytest.approx(81 * AREAS[shape], rel=0.05)


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_the_mask_is_where_the_colour_is(shape):
    """Pixels inside are the object's colour, outside the background's; only the edge is between them."""
    picture, mask = render(plain(shape))
    away = np.abs(picture / 255.0 - COLOURS[0]).max(-1)
    inside = mask == 1
    edge = np.zeros_like(inside)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        edge |= np.roll(inside, step, axis) != inside
    assert away[inside & ~edge].max() < 0.01
    assert away[~inside & ~edge].min() > 0.2


def test_shapes_and_colours_are_all_there():
    assert tuple(SHAPES) == ATTRIBUTES["shape"]
    assert len(COLOURS) == len(ATTRIBUTES["colour"]) == 8
    masks = [render(plain(shape))[1] for shape in ATTRIBUTES["shape"]]
    assert min((a != b).sum() for a, b in pairs_of(masks, 2)) > 25  # no two look alike


@pytest.mark.parametrize("position", range(9))
def test_objects_stand_where_their_position_says(position):
    mask = render(plain("circle", position, radius=7.0))[1]
    row, column = (np.argwhere(mask == 1).mean(0) // (SIZE / 3)).astype(int)
    assert 3 * row + column == position


def test_textures_differ_and_keep_the_mask():
    pictures, masks = zip(*(render(plain("square", texture=i)) for i in range(4)), strict=True)
    assert all(np.array_equal(masks[0], mask) for mask in masks)
    dark = [float((picture[masks[0] == 1].max(-1) < 128).mean()) for picture in pictures]
    assert dark[0] == 0
    assert all(0.1 < share < 0.7 for share in dark[1:])
    assert min((a != b).sum() for a, b in pairs_of(pictures, 2)) > 300


def test_the_second_object_hides_the_first():
    one, two = plain("circle").things[0], plain("square", radius=5.0).things[0]
    mask = render(Scene((one, two), (0.6,) * 3, (0.0, 0.0), (0, 0)))[1]
    assert set(np.unique(mask)) == {0, 1, 2}
    assert (mask == 2).sum() == (render(plain("square", radius=5.0))[1] == 1).sum()


# --- captions -----------------------------------------------------------------------------------------------------
def fits_somehow(claims: np.ndarray, things: list[np.ndarray]) -> bool:
    """Say the same as `holds` for one caption and one scene, by going through all ways to assign objects."""
    said = [claim for claim in claims if (claim >= 0).any()]
    if len(said) > len(things):
        return False

    def fits(claim: np.ndarray, thing: np.ndarray) -> bool:
        return all(c in (-1, t) for c, t in zip(claim, thing, strict=True))

    return any(all(map(fits, said, order)) for order in (things, things[::-1]))


def test_holds_is_the_plain_rule():
    rng = np.random.default_rng(1)
    scenes = list(draw_scenes(rng, 60, combinations(), two_share=0.5))
    claims = np.stack([draw_caption(rng, scene).claims for scene in scenes])
    objects = np.stack([scene.claims() for scene in scenes])
    found = holds(claims, objects)
    assert found.diagonal().all()
    assert 60 < found.sum() < 1500
    for i, j in np.ndindex(found.shape):
        assert found[i, j] == fits_somehow(claims[i], [each for each in objects[j] if each[0] >= 0])


def test_captions_are_made_of_the_vocabulary_and_say_what_they_claim():
    rng = np.random.default_rng(2)
    words = set(vocabulary())
    seen = set()
    for scene in draw_scenes(rng, 400, combinations(), two_share=0.4):
        text, claims = draw_caption(rng, scene)
        assert set(text.split()) <= words
        seen |= set(text.split())
        for name, value in zip(ATTRIBUTES, claims[0], strict=True):
            if name in ("shape", "colour") and value >= 0:
                first = ATTRIBUTES[name][value]
                assert {first, *SYNONYMS.get(first, ())} & set(text.split())
    assert len(seen) > 0.9 * len(words)


def test_prompts_of_a_class_name_it_and_nothing_else():
    naming = {value: name for name, values in ATTRIBUTES.items() for value in values}
    for name in ("shape", "colour", "texture"):
        for value, texts in class_prompts(name).items():
            assert len(texts) >= 3
            for text in texts:
                assert [word for word in text.split() if naming.get(word) in MAIN[:3]] == [value]
    assert len(PHRASINGS) >= 5


def test_the_pool_of_descriptions_holds_words_phrases_captions_and_what_names_nothing():
    pool = descriptions()
    texts = [each.text for each in pool]
    assert len(set(texts)) == len(texts)
    assert 1000 < len(pool) < 3000
    named = {concept for each in pool for concept in each.names}
    assert named == {(name, value) for name, values in ATTRIBUTES.items() for value in values}
    silent = {each.text for each in pool if not each.names}
    assert {"monday", "with", *ASIDES} <= silent
    assert next(each for each in pool if each.text == "violet").names == {("colour", "purple")}
    assert all(set(text.split()) <= set(vocabulary()) for text in texts)


@pytest.mark.parametrize(
    ("values", "says"),
    [({"color": "red"}, "nearest: colour"), ({"colour": "rde"}, "nearest: red")],
)
def test_wrong_prompts_are_explained(values, says):
    with pytest.raises(UserError, match=says):
        prompts(values)


# --- the dataset --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Shapes:
    return Shapes(folder=tmp_path_factory.mktemp("shapes"))


def test_each_kind_of_scene_is_there_once(shapes):
    kinds = {
        (*scene.things[0].combination, scene.things[0].position) for scene in map(shapes.scene, range(len(shapes)))
    }
    assert len(kinds) == len(shapes) == 6 * 8 * 4 * 9


def test_a_document_has_its_picture_fields_and_labels(shapes):
    document = shapes.document(5)
    assert np.array_equal(np.asarray(Image.open(document.image)), shapes.pixels(5))
    thing = shapes.scene(5).things[0]
    labels = shapes.labels(document)
    assert set(labels) == {spec.name for spec in SPECS["one"]}
    for name, names in ATTRIBUTES.items():
        assert document.fields[name] == names[getattr(thing, name)]
        assert labels[name] == getattr(thing, name)
    assert labels["held_out"] == is_held_out(thing.combination) == document.fields["held_out"]
    assert document.name == "-".join(thing.words[n] for n in ("colour", "texture", "shape", "position")).replace(
        " ", "-"
    ) + ".png"  # fmt: skip
    patches, known = on_positions(labels["object"], np.arange(-1, 81))
    assert not known[0]
    assert known[1:].all()
    for patch in range(81):  # the commonest of its 64 pixels
        row, column = 8 * (patch // 9), 8 * (patch % 9)
        counts = np.bincount(shapes.mask(5)[row : row + 8, column : column + 8].ravel())
        assert patches[1 + patch] == counts.argmax()
    colours, there = on_positions(labels["colour_here"], np.arange(-1, 81))
    assert np.array_equal(there[1:], patches[1:] > 0)
    assert set(colours[there]) == {thing.colour}
    mask = shapes.attribute_mask(5, "colour")
    assert set(np.unique(mask)) == {-1, thing.colour}
    assert np.array_equal(mask >= 0, shapes.mask(5) == 1)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(shapes, tmp_path):
    again, other = Shapes(folder=tmp_path / "again"), Shapes(seed=1, folder=tmp_path / "other")
    assert again.document(3).image.read_bytes() == shapes.document(3).image.read_bytes()
    assert again.fingerprint() == shapes.fingerprint() != other.fingerprint()
    assert not np.array_equal(other.pixels(3), shapes.pixels(3))
    assert Shapes("two").fingerprint() != shapes.fingerprint()


@pytest.mark.parametrize(("objects", "n"), [("two", 2), ("four", 4)])
def test_scenes_of_several_objects(objects, n, tmp_path):
    several = Shapes(objects, n_scenes=4, folder=tmp_path)
    document = several.document(2)
    things = several.scene(2).things
    assert (len(several), len(things)) == (4, n)
    assert set(several.labels(document)) == {spec.name for spec in SPECS[objects]}
    assert [document.fields[f"shape_{i + 1}"] for i in range(n)] == [thing.words["shape"] for thing in things]
    assert several.class_prompts(f"shape_{n}") == several.class_prompts("shape_here") == class_prompts("shape")
    assert several.class_prompts("held_out") == several.class_prompts("object") == {}
    mask = several.attribute_mask(2, "shape")
    assert set(np.unique(mask)) == {-1, *(thing.shape for thing in things)}


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_dataset("shapes", SOURCES).fingerprint() == Shapes().fingerprint()
    two = load_dataset("shapes:two?seed=3&scenes=7", SOURCES)
    assert (len(two), two.seed, two.address) == (7, 3, "shapes:two?seed=3&scenes=7")


@pytest.mark.parametrize(("shape", "n_patches"), [((8, 6), 4), ((8, 8), 6), ((8, 8), 0)])
def test_pixels_of_no_square_grid_are_refused(shape, n_patches):
    with pytest.raises(UserError, match="only square images and grids"):
        on_positions(PixelLabel(np.zeros(shape)), np.arange(-1, n_patches))


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("three", "shapes:two or shapes:four"),
        ("two?sed=1", "nearest: seed"),
        ("two?seed=-1", "must be a whole number"),
        ("one?scenes=5", "5 scenes of one object: there are 1728"),
        ("two?scenes=0", "0 scenes: must be at least 1"),
    ],
)
def test_bad_addresses_are_explained(rest, says):
    with pytest.raises(UserError, match=says):
        load_shapes(rest)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("do not lose")
    with pytest.raises(UserError, match="pictures cannot be kept here"):
        Shapes(folder=tmp_path / "file").document(0)
