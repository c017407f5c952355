"""The linear CUDA kernels against their definition in float64."""

import pytest
import torch
from torch import Tensor

from workbench.kernels.cuda import linear

# rows, width, latents, k: one of everything, odd, whole packs, no rows, no latents chosen, many blocks each way
SIZES = [(1, 1, 1, 1), (5, 3, 7, 7), (33, 65, 129, 8), (9, 32, 20, 5), (0, 8, 4, 2), (4, 16, 3, 0), (3, 1100, 6, 17)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def chosen(rows: int, k: int, latents: int) -> Tensor:
    return torch.randint(latents, (rows, k), generator=torch.Generator().manual_seed(4))  # repeats allowed


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Within the rounding of the result's dtype, on the scale of the largest entry."""
    assert (got.shape, got.dtype) == (want.shape, dtype)
    scale = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[got.dtype] * max(scale, 1.0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "latents", "k"), SIZES)
def test_linear_kernels_equal_their_definition(device, dtype, rows, width, latents, k):
    values, x = gaussian(rows, k, dtype=dtype), gaussian(rows, width, seed=1, dtype=dtype)
    W, indices = gaussian(latents, width, seed=2, dtype=dtype), chosen(rows, k, latents)
    dense = torch.zeros(rows, latents, dtype=torch.float64).scatter_add_(1, indices, values.double())
    assert_near(device.call(linear.sparse_decode, values, indices, W), dense @ W.double(), dtype)
    want = torch.einsum("rw,rkw->rk", x.double(), W.double()[indices])
    assert_near(device.call(linear.gathered_dot, x, indices, W), want, dtype)
    assert_near(device.call(linear.scatter_outer, values, indices, x, latents), dense.T @ x.double(), dtype)
    ran = {kernel.split(".")[0] for kernel in device.launched}
    assert ran == ({"decode", "dot", "order", "scatter"} if rows and k else set())


@pytest.mark.parametrize(("rows", "k", "latents"), [(1, 1, 1), (700, 7, 3), (90, 64, 300), (40, 9, 70_000)])
def test_pairs_are_in_the_order_of_a_stable_sort(device, monkeypatch, rows, k, latents):
    monkeypatch.setattr(linear, "CHUNK", 512)  # many chunks, so that they have to agree on places
    indices = chosen(rows, k, latents)
    if latents == 300:
        indices[:] = indices % 2 * 299  # two latents, the first and the last, hold everything
    pairs, starts = device.call(linear.by_latent, indices, latents)
    latent, order = indices.flatten().sort(stable=True)
    assert torch.equal(pairs.long(), order)
    assert torch.equal(starts.long(), torch.searchsorted(latent, torch.arange(latents + 1)))


def test_a_sum_over_rows_has_the_same_bits_whatever_the_order_of_threads(device):
    values, x, indices = gaussian(300, 8), gaussian(300, 16, seed=1), chosen(300, 8, 20)
    first = device.call(linear.scatter_outer, values, indices, x, 20)
    for _ in range(3):  # each launch draws another order
        assert torch.equal(device.call(linear.scatter_outer, values, indices, x, 20), first)
    in_row_order = torch.zeros(20, 16)
    for row in range(300):
        for place in range(8):
            product = values[row, place].double() * x[row].double()
            j = indices[row, place]
            in_row_order[j] = (product + in_row_order[j].double()).float()  # nearly a fused multiply-add
    torch.testing.assert_close(first, in_row_order, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("width", "offset", "packed"), [(64, 0, True), (62, 0, False), (64, 1, False)])
def test_wide_loads_are_used_where_every_row_is_aligned(device, width, offset, packed):
    values, indices, memory = gaussian(3, 2), chosen(3, 2, 5), gaussian(5 * width + offset, seed=2)

    def decode(device, values: Tensor, indices: Tensor, memory: Tensor) -> Tensor:
        return linear.sparse_decode(device, values, indices, memory[offset:].view(5, width))

    want = torch.einsum("rk,rkw->rw", values, memory[offset:].view(5, width)[indices]).double()
    assert_near(device.call(decode, values, indices, memory), want)
    assert device.launched == [f"decode.sparse_decode_{'packed_' if packed else ''}f32"]


@pytest.mark.parametrize("new_device", ["shim"], indirect=True)  # on a GPU it would end the process's context
def test_an_index_outside_the_table_stops_the_kernel(device):
    with pytest.raises(Exception, match=r"trap at .*device.cuh"):
        device.call(linear.sparse_decode, gaussian(2, 1), torch.tensor([[0], [5]]), gaussian(5, 4))
