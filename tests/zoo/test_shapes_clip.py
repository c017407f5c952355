import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.datasets.shapes import Shapes
from workbench.datasets.shapes_scenes import MAIN, combinations, draw_scenes, is_held_out
from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.zoo import shapes_clip
from workbench.zoo.loading import load_zoo
from workbench.zoo.shapes_clip import PROCESSOR, ShapesLesson, as_images
from workbench.zoo.shapes_clip_measures import ZeroShot, embed, pictures, scenes_of, share, single_objects, two_objects
from workbench.zoo.shelf import FILES, WEIGHTS, zoo_record
from workbench.zoo.towers import Towers, answer_loss, contrastive_loss, read_towers
from workbench.zoo.trainer import train
from workbench.zoo.training import train_zoo

TINY = replace(shapes_clip.VISION, n_layers=1, d_model=16, n_heads=2, d_head=8, d_mlp=16)
RECIPE = replace(shapes_clip.RECIPE, steps=4, batch_size=6, checkpoint_every=2)


def tiny_lesson(recipe=RECIPE) -> ShapesLesson:
    return ShapesLesson(recipe, vision=TINY, text=replace(TINY, causal=True))


@pytest.fixture(scope="module")
def towers() -> Towers:
    return Towers(*(load_zoo(f"shapes-clip#{tower}", device="cpu") for tower in ("vision", "text")))


# --- how it is trained --------------------------------------------------------------------------------------------
class Killed(Exception):
    pass


def kill_at_3(progress):
    if progress.step == 3:
        raise Killed


def test_an_interrupted_training_ends_with_the_same_towers(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_clip, "make_lesson", tiny_lesson)
    monkeypatch.setattr(shapes_clip, "measure", lambda subject, lesson: {"summary": "not measured"})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    record = train_zoo("shapes-clip", straight, RECIPE)
    with pytest.raises(Killed):
        train_zoo("shapes-clip", killed, RECIPE, on_step=kill_at_3)
    train_zoo("shapes-clip", killed, RECIPE)
    assert (straight / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(FILES)
    loaded = [load_zoo(f"{killed}#{tower}", device="cpu") for tower in ("vision", "text")]
    assert " ".join(each.fingerprint() for each in loaded) == record["fingerprint"]
    assert read_towers(killed / "architecture.json") == (tiny_lesson().architecture, PROCESSOR)


@pytest.mark.slow
def test_training_learns(tmp_path):
    lesson = tiny_lesson(replace(RECIPE, steps=40, batch_size=16, lr=1e-2, muon_lr=0.03, warmup_steps=2))
    _, progress = train(lesson, tmp_path)
    first, last = (np.mean([loss for _, loss in part]) for part in (progress.losses[:5], progress.losses[-5:]))
    assert last < first - 0.15


def test_examples_are_decided_by_seed_and_step_and_hide_what_is_held_out():
    lesson, other = tiny_lesson(), tiny_lesson(replace(RECIPE, seed=1))
    assert torch.equal(lesson.examples(3).images.inputs, lesson.examples(3).images.inputs)
    assert not torch.equal(lesson.examples(3).images.inputs, lesson.examples(4).images.inputs)
    assert lesson.fingerprint() == tiny_lesson().fingerprint() != other.fingerprint()
    assert not any(map(is_held_out, lesson.shown))
    assert len(lesson.shown) == 168
    assert lesson.examples(0).true.diagonal().all()


def test_pixels_are_what_the_processor_makes():
    scenes = list(draw_scenes(np.random.default_rng(0), 3, combinations()))
    batch = as_images(np.stack([np.asarray(picture) for picture in pictures(scenes)]))
    for pixels, picture in zip(batch.inputs, pictures(scenes), strict=True):
        torch.testing.assert_close(pixels, PROCESSOR(picture), atol=1e-6, rtol=0)


def test_the_loss_leaves_other_true_pairs_out():
    """Four images with their own texts and two wrong ones, by going through the pairs."""
    rng = torch.Generator().manual_seed(0)
    scores, true = torch.randn(4, 6, generator=rng), torch.eye(4, 6, dtype=torch.bool)
    true[0, 2] = true[1, 5] = True
    total = 0.0
    for i in range(4):
        texts = [j for j in range(6) if i == j or not true[i, j]]
        images = [j for j in range(4) if i == j or not true[j, i]]
        total += float(-scores[i, i] + scores[i, texts].exp().sum().log())
        total += float(-scores[i, i] + scores[images, i].exp().sum().log())
    assert float(contrastive_loss(scores, true)) == pytest.approx(total / 8, rel=1e-5)
    assert float(contrastive_loss(scores, torch.eye(4, 6, dtype=torch.bool))) > total / 8


def test_an_answer_may_be_any_of_those_that_are_true():
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    true = torch.tensor([[True, True, False], [False, False, True]])
    p = scores.softmax(1)
    by_hand = -(p[0, 0] + p[0, 1]).log() - p[1, 2].log()
    assert float(answer_loss(scores, true)) == pytest.approx(float(by_hand) / 2, rel=1e-5)


def test_each_question_has_one_true_answer_for_each_object():
    pairs = tiny_lesson().examples(0)
    assert len(pairs.questions) == 5
    for question in pairs.questions:
        assert set(pairs.true[:, question].sum(1).tolist()) <= {1, 2}


# --- what ships ---------------------------------------------------------------------------------------------------
def test_it_ships_whole_and_small_and_is_what_its_record_says(towers):
    assert sum((WEIGHTS / "shapes-clip" / file).stat().st_size for file in FILES) < 6_000_000
    record = zoo_record("shapes-clip")
    assert {"vision": towers.vision.fingerprint(), "text": towers.text.fingerprint()} == record["fingerprints"]
    assert json.loads(json.dumps(vars(shapes_clip.RECIPE))).items() >= record["recipe"].items()
    assert towers.vision.n_layers >= 4


def test_a_tower_is_a_subject_of_its_own():
    vision, text = (load_subject(f"zoo:shapes-clip#{tower}", device="cpu") for tower in ("vision", "text"))
    assert (vision.modality, text.modality) == ("vision", "text")
    assert vision.patch_index().tolist() == [-1, *range(81)]
    texts = ["a red star", "Violet", ""]
    batch = text.batch(texts)
    assert batch.special.sum(1).tolist() == [2, 2, 2]
    together = text.run(batch).value
    for row, each in enumerate(texts):
        torch.testing.assert_close(together[row], text.run(text.batch([each])).value[0], atol=1e-5, rtol=1e-5)
    window = text.windows("a red star", n_context=4)
    assert [(each.tokens[0], each.tokens[-1], len(each.tokens)) for each in window] == [(0, 1, 4), (0, 1, 3)]
    assert text.windows("a red star")[0].offsets.tolist() == [[-1, -1], [0, 1], [2, 5], [6, 10], [-1, -1]]
    assert "".join(text.decode(text.windows("a red star")[0].tokens[1:-1])) == " a red star"


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_residual_stream_is_the_sum_of_its_parts(towers, tower):
    subject = getattr(towers, tower)
    scenes = list(draw_scenes(np.random.default_rng(0), 2, combinations()))
    batch = subject.batch(pictures(scenes) if tower == "vision" else ["a red star", "dots"])
    last = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    parts = subject.capture(batch, ["blocks.0.hook_resid_pre", "*.hook_attn_out", "*.hook_mlp_out", last])
    total = parts.pop(last)
    torch.testing.assert_close(sum(parts.values()), total, atol=1e-5 * float(total.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shapes-clip", "has two towers, each a subject of its own: write zoo:shapes-clip#vision or"),
        ("shapes-clip#image", "write zoo:shapes-clip#vision or zoo:shapes-clip#text"),
        ("calendar#text", "is a decoder without a text tower: write zoo:calendar"),
        ("shapes-clp#text", "nearest: shapes-clip"),
    ],
)
def test_wrong_towers_are_explained(name, says):
    with pytest.raises(UserError, match=says):
        load_zoo(name, device="cpu")


def test_a_share_of_everything_has_an_interval():
    assert share(np.ones(100, bool))["interval"][0] < 0.97
    assert share(np.arange(100) < 50) == {"share": 0.5, "interval": [0.4038, 0.5962]}


def test_an_image_is_the_same_as_its_file(towers, tmp_path):
    shapes = Shapes(folder=tmp_path)
    one, other = embed(towers.vision, [shapes.document(0).image, Image.fromarray(shapes.pixels(0))])
    assert torch.equal(one, other)


def test_it_names_what_it_sees_in_combinations_it_never_saw(towers):
    """A few scenes, by the class prompts; `long` holds the bars."""
    scenes = scenes_of(Shapes(seed=9), held_out=True, most=40)
    right = ZeroShot(towers).attributes_right(scenes, embed(towers.vision, pictures(scenes)))
    assert min(right[name].mean() for name in MAIN) > 0.9


@pytest.mark.long
def test_the_bars_on_renderings_that_no_record_holds(towers):
    """At least 95 % of each attribute and 85 % of all four at once; an untrained twin at chance."""
    scenes = scenes_of(Shapes(seed=77), held_out=True)
    found = single_objects(ZeroShot(towers), scenes)
    assert min(found[name]["share"] for name in MAIN) >= 0.95
    assert min(found["together"]["share"], found["all four"]["share"]) >= 0.85
    lesson = ShapesLesson()
    twin = single_objects(ZeroShot(lesson.as_subject("untrained", lesson.new_network().eval())), scenes)
    assert max(twin[name]["share"] - 1 / n for name, n in zip(MAIN, (6, 8, 4, 9), strict=True)) < 0.1
    assert twin["together"]["share"] < 0.01


@pytest.mark.long
def test_two_objects_are_seen_and_not_bound(towers):
    """What is there is named; which object has what is a toss of a coin, and the page says so."""
    found = two_objects(ZeroShot(towers), scenes_of(Shapes("two", seed=78, n_scenes=300)))
    assert min(found["both named"][name]["share"] for name in ("shape", "colour", "texture")) > 0.7
    assert found["found"]["share"] > 0.9
    assert all(abs(found["bound"][name]["share"] - 0.5) < 0.15 for name in MAIN)
