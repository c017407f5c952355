"""Rows on their way to a store: rounded as the store itself rounds, and never to infinity."""

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, narrow
from workbench.capture_rows import RowsOnTheWay
from workbench.errors import UserError
from workbench.transfer import HostCopies

NAME = "blocks.0.hook_mlp_out"


def stored(rows, dtype, name=NAME, first_row=40):
    spec = ActivationSpec(("head", "d")[3 - rows.ndim :], tuple(rows.shape[1:]), dtype)
    return RowsOnTheWay(rows, name, spec, HostCopies()).array(first_row)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("special", [False, True], ids=["finite", "with NaN and infinity"])
def test_rounding_is_the_stores_bit_for_bit(dtype, special):
    values = np.random.default_rng(0).integers(0, 2**32, (999, 77), dtype=np.uint32).view(np.float32)
    largest = {"float16": 65504, "bfloat16": 3.38e38}[dtype]
    values = np.where(np.abs(values) <= largest, values, np.float32(1 / 3))
    if special:
        values[:, ::7], values[::3, 1::7], values[1::3, 1::7] = np.nan, np.inf, -np.inf
    got = stored(torch.from_numpy(values), dtype)
    assert got.tobytes() == narrow(values, dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_of_the_stored_type_are_kept(dtype):
    bits = np.random.default_rng(0).integers(0, 2**15, (9, 8)).astype(np.int16)
    rows = torch.from_numpy(bits).view(torch.float16)
    rows = rows.nan_to_num(posinf=1.0).to(getattr(torch, dtype))
    assert stored(rows, dtype).tobytes() == rows.view(torch.uint8).numpy().tobytes()


def test_what_the_store_scales_itself_it_gets_as_float32():
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert np.array_equal(stored(rows, "int8"), rows.float().numpy())


OVERFLOWS = [
    pytest.param(torch.float32, 1e6, "float16", "1e+06 is beyond float16's largest, 65504; store as bf", id="float16"),
    pytest.param(torch.float32, -65520.0, "float16", "-65520 is beyond float16's largest", id="half a step"),
    pytest.param(torch.float32, 3.4e38, "bfloat16", "is beyond bfloat16's largest", id="bfloat16"),
    pytest.param(torch.bfloat16, 1e6, "float16", "is beyond float16's largest, 65504", id="from bfloat16"),
    pytest.param(torch.float64, 1e39, "float32", "1e+39 is beyond float32's largest", id="from float64"),
    pytest.param(torch.float16, np.inf, "float16", "overflow, the subject runs in float16", id="subject"),
    pytest.param(torch.float16, -np.inf, "float32", "overflow, the subject runs in float16", id="subject, wider"),
]


@pytest.mark.parametrize(("runs_in", "value", "dtype", "says"), OVERFLOWS)
@pytest.mark.parametrize("beside", [0.0, np.nan], ids=["", "beside NaN"])
def test_overflow_names_hook_point_and_row(runs_in, value, dtype, says, beside):
    rows = torch.zeros(3, 2, 2, dtype=runs_in)
    rows[0, 0, 0], rows[2, 1, 0] = beside, value
    with pytest.raises(UserError) as error:
        stored(rows, dtype)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{NAME}, row 42: ")


def test_what_is_no_overflow():
    rows = torch.tensor([[np.inf, -np.inf, np.nan, 65519.0]])
    assert np.array_equal(stored(rows, "float16"), np.float16([[np.inf, -np.inf, np.nan, 65504]]), equal_nan=True)
    unseen = torch.tensor([[0.0, -np.inf]], dtype=torch.float16)
    assert stored(unseen, "float16", name="blocks.0.attn.hook_attn_scores").tolist() == [[0, -np.inf]]
    with pytest.raises(UserError, match="overflow"):
        stored(-unseen, "float16", name="blocks.0.attn.hook_attn_scores")
