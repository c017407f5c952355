"""What a plugin raises becomes text that every file and terminal can hold."""

import errno
import os

import pytest

from workbench.batching import worker
from workbench.batching.worker import LONGEST_ERROR, plain, told
from workbench.errors import UserError

RAISED = [
    (ValueError("\n\nfirst line\nsecond"), "ValueError: first line\nsecond"),
    (ValueError(), "ValueError"),
    (KeyboardInterrupt("mine"), "KeyboardInterrupt: mine"),
    (SystemExit(3), "SystemExit: 3"),
    (RuntimeError("lone \udc80, \0 and \x1b[31mred"), r"RuntimeError: lone \udc80, \x00 and \x1b[31mred"),
]


@pytest.mark.parametrize(("wrong", "says"), RAISED)
def test_an_exception_becomes_text(wrong, says, tmp_path):
    state, error, text = told(wrong, tmp_path)
    assert (state, error) == ("error", says)
    assert says.partition(":")[0] in text
    error.encode()


def test_wrong_input_has_no_traceback(tmp_path):
    assert told(UserError("k=0: must be"), tmp_path) == ("wrong input", "k=0: must be", "")


def test_what_is_too_long_loses_its_middle(tmp_path):
    _, error, text = told(RuntimeError("begins " + 10_000_000 * "x" + " ends"), tmp_path)
    assert error.startswith("RuntimeError: begins xxx")
    assert error.endswith("xxx ends")
    assert len(error) < LONGEST_ERROR + 50
    assert len(text) < 21_000
    assert plain("abcdefgh", 4) == "ab […4 characters…] gh"


def test_a_full_disk_is_told_from_another_one_that_is_full(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told(full, tmp_path)[0] == "error"  # there is room in the batch's folder
    monkeypatch.setattr(worker, "LEAST_ROOM", 1 << 62)
    assert told(full, tmp_path) == ("full", f"{tmp_path}: No space left on device", "")
    assert told(OSError(errno.EACCES, "no"), tmp_path)[0] == "error"
