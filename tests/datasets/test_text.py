"""Text files, folders of them, strings; and how an address finds its dataset."""

import pytest

from workbench.datasets.loading import load_dataset
from workbench.datasets.text import TextFiles, TextList, load_text
from workbench.errors import UserError
from workbench.plugin import DatasetSource
from workbench.plugins.datasets import provide_datasets

SOURCES = {source.name: source for source in provide_datasets()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffeins\r\nzwei é".encode())
    (tmp_path / "b" / "c.md").write_text("drei")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    return tmp_path


def test_a_folder_is_read_file_by_file(folder):
    dataset = TextFiles(folder)
    documents = [dataset.document(i) for i in range(len(dataset))]
    assert [(d.name, d.text) for d in documents] == [("a.txt", "eins\r\nzwei é"), ("b/c.md", "drei")]
    assert dataset.labels(documents[0]) == {}


def test_a_pattern_chooses_files(folder):
    dataset = load_text(f"{folder}?files=*.md")
    assert [dataset.document(i).name for i in range(len(dataset))] == ["b/c.md"]


def test_a_file_is_one_document(folder):
    dataset = load_dataset(str(folder / "a.txt"), SOURCES)
    assert (len(dataset), dataset.document(0).name, dataset.address) == (1, "a.txt", str(folder / "a.txt"))


def test_the_fingerprint_is_of_names_and_contents(folder, tmp_path_factory):
    before = TextFiles(folder).fingerprint()
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    folder.rename(copy)
    assert TextFiles(copy).fingerprint() == before
    (copy / "b" / "c.md").write_text("vier")
    changed = TextFiles(copy).fingerprint()
    (copy / "b" / "c.md").rename(copy / "b" / "d.md")
    assert len({before, changed, TextFiles(copy).fingerprint()}) == 3


def test_strings_are_documents():
    dataset = TextList(["one", "two"])
    assert [dataset.document(i).text for i in range(2)] == ["one", "two"]
    assert TextList(["ab", "c"]).fingerprint() != TextList(["a", "bc"]).fingerprint()


def test_the_kind_can_be_named(folder):
    assert load_dataset(f"text:{folder}", SOURCES).document(1).text == "drei"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        pytest.param("text:{}/nowhere", "nowhere: there is no such file", id="missing path"),
        pytest.param("{}/nowhere", "no such file or folder, and no such name", id="missing path without a kind"),
        pytest.param("jsnol:{}/a.txt", "nearest names: jsonl", id="misspelt kind"),
        pytest.param("{}/empty.txt", "empty.txt is empty: there is no text", id="empty file"),
        pytest.param("text:{}?file=*.md", "no option 'file'; nearest: files", id="misspelt option"),
        pytest.param("text:{}?files=*.py", "no file in this folder is called '*.py'", id="no file left"),
        pytest.param("{}/empty", "no kind of dataset recognises it", id="empty folder"),
    ],
)
def test_bad_addresses_are_explained(folder, address, says):
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    with pytest.raises(UserError) as error:
        load_dataset(address.format(folder), SOURCES)
    assert says in str(error.value)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"x\.bin: not UTF-8 text \(byte 2 is 0xff\)"):
        TextFiles(tmp_path).document(0)


def test_no_strings_are_refused():
    with pytest.raises(UserError, match="at least one"):
        TextList([])
    with pytest.raises(UserError, match="text 1 is int"):
        TextList(["a", 3])


def test_two_kinds_that_recognise_a_path_are_named(folder):
    greedy = DatasetSource("mine", "takes everything", load_text, lambda path: True)
    with pytest.raises(UserError, match=r"write text:.* or mine:"):
        load_dataset(str(folder), {**SOURCES, "mine": greedy})
