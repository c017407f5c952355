"""What processes exchange comes in the order of their ranks, and a lost one is told of; with threads for processes."""

import pytest
import torch

from workbench.errors import UserError
from workbench.ranks import ALONE, LostRankError, added, in_turn, lost_ranks_told, open_ranks, part_of
from workbench.testing.ranks import on_threads


def test_parts_are_all_rows_in_order_and_nearly_equal():
    for size in (1, 2, 3, 7):
        for n in (0, 1, 6, 7, 100):
            parts = on_threads(size, lambda ranks, n=n: part_of(ranks, n))
            rows = [row for part in parts for row in range(n)[part]]
            assert rows == list(range(n))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


def test_sums_are_taken_in_the_order_of_the_ranks_with_the_same_bits_on_each(monkeypatch):
    monkeypatch.setattr("workbench.ranks.PIECE", 7)  # in pieces, and a shorter last one
    tensors = [torch.randn(3, 11, generator=torch.Generator().manual_seed(seed)) * 10**seed for seed in range(3)]
    want = tensors[0] + tensors[1] + tensors[2]
    for found in on_threads(3, lambda ranks: added(ranks, tensors[ranks.rank])):
        assert torch.equal(found, want)
    assert torch.equal(added(ALONE, tensors[0]), tensors[0])


def test_what_is_gathered_may_differ_in_length():
    found = on_threads(3, lambda ranks: ranks.gather(torch.full((ranks.rank, 2), ranks.rank)))
    for each in found:
        assert [part.tolist() for part in each] == [[], [[1, 1]], [[2, 2], [2, 2]]]


def test_one_after_the_other():
    order = []
    assert on_threads(3, lambda ranks: in_turn(ranks, lambda: order.append(ranks.rank) or len(order))) == [1, 2, 3]
    assert order == [0, 1, 2]
    assert in_turn(ALONE, lambda: "made") == "made"


def test_without_torchrun_there_is_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_ranks() as ranks:
        assert (ranks.rank, ranks.size, ranks.tell("x")) == (0, 1, "x")


def test_others_that_cannot_be_joined_are_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    joined = open_ranks()
    with pytest.raises(UserError, match=r"WORLD_SIZE=2, but the other processes cannot be joined .* torchrun"):
        joined.__enter__()


def test_a_lost_process_is_told_of():
    def closed():
        with lost_ranks_told(1):
            raise RuntimeError("[/torch/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:3977. This\nmore")

    with pytest.raises(
        LostRankError, match=r"rank 1: another process of this run has ended, .*why \(Connection closed by peer :3977"
    ):
        closed()
