"""Choosing kernels by hand, and what is told of the choice."""

import pytest
import torch

from workbench.kernels.choice import VARIABLE, facts, in_use, use
from workbench.kernels.cpu.units import UNITS
from workbench.kernels.errors import KernelError
from workbench.kernels.topk import topk_encode

x, W, b = torch.randn(3, 4), torch.randn(9, 4), torch.zeros(9)


def test_the_best_unit_that_the_processor_has_is_used():
    best = next(name for name, unit in UNITS.items() if not unit.lacking())
    assert in_use()["topk_encode"] == best
    (row,) = [row for row in facts() if row["state"].startswith("in use")]
    assert row["kernel"] == best
    assert row["file"].endswith(".so")


def test_a_block_of_code_or_the_environment_can_force_a_kernel(monkeypatch):
    monkeypatch.setenv(VARIABLE, "generic:exact")
    assert in_use()["topk_encode"] == "generic:exact"
    with use("generic"):
        assert in_use()["topk_encode"] == "generic"
        with use("reference"):
            assert in_use()["topk_encode"] == "reference"
            topk_encode(x, W, b, 2)
        assert in_use()["topk_encode"] == "generic"
    monkeypatch.setenv(VARIABLE, "reference")
    assert in_use()["topk_encode"] == "reference"
    (row,) = [row for row in facts() if row["state"].startswith("in use")]
    assert (row["kernel"], row["state"]) == ("reference", "in use: asked for")


def test_a_size_tells_the_screen_that_it_starts_with():
    with use("generic:exact"):
        assert in_use(size=(4096, 768, 16384, 32))["topk_encode"] == "generic:exact"
    with use("generic"):
        assert in_use(size=(4096, 768, 16384, 32))["topk_encode"] == "generic:float32"
        assert in_use(size=(2, 768, 16384, 32))["topk_encode"] == "generic:exact"
    with use("reference"):
        assert in_use(size=(4096, 768, 16384, 32))["topk_encode"] == "reference"


def test_int8_is_chosen_while_it_is_fine_enough_and_bfloat16_beyond():
    if UNITS["avx512_bf16"].lacking():
        pytest.skip("this processor has no products of bfloat16 (issue 5)")
    with use("avx512_bf16"):
        screens = [in_use(size=(4096, width, 16384, 64))["topk_encode"] for width in (16, 256, 768, 2048, 8192, 40000)]
    assert screens == [f"avx512_bf16:{name}" for name in ("float32", "int8", "int8", "bfloat16", "bfloat16", "float32")]


def test_float64_is_the_references():
    with use("generic") as choice:
        choice.library.counts["rescored"] = -1
        topk_encode(x.double(), W.double(), b.double(), 2)
        assert choice.library.counts["rescored"] == -1


BAD_INPUT = [
    pytest.param("avx", "kernel 'avx': there are reference, avx512_bf16", id="unknown"),
    pytest.param("generic:int8", "kernel 'generic:int8': generic has float32, exact", id="unknown screen"),
]


@pytest.mark.parametrize(("name", "says"), BAD_INPUT)
def test_a_kernel_that_does_not_exist_is_refused(name, says, monkeypatch):
    with pytest.raises(KernelError) as error, use(name):
        pass
    assert says in str(error.value)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(KernelError):
        topk_encode(x, W, b, 2)


def test_a_kernel_for_another_processor_is_refused(monkeypatch):
    monkeypatch.setattr("workbench.kernels.cpu.units.features", lambda: frozenset({"sse2"}))
    monkeypatch.setattr("workbench.kernels.cpu.choosing._choices", {})  # as in a process that has not run it yet
    with pytest.raises(KernelError, match="this processor lacks avx2, fma"), use("avx2:exact"):
        pass
    states = {row["kernel"]: row["state"] for row in facts()}
    assert states["avx2"] == "not here: the processor lacks avx2, fma"
