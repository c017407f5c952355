"""Between host and device without waiting: neither way stops the work that the device has before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: Any) -> Tensor:
    """Send a tensor of the host to a device; on CUDA the copy waits its turn there, and the host goes on.

    CUDA reads pinned memory by itself. From other memory the driver copies in pieces, and first waits for all that the
    device has to do.
    """
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A tensor that is on its way from a device to the host, or was there from the start.

    Parameters
    ----------
    tensor : Tensor
        On any device. One of the host is taken as it is, without a copy.
    stream : torch.cuda.Stream, optional
        On which a tensor of the device is copied, beside what the device computes.
    """

    def __init__(self, tensor: Tensor, stream: torch.cuda.Stream | None = None) -> None:
        self._tensor, self._arrived = tensor, None
        if stream is None:
            self._tensor = tensor.cpu()
            return
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given away before the copy has read it
        self._arrived = stream.record_event()

    def get(self) -> Tensor:
        """Return the tensor in the host's memory; waits for its arrival, and for nothing that came after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class HostCopies:
    """Starts copies to the host, on one stream for each device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, tensor: Tensor) -> HostCopy:
        """Start the copy of a tensor that nobody will write to any more."""
        if not tensor.is_cuda:
            return HostCopy(tensor)
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        return HostCopy(tensor, self._streams[tensor.device])
