"""Folders of images and their label file."""

import pytest
from PIL import Image

from workbench.datasets.images import ImageFolder, image_size, load_images
from workbench.datasets.loading import load_dataset
from workbench.errors import UserError
from workbench.plugins.datasets import provide_datasets

SOURCES = {source.name: source for source in provide_datasets()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    for name in ("cats/1.png", "cats/2.jpg", "dogs/1.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name)
    return folder


def test_images_are_documents(folder):
    dataset = load_dataset(str(folder), SOURCES)
    assert (dataset.modality, len(dataset)) == ("vision", 3)
    document = dataset.document(1)
    assert (document.name, document.image) == ("cats/2.jpg", folder / "cats" / "2.jpg")
    assert image_size(document.image) == (4, 3)


def test_the_folder_is_a_label_where_there_are_several(folder):
    dataset = ImageFolder(folder)
    assert dataset.label_spec("folder").categories == ("cats", "dogs")
    assert [dataset.labels(dataset.document(i))["folder"] for i in range(3)] == [0, 0, 1]
    assert ImageFolder(folder / "cats").label_specs == ()


CSV = "file,animal,indoors,weight,hour:cyclic=24,big\ncats/1.png,cat,yes,3.5,23,1\ndogs/1.webp,dog,no,,1,0\n"


@pytest.mark.parametrize("place", ["photos/labels.csv", "labels.csv", "other.csv"])
def test_labels_from_csv(folder, tmp_path, place):
    (tmp_path / place).write_text(CSV)
    dataset = load_images(f"{folder}?labels={tmp_path / place}" if place == "other.csv" else str(folder))
    kinds = {spec.name: spec.kind for spec in dataset.label_specs}
    assert kinds == {
        "animal": "categories",
        "indoors": "binary",
        "weight": "number",
        "hour": "cyclic",
        "big": "binary",
        "folder": "categories",
    }
    values = [dataset.labels(dataset.document(i)) for i in range(3)]
    assert [v["animal"] for v in values] == [0, None, 1]
    assert [v["indoors"] for v in values] == [1, None, 0]
    assert [v["weight"] for v in values] == [3.5, None, None]


BAD_CSV = [
    pytest.param(
        "file,a\ncats/3.png,1\n",
        "line 2: there is no image 'cats/3.png' in the folder; nearest: cats/1.png",
        id="missing",
    ),
    pytest.param("file,a\ncats/1.png,1\ncats/1.png,0\n", "line 3: 'cats/1.png' was labelled in line 2", id="twice"),
    pytest.param("file,a\ncats/1.png\n", "line 2: 1 cells, where the first line has 2", id="short line"),
    pytest.param("", "empty", id="empty"),
    pytest.param("file,a,a\ncats/1.png,1,2\n", "two columns are called 'a'", id="column twice"),
    pytest.param("file,a:binary\ncats/1.png,5\n", "line 2: label 'a' is binary", id="not of its kind"),
]


@pytest.mark.parametrize(("content", "says"), BAD_CSV)
def test_a_bad_label_file_is_explained(folder, content, says):
    (folder / "labels.csv").write_text(content)
    with pytest.raises(UserError) as error:
        ImageFolder(folder)
    assert says in str(error.value)


def test_an_image_that_cannot_be_read_is_named(folder):
    (folder / "cats" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.jpg: not a readable image"):
        image_size(folder / "cats" / "2.jpg")


def test_no_image_and_no_folder(folder, tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match="no image in this folder"):
        ImageFolder(tmp_path / "texts")
    with pytest.raises(UserError, match="not a folder"):
        ImageFolder(folder / "cats" / "1.png")
    with pytest.raises(UserError, match="no such label file"):
        load_images(f"{folder}?labels={tmp_path}/none.csv")


def test_the_fingerprint_covers_images_and_labels(folder):
    prints = {ImageFolder(folder).fingerprint()}
    (folder / "labels.csv").write_text(CSV)
    prints.add(ImageFolder(folder).fingerprint())
    Image.new("RGB", (4, 3), "red").save(folder / "cats" / "1.png")
    prints.add(ImageFolder(folder).fingerprint())
    assert len(prints) == 3
