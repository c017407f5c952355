"""The linear CUDA kernels, run on a CPU, against their definition in float64."""

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


def assert_near(got: Tensor, want: Tensor) -> None:
    """Within the rounding of the result's dtype, on the scale of the largest entry."""
    assert got.shape == want.shape
    scale = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[got.dtype] * max(scale, 1.0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "latents", "k"), SIZES)
def test_decode_sums_decoder_rows(device, dtype, rows, width, latents, k):
    values, W = gaussian(rows, k, dtype=dtype), gaussian(latents, width, seed=2, dtype=dtype)
    indices = chosen(rows, k, latents)
    got = linear.sparse_decode(device, values, indices, W)
    dense = torch.zeros(rows, latents, dtype=torch.float64).scatter_add_(1, indices, values.double())
    assert got.dtype == dtype
    assert_near(got, dense @ W.double())
    assert len(device.launched) == (1 if rows and k else 0)


@pytest.mark.parametrize(("width", "offset", "packed"), [(64, 0, True), (62, 0, False), (64, 1, False)])
def test_wide_loads_are_used_where_every_row_is_aligned(device, width, offset, packed):
    values, indices = gaussian(3, 2), chosen(3, 2, 5)
    memory = gaussian(5 * width + offset, seed=2)
    W = memory[offset:].view(5, width)
    assert_near(
        linear.sparse_decode(device, values, indices, W), torch.einsum("rk,rkw->rw", values, W[indices]).double()
    )
    assert device.launched == [f"decode.sparse_decode_{'packed_' if packed else ''}f32"]


def test_an_index_outside_the_table_stops_the_kernel(device):
    with pytest.raises(Exception, match=r"trap at .*device.cuh"):
        linear.sparse_decode(device, gaussian(2, 1), torch.tensor([[0], [5]]), gaussian(5, 4))
