"""A damaged heap of texts is an error: HDF5 itself would go round in it for ever."""

import json

import h5py
import numpy as np
import pytest

from workbench.cache import DamageError, LabelInfo, open_store
from workbench.cache.heaps import HEADER_BYTES, MARK, check_heaps

FILES = ["examples.h5", "index.h5", "labels/g.h5"]


@pytest.fixture
def labelled(store_folder):
    info = LabelInfo("day", "g", "row", "categories", ("Monday", "Tuesday"))
    open_store(store_folder).add_labels("g", {"day": (info, np.zeros(100), None)})
    return store_folder


def entries(data):
    """Place of each entry of each heap, and whether it is room that is left: by the format, not by our reader."""
    at = data.find(MARK)
    while at >= 0:
        end, place = at + int.from_bytes(data[at + 8 : at + 16], "little"), at + 16
        while place + 16 <= end:
            free, size = data[place : place + 2] == b"\0\0", int.from_bytes(data[place + 8 : place + 16], "little")
            yield place, free
            place += size if free else 16 + (size + 7) // 8 * 8
        at = data.find(MARK, end)


@pytest.mark.parametrize("name", FILES)
def test_zeros_over_an_entry_are_damage_and_no_hang(labelled, name):
    path = labelled / name
    sound = path.read_bytes()
    check_heaps(path)
    places = list(entries(sound))
    assert len(places) > 2
    for place, _ in places:
        path.write_bytes(sound[:place] + bytes(HEADER_BYTES) + sound[place + HEADER_BYTES :])
        with pytest.raises(OSError, match="has a size that cannot be"):
            check_heaps(path)
    assert [damage.file for damage in open_store(labelled).verify()] == [name]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_the_size_of_the_free_room_is_damage_and_no_hang(labelled, name):
    path = labelled / name
    sound = path.read_bytes()
    place = next(place for place, free in entries(sound) if free) + 8
    for bit in range(4, 16):
        data = bytearray(sound)
        data[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(OSError, match="a size that cannot be"):
            check_heaps(path)
    assert [damage.file for damage in open_store(labelled).verify()] == [name]
    if name == "labels/g.h5":
        with pytest.raises(DamageError, match=r"labels/g\.h5: cannot be read \(an entry of a heap"):
            _ = open_store(labelled).labels


def test_heaps_of_many_texts_are_sound(tmp_path):
    """Of every length, so that every rest of a heap occurs; control for the rules above."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        path = tmp_path / f"{trial}.h5"
        texts = ["x" * int(n) for n in rng.integers(0, 300, int(rng.integers(1, 200)))]
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.create_dataset("texts", data=texts, dtype=h5py.string_dtype())
            file.attrs["all"] = json.dumps(texts)
        check_heaps(path)
