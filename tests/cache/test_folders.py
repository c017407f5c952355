"""Folders of plain files beside the shards: whole or not at all, and every damaged file is named."""

import json

import pytest

from workbench.cache import StoreError
from workbench.cache.folders import CHECKSUMS, check_folder, put_folder


@pytest.fixture
def folder(tmp_path):
    put_folder(tmp_path / "tokenizer", fill)
    return tmp_path / "tokenizer"


def fill(folder):
    (folder / "vocab").mkdir()
    (folder / "vocab" / "words.txt").write_text("one two")
    (folder / "tokenizer.json").write_text("{}")


def test_a_folder_is_what_was_written_and_its_checksums(folder):
    assert sorted(path.name for path in folder.rglob("*")) == [CHECKSUMS, "tokenizer.json", "vocab", "words.txt"]
    assert list(check_folder(folder)) == []
    assert not list(folder.parent.glob("*.part"))


@pytest.mark.parametrize("name", ["vocab/words.txt", "tokenizer.json"])
def test_a_changed_or_missing_file_is_named(folder, name):
    (folder / name).write_text("[]")
    assert [damage.file for damage in check_folder(folder)] == [f"tokenizer/{name}"]
    (folder / name).unlink()
    assert [str(damage) for damage in check_folder(folder)] == [
        f"tokenizer/{name}: cannot be read (No such file or directory)"
    ]


@pytest.mark.parametrize("text", ["", "[1, 2", "7", "[1, 2]", '{"tokenizer.json": 3}', "\x00"])
def test_damaged_checksums_are_damage(folder, text):
    (folder / CHECKSUMS).write_text(text)
    assert list(check_folder(folder))


def test_a_folder_without_checksums_has_nothing_to_be_held_against(folder):
    (folder / CHECKSUMS).unlink()
    assert list(check_folder(folder)) == []
    assert list(check_folder(folder.parent / "none")) == []


def test_a_folder_is_replaced_whole(folder):
    (folder / "old.txt").write_text("x")
    put_folder(folder, lambda part: (part / "new.txt").write_text("y"))
    assert sorted(path.name for path in folder.iterdir()) == [CHECKSUMS, "new.txt"]
    assert list(json.loads((folder / CHECKSUMS).read_text())) == ["new.txt"]


def test_what_cannot_be_written_leaves_nothing_half(tmp_path):
    def full(part):
        (part / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write .*tokenizer: No space left on device"):
        put_folder(tmp_path / "tokenizer", full)
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_was_stopped_is_seen_and_done_again(folder, monkeypatch):
    """Stopped where the old folder is away and the new one not there yet."""
    replace, calls = type(folder).replace, []

    def stop(path, target):
        calls.append(path.name)
        if path.name == "tokenizer.part":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            put_folder(folder, fill)
    assert calls == ["tokenizer", "tokenizer.part"]
    assert [damage.file for damage in check_folder(folder)] == ["tokenizer"]
    put_folder(folder, fill)
    assert list(check_folder(folder)) == []
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
