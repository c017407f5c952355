import numpy as np
import pytest
import torch

from workbench.cache import StoreError, narrow, to_array, to_tensor, widen

ALL = np.arange(65536, dtype=np.uint16)


def test_every_bfloat16_comes_back():
    values = widen(ALL)
    back = narrow(values, "bfloat16")
    nan = np.isnan(values)
    assert np.array_equal(back[~nan], ALL[~nan])
    assert np.isnan(widen(back[nan])).all()
    torch.testing.assert_close(torch.from_numpy(values), to_tensor(ALL.copy(), "bfloat16").float(), equal_nan=True)


def test_every_float16_comes_back():
    values = ALL.view(np.float16)
    back = narrow(values.astype(np.float32), "float16")
    assert np.array_equal(back, values, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_torchs(dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values) & (np.abs(values) < {"float16": 65504, "bfloat16": 3.38e38}[dtype])]
    want = torch.from_numpy(values).to(getattr(torch, dtype))
    assert np.array_equal(narrow(values, dtype), to_array(want))


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520.0), ("float16", -1e6), ("bfloat16", 3.4e38)])
def test_overflow_names_hook_point_and_row(dtype, value):
    values = np.zeros((3, 2, 2), np.float32)
    values[0, 0, 0] = np.inf  # a true infinity is kept
    values[2, 1, 0] = value
    with pytest.raises(StoreError, match=rf"blocks\.0\.hook_mlp_out, row 42: .* is beyond {dtype}'s largest"):
        narrow(values, dtype, hook_point="blocks.0.hook_mlp_out", first_row=40)


def test_infinity_and_nan_are_no_overflow():
    values = np.array([np.inf, -np.inf, np.nan, 65519.0], np.float32)
    assert np.array_equal(narrow(values, "float16"), values.astype(np.float16), equal_nan=True)
    assert np.isinf(widen(narrow(values[:2], "bfloat16"))).all()


def test_a_nan_whose_mantissa_lies_low_stays_one():
    low = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(low, "bfloat16"))).all()


def test_other_types_are_refused():
    with pytest.raises(StoreError, match="narrow takes float32, not float64"):
        narrow(np.zeros(3), "float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_go_there_and_back(dtype):
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype).T
    back = to_tensor(to_array(tensor), str(dtype).removeprefix("torch."))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
