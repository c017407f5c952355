import os
import threading
from pathlib import Path

import pytest

from workbench.cache import handles
from workbench.cache.handles import OpenFiles
from workbench.cache.residency import Residency


@pytest.fixture
def path(tmp_path):
    """A file that ends inside a block."""
    made = tmp_path / "file"
    made.write_bytes(os.urandom(1_000_003))
    return made


def forget_cached(path):
    """Take a file out of the page cache, where the system can."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())  # `fsync` does nothing in these tests, and what is not on the disk is not dropped
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


PIECES = [(0, 1), (0, 4096), (1, 4095), (4095, 2), (4096, 8192), (123_457, 654_321), (0, 1_000_003), (999_424, 579)]


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("at_once", [True, False])
def test_any_piece_is_that_of_the_file(path, past_cache, cached, at_once, monkeypatch):
    if not at_once:
        monkeypatch.delattr(os, "preadv")  # Windows
        monkeypatch.setattr(handles, "CAN_PASS_CACHE", False)
    want = path.read_bytes()
    with OpenFiles(past_cache=past_cache) as files:
        for place, n_bytes in PIECES:
            if not cached:
                forget_cached(path)
            buffer = bytearray(n_bytes)
            files.read(path, place, memoryview(buffer))
            assert bytes(buffer) == want[place : place + n_bytes]


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("place", [0, 1_000_000, 1_000_003, 2_000_000])
def test_the_end_of_a_file_is_an_error(path, place, past_cache):
    forget_cached(path)
    with OpenFiles(past_cache=past_cache) as files, pytest.raises(EOFError):
        files.read(path, place, memoryview(bytearray(1_000_004)))


def test_a_file_system_without_direct_reads_is_read_through_the_cache(path, monkeypatch):
    true = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return true(path, flags, *rest)

    monkeypatch.setattr(os, "O_DIRECT", 1 << 30, raising=False)
    monkeypatch.setattr(os, "open", refuse)
    buffer = bytearray(100)
    with OpenFiles(past_cache=True) as files:
        files.read(path, 50, memoryview(buffer))
    assert bytes(buffer) == path.read_bytes()[50:150]


def test_what_is_read_past_the_cache_is_not_put_in_it(path):
    forget_cached(path)
    with path.open("rb") as file:
        try:
            cached, _ = Residency(file.fileno()), os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        except (OSError, AttributeError):
            pytest.skip("no direct reads here")
    if cached.has(0, 1_000_000):
        pytest.skip("this system does not drop files from its cache when asked")
    buffer = bytearray(300_000)
    with OpenFiles(past_cache=True) as files:
        files.read(path, 100_000, memoryview(buffer))
        assert not any(cached.has(place, 1) for place in range(0, 1_000_000, 4096))
    with OpenFiles(past_cache=False) as files:
        files.read(path, 100_000, memoryview(buffer))
        assert cached.has(100_000, 300_000)
        assert cached.has(100_001, 1)
    assert cached.has(0, 0)
    assert cached.has(999_999, 10)  # no piece of the file: reading tells
    cached.close()


def n_open():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_few_files_are_open_at_a_time_and_none_after(tmp_path, monkeypatch):
    monkeypatch.setattr(handles, "N_OPEN", 3)
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(path.name.encode())
    before, most = n_open(), 0
    with OpenFiles(past_cache=True) as files:

        def read(start):
            nonlocal most
            for turn in range(200):
                path = paths[(start * 7 + turn * 11) % 40]
                buffer = bytearray(len(path.name))
                files.read(path, 0, memoryview(buffer))
                assert bytes(buffer).decode() == path.name
                most = max(most, n_open())

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most <= before + 3 * (3 + 4) + 4  # open twice, and mapped; a thread may hold one more; listing opens one
    assert n_open() == before


def test_a_file_that_was_replaced_is_read_once_it_is_forgotten(path, tmp_path):
    buffer = bytearray(3)
    with OpenFiles() as files:
        files.read(path, 0, memoryview(buffer))
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(path)
        files.read(path, 0, memoryview(buffer))
        assert bytes(buffer) != b"new"
        files.forget(path)
        files.read(path, 0, memoryview(buffer))
        assert bytes(buffer) == b"new"
        files.forget(tmp_path / "never opened")
