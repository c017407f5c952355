"""Capture of images: patches as rows, class token and registers flagged, labels of documents."""

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.capturing import capture
from workbench.datasets.images import ImageFolder
from workbench.datasets.shapes import Shapes
from workbench.errors import UserError
from workbench.repairing import repair_store
from workbench.subjects.architecture import Architecture
from workbench.subjects.images import ImageProcessor
from workbench.subjects.vit import VisionArchitecture, VisionTransformer
from workbench.subjects.vit_subject import VisionSubject

RESID = "blocks.0.hook_resid_post"


def make_subject(resize=(8, 8)):
    stack = Architecture(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=16)
    arch = VisionArchitecture(stack, image_size=(8, 8), patch_size=(4, 4), n_registers=1, n_output=5)
    network = VisionTransformer(arch)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    processor = ImageProcessor(3, resize, 2, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    return VisionSubject("hf:tiny#vision", network, lambda: processor)


@pytest.fixture(scope="module")
def subject():
    return make_subject()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for i, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (10, 12 + i, 3), np.uint8)).save(folder / name)
    (folder / "labels.csv").write_text("file,furry\ncats/1.png,yes\ndogs/1.png,no\n")
    return folder


def test_each_image_gives_its_patches(subject, folder, tmp_path):
    store = capture(subject, data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts", batch_size=2)
    assert (store.n_rows, store.finished) == (18, True)
    origins = store.origins
    assert origins["patch"][:6].tolist() == [-1, -2, 0, 1, 2, 3]
    assert origins["special"][:6].tolist() == [True, True, False, False, False, False]
    for sequence, name in enumerate(store.documents):
        alone = subject.capture(subject.batch([folder / name]), [RESID])[RESID][0]
        np.testing.assert_allclose(store.read(RESID)[origins["sequence"] == sequence], alone, atol=1e-5)
    context = store.context(8, 0, 0)
    assert (context.document, context.path, context.size) == ("cats/2.png", "cats/2.png", (13, 10))
    assert store.manifest["dataset"]["folder"] == folder.resolve().as_posix()


def test_labels_of_images_are_spread_over_patches(subject, folder, tmp_path):
    store = capture(subject, data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts")
    values, defined = store.label("furry")
    assert values[defined].tolist() == [1] * 6 + [0] * 6
    assert defined.tolist() == [True] * 6 + [False] * 6 + [True] * 6
    assert (store.label("folder")[0] == [0] * 12 + [1] * 6).all()


def test_the_class_token_and_what_an_image_has_one_of(subject, folder, tmp_path):
    data = ImageFolder(folder)
    store = capture(subject, data=data, hooks=[RESID, "hook_output"], out=tmp_path / "acts", positions="class")
    assert store.origins["patch"].tolist() == [-1, -1, -1]
    want = subject.run(subject.batch([folder / name for name in store.documents])).value
    np.testing.assert_allclose(store.read("hook_output"), want, atol=1e-5)
    with pytest.raises(UserError, match="hook_output has one value per example and none per position"):
        capture(subject, data=data, hooks="hook_output", out=tmp_path / "other")


def test_labels_of_pixels_fall_on_patches(tmp_path):
    """Of 18 x 18 patches of 4 x 4 pixels: what most of the pixels say, none at class token and register."""
    shapes = Shapes("two", n_scenes=3, folder=tmp_path / "pictures")
    store = capture(make_subject((72, 72)), data=shapes, hooks=RESID, out=tmp_path / "acts")
    values, known = store.label("object")
    patches = store.origins["patch"]
    assert np.array_equal(known, patches >= 0)
    for i in range(3):
        mask = shapes.mask(i).reshape(18, 4, 18, 4).transpose(0, 2, 1, 3).reshape(324, -1)
        common = [np.bincount(patch).argmax() for patch in mask]
        at = (store.origins["sequence"] == i) & known
        assert values[at].tolist() == common
    found = capture(
        make_subject((72, 72)), data=shapes, hooks=RESID, out=tmp_path / "few", positions="label:colour_here"
    )
    assert found.n_rows == int((values[known] > 0).sum())


def test_a_sample_of_images(subject, folder, tmp_path):
    store = capture(subject, data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts", rows=8)
    assert (store.n_rows, len(store.documents)) == (8, 2)


def test_what_cannot_be_captured_is_explained(subject, folder, tmp_path):
    with pytest.raises(UserError, match="takes images, and 1 strings in memory holds texts"):
        capture(subject, data=["a text"], hooks=RESID, out=tmp_path / "acts")
    with pytest.raises(UserError, match="positions 'last' are of texts"):
        capture(subject, data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts", positions="last")
    (folder / "cats" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.png: not a readable image"):
        capture(subject, data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


def test_images_of_other_sizes_need_a_processor_that_resizes(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(8, 8), (8, 8), (16, 8)]):
        Image.new("RGB", size).save(folder / f"{i}.png")
    with pytest.raises(UserError, match=r"the images from '2\.png' on have 10 positions, where the first has 6"):
        capture(make_subject(None), data=ImageFolder(folder), hooks=RESID, out=tmp_path / "acts", batch_size=1)


def test_damaged_rows_of_images_are_captured_again(subject, folder, tmp_path):
    acts = capture(subject, data=folder, hooks="blocks.0.hook_resid_post", out=tmp_path / "acts").folder
    path = acts / "shards/000000.h5"
    sound = path.read_bytes()
    path.unlink()
    (done,) = repair_store(acts, model=subject, data=folder)
    assert done.repaired
    assert path.read_bytes() == sound
