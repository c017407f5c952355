"""Copies to the host and back: what the device is asked to do, and in which order.

Where this runs there is mostly no device, so a recorder stands for one; the last test, of a true one, is marked.
"""

import pytest
import torch

from workbench import transfer
from workbench.transfer import HostCopies, HostCopy, to_device


@pytest.fixture
def log(monkeypatch):
    """What is asked of a CUDA device, in order; tensors stay on the host."""
    log = []

    class Stream:
        def __init__(self, device=None):
            log.append(f"new stream on {device}")

        def wait_stream(self, other):
            log.append("copies wait for what computes")

        def record_event(self):
            log.append("event")
            return self

        def synchronize(self):
            log.append("wait for event")

        def __enter__(self):
            log.append("on the copying stream")

        def __exit__(self, *_):
            log.append("back")

    def empty(*args, pin_memory=False, **options):
        log.append("pinned" if pin_memory else "not pinned")
        return plainly(*args, **options)

    plainly = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "computing")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: log.append("kept until copied"), raising=False
    )
    return log


def test_a_copy_to_the_host_waits_only_when_it_is_wanted(log):
    values = torch.arange(6).view(2, 3)
    copy = HostCopy(values, torch.cuda.Stream("cuda:0"))
    started = [
        "new stream on cuda:0", "copies wait for what computes", "on the copying stream", "pinned", "back",
        "kept until copied", "event",
    ]  # fmt: skip
    assert log == started
    assert torch.equal(copy.get(), values)
    assert log == [*started, "wait for event"]


def test_each_device_has_one_stream_for_copies(log, monkeypatch):
    monkeypatch.setattr(transfer.Tensor, "is_cuda", True, raising=False)
    copies = HostCopies()
    for _ in range(3):
        copies.start(torch.ones(2))
    assert log.count("new stream on cpu") == 1
    assert log.count("event") == 3


def test_what_is_on_the_host_stays_as_it_is():
    values = torch.ones(3)
    assert HostCopies().start(values).get() is values
    assert to_device(values, "cpu") is values


@pytest.mark.gpu
def test_on_a_device_nothing_waits_until_the_rows_are_wanted():
    values = torch.randn(512, 512)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = to_device(values, "cuda")
        copy = HostCopies().start(on_device * 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(copy.get(), values * 2)
    assert copy.get().is_pinned()
