"""Rows land in their places, in C and in NumPy, whatever their size."""

import logging
import stat

import numpy as np
import pytest

from workbench.cache import compiled
from workbench.cache.memory import Memory
from workbench.cache.scatter import HELD_UP_TO_ROWS, records, scatter, scatter_by_numpy


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing is compiled yet, and what is goes to `tmp_path / "built"`."""
    monkeypatch.setenv("WORKBENCH_KERNEL_CACHE", str(tmp_path / "built"))
    compiled._load.cache_clear()
    yield tmp_path / "built"
    compiled._load.cache_clear()


def place(way, row_bytes, n_rows, n_places, offset=0):
    """Scatter random rows, and by a loop over bytes; returns both targets."""
    rng = np.random.default_rng([row_bytes, n_rows, offset])
    data = np.frombuffer(rng.bytes(n_rows * row_bytes), np.uint8)
    places = rng.permutation(n_places)[:n_rows]
    memory = Memory(offset + (n_places + 1) * row_bytes)
    bytes_ = memory.array(0, (offset + (n_places + 1) * row_bytes,), np.dtype(np.uint8))
    bytes_[:] = 7
    want = bytes_.copy()
    for i, at in enumerate(places):
        start = offset + at * row_bytes
        want[start : start + row_bytes] = data[i * row_bytes : (i + 1) * row_bytes]
    way(records(bytes_, row_bytes, n_places, offset), places, records(data, row_bytes, n_rows))
    return bytes_, want


@pytest.mark.parametrize("way", [scatter, scatter_by_numpy])
@pytest.mark.parametrize("row_bytes", [1, 4, 6, 8, 24, 63, 64, 65, 128, 1536, 1538])
@pytest.mark.parametrize("n_rows", [0, 1, 5, HELD_UP_TO_ROWS, HELD_UP_TO_ROWS + 1])
def test_each_row_lands_in_its_place_and_nothing_else_changes(way, row_bytes, n_rows):
    for offset in (0, 16):  # where lines of memory start, and inside one
        found, want = place(way, row_bytes, n_rows, n_rows + 9, offset)
        assert np.array_equal(found, want)


@pytest.mark.parametrize("wrong", [-1, 4, 2**62, -(2**63)])
def test_a_place_out_of_range_is_an_error_and_nothing_is_written(wrong):
    if compiled.scatter_function() is None:
        pytest.skip("no C compiler here: NumPy counts negative places from the end")
    target = np.zeros(4 * 64, np.uint8)
    with pytest.raises(IndexError, match=f"row 1 goes to place {wrong}; there are 4 places"):
        scatter(records(target, 64, 4), np.array([0, wrong]), records(np.ones(128, np.uint8), 64, 2))
    assert not target.any()


def test_without_a_compiler_numpy_does_it_and_the_log_says_so_once(anew, monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(anew))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found, want = place(scatter, 64, 5, 9)
            assert np.array_equal(found, want)
    assert [record.getMessage() for record in caplog.records] == [
        "store: rows are placed by NumPy, which is slower: no C compiler: looked for cc, gcc, clang"
    ]


@pytest.mark.parametrize("script", ["echo 'scatter.c: error: no such thing' >&2; exit 1", "exit 0"])
def test_a_compiler_that_fails_is_told_and_leaves_nothing(anew, monkeypatch, tmp_path, caplog, script):
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    found, want = place(scatter, 64, 5, 9)
    assert np.array_equal(found, want)
    (record,) = caplog.records
    assert "rows are placed by NumPy" in record.getMessage()
    assert not list(anew.glob("*.part"))


def test_it_is_compiled_once_and_a_damaged_file_anew(anew):
    if compiled.scatter_function() is None:
        pytest.skip("no C compiler here")
    (built,) = anew.glob("*.so")
    before = built.stat()
    compiled._load.cache_clear()
    assert compiled.scatter_function() is not None
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    built.unlink()  # not written into: this process has it mapped
    built.write_bytes(b"half")
    compiled._load.cache_clear()
    assert compiled.scatter_function() is not None
    assert built.stat().st_size == before.st_size
    found, want = place(scatter, 64, 5, 9)
    assert np.array_equal(found, want)
