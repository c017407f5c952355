"""Several processes at one run (torchrun): what each has is brought together in the order of their ranks, always."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from workbench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PIECE = 1 << 22  # numbers that are exchanged at once, when large tensors are added
PATIENCE = timedelta(hours=12)  # one may capture while the others wait; one that has ended is noticed at once


class LostRankError(UserError):
    """Another process of the run has ended."""


class Ranks(Protocol):
    """The processes of a run; every one calls the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Which this is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process's tensor [n, ...], by rank; n may differ."""

    def tell(self, value: str) -> str:
        """Return what rank 0 has given."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Ranks.gather`."""
        return [tensor]

    def tell(self, value: str) -> str:
        """See `Ranks.tell`."""
        return value


ALONE = Alone()


class Group:
    """Processes that torchrun started; what they exchange goes through the host (gloo), whatever device it is on."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Ranks.gather`."""
        import torch
        import torch.distributed as dist

        plain = tensor.detach().cpu()
        plain = plain.to(torch.uint8) if tensor.dtype == torch.bool else plain
        with lost_ranks_told(self.rank):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(plain)]))
            lengths = [int(size) for size in sizes]
            padded = plain.new_zeros(max(lengths), *plain.shape[1:])
            padded[: len(plain)] = plain
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded)
        return [each[:n].to(tensor.device, tensor.dtype) for each, n in zip(found, lengths, strict=True)]

    def tell(self, value: str) -> str:
        """See `Ranks.tell`."""
        import torch

        told = self.gather(torch.tensor(list(value.encode()), dtype=torch.uint8))  # torch's own way is a pickle
        return bytes(told[0].tolist()).decode()


@contextmanager
def lost_ranks_told(rank: int) -> Iterator[None]:
    """Turn what the exchange says when another process is gone into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        said = re.sub(r"\[[^]]*\] *", "", str(error).splitlines()[0])  # without places in torch's own source, addresses
        raise LostRankError(
            f"rank {rank}: another process of this run has ended, so that this one ends too; its own message says why "
            f"({said[:200]})"
        ) from None


def added(ranks: Ranks, tensor: Tensor) -> Tensor:
    """Return the sum of every process's tensor, of one shape, in the order of the ranks: the same bits on each."""
    if ranks.size == 1:
        return tensor
    import torch

    flat = tensor.detach().reshape(-1)
    sums = []
    for piece in torch.split(flat, PIECE):
        first, *others = ranks.gather(piece)
        for other in others:
            first += other
        sums.append(first)
    return torch.cat(sums).view(tensor.shape) if sums else tensor


def in_turn(ranks: Ranks, make: Callable[[], T]) -> T:
    """Call a function on one process after the other, from rank 0 on: what the first has made, the others find."""
    made: list[T] = []
    for rank in range(ranks.size):
        if rank == ranks.rank:
            made.append(make())
        ranks.tell("")
    return made[0]


def part_of(ranks: Ranks, n: int) -> slice:
    """Return which of n rows are this process's: nearly as many for each, in the order of the ranks."""
    return slice(n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; without torchrun, there is this one alone.

    Parameters
    ----------
    device : str
        Where tensors will be; of CUDA devices ``auto`` gives each process of a machine its own, as far as they go.

    Raises
    ------
    UserError
        If the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if device == "auto" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the other processes cannot be joined ({error}); start with "
            "torchrun --nproc-per-node N -m workbench run …"
        ) from None
    log, level = logging.getLogger("workbench"), logging.getLogger("workbench").level
    ranks = Group()
    if ranks.rank:
        log.setLevel(logging.WARNING)  # the first one says what there is to say
    try:
        yield ranks
    finally:
        log.setLevel(level)
        dist.destroy_process_group()
