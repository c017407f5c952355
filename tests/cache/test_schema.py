import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cache import ActivationSpec, StoreError
from workbench.cache.schema import choose_chunk_rows, choose_rows_per_shard

BAD_SPECS = [
    pytest.param(
        {"dtype": "int4"}, "dtype='int4': must be one of float32, float16, bfloat16, int8", id="unknown dtype"
    ),
    pytest.param({"axes": ("head", "d_head")}, "differ in length", id="axes without sizes"),
    pytest.param({"shape": (0,)}, "at least one entry", id="empty axis"),
]


@pytest.mark.parametrize(("change", "says"), BAD_SPECS)
def test_a_wrong_spec_is_explained(change, says):
    with pytest.raises(StoreError, match=says):
        ActivationSpec(**{"axes": ("d_model",), "shape": (4,), "dtype": "float32", **change})


def test_json_form_comes_back():
    spec = ActivationSpec(("head", "key"), (12, 1024), "bfloat16", "probability")
    assert ActivationSpec.from_json(spec.to_json()) == spec
    assert spec.row_bytes == 12 * 1024 * 2


@given(widths=st.lists(st.integers(1, 10**7), min_size=1, max_size=4), n_rows=st.integers(0, 10**11))
def test_chunks_are_about_a_megabyte_and_shards_are_whole_chunks(widths, n_rows):
    specs = {f"h{i}": ActivationSpec(("d",), (width,), "float32") for i, width in enumerate(widths)}
    chunk_rows = choose_chunk_rows(specs)
    assert chunk_rows & (chunk_rows - 1) == 0
    mean_bytes = sum(spec.row_bytes for spec in specs.values()) / len(specs)
    assert chunk_rows == 1 or chunk_rows * mean_bytes <= 2**20
    assert chunk_rows == 4096 or 2 * chunk_rows * mean_bytes > 2**20
    rows_per_shard = choose_rows_per_shard(specs, n_rows, chunk_rows)
    assert rows_per_shard % chunk_rows == 0
    assert rows_per_shard == chunk_rows or rows_per_shard * mean_bytes * len(specs) <= 2**30


def test_a_shard_is_small_enough_to_lose():
    specs = {"h": ActivationSpec(("d",), (256,), "float32")}
    rows_per_shard = choose_rows_per_shard(specs, 200_000, choose_chunk_rows(specs))
    assert 200_000 // rows_per_shard >= 10
