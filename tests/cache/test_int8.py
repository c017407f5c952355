"""The 8-bit form: its bound, what it refuses, and stores that hold it beside other types."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from workbench.cache import (
    ActivationSpec,
    DamageError,
    ExamplesBuilder,
    StoreError,
    StoreWriter,
    dequantize,
    int8,
    open_store,
    quantize,
)

RESID, OTHER = "blocks.0.hook_resid_post", "blocks.0.attn.hook_z"
SPECS = {
    RESID: ActivationSpec(("d_model",), (6,), "int8"),
    OTHER: ActivationSpec(("head", "d_head"), (2, 3), "float16"),
}
N_ROWS = 100
exponents = st.integers(0, int8.MAX_EXPONENT)


def build(n_rows=N_ROWS):
    builder = ExamplesBuilder()
    for number in range(n_rows // 10):
        builder.sequence(builder.document(f"d{number}"), np.arange(10), special=np.arange(10) == 0)
    return builder.build()


def values(n_rows=N_ROWS, seed=0):
    """Rows of very different sizes, with a channel that is a hundred times larger, a silent one and a row of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, 6)) * np.exp2(rng.integers(-20, 20, (n_rows, 1)))
    x[:, 3] *= 100
    x[:, 5] = 0
    x[7] = 0
    return {RESID: x.astype(np.float32), OTHER: rng.standard_normal((n_rows, 2, 3)).astype(np.float16)}


def write(folder, arrays, *, batch_rows=7, end=N_ROWS, **options):
    with StoreWriter(folder, SPECS, build(), {}, rows_per_shard=24, **options) as writer:
        while writer.next_row < end:
            rows = slice(writer.next_row, min(writer.next_row + batch_rows, end))
            writer.append({name: array[rows] for name, array in arrays.items()})


@pytest.fixture
def folder(tmp_path, small_chunks):
    write(tmp_path / "acts", values())
    return tmp_path / "acts"


def by_hand(x, factors):
    """The form in float64, one value at a time; the scale's 17 bits are allowed for, not made."""
    out = np.empty(x.shape)
    for row in range(len(x)):
        scale = max(np.max(np.abs(x[row].astype(np.float64)) / factors) / 127, 2.0**-126)
        for channel in range(x.shape[1]):
            out[row, channel] = scale * factors[channel]
    return out  # of the steps: twice the largest error


# --- the form itself --------------------------------------------------------------------------------------------------
@given(
    x=npst.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(-(2.0**125), 2.0**125, width=32)
    ),
    powers=st.lists(exponents, min_size=4, max_size=4),
)
def test_no_value_moves_by_more_than_half_a_step(x, powers):
    factors = np.exp2(powers).astype(np.float32)
    numbers, scales = quantize(x, factors)
    back = dequantize(numbers, scales, factors)
    steps = scales[:, None].astype(np.float64) * factors
    assert (numbers.dtype, scales.dtype, back.dtype) == (np.int8, np.float32, np.float32)
    assert np.abs(numbers.astype(int)).max(initial=0) <= 127
    assert (np.abs(back.astype(np.float64) - x) <= steps * (0.5 + 2**-16)).all()
    assert (steps <= by_hand(x, factors.astype(np.float64)) * (1 + 2**-15)).all()  # no coarser than it must be
    again = quantize(back, factors)
    assert (np.abs(dequantize(*again, factors) - back.astype(np.float64)) <= steps * (0.5 + 2**-16)).all()


@given(
    numbers=npst.arrays(np.int8, (3, 4)),
    bits=st.integers(0x00800000, 0x7A000000),
    powers=st.lists(exponents, min_size=4, max_size=4),
)
def test_values_are_exact_products(numbers, bits, powers):
    """In float32, in float64, by numpy or torch, in any order: the same bits."""
    scale = int8._rounded_up(np.array([bits] * 3, np.uint32).view(np.float32))
    factors = np.exp2(np.minimum(powers, 8)).astype(np.float32)
    if float(scale[0]) * 128 * 256 > 3e38:
        scale /= np.float32(2**16)
    want = numbers.astype(np.float64) * scale[:, None].astype(np.float64) * factors
    assert np.array_equal(dequantize(numbers, scale, factors), want.astype(np.float32))
    assert np.array_equal(want.astype(np.float32).astype(np.float64), want)
    by_torch = torch.from_numpy(numbers) * torch.from_numpy(factors) * torch.from_numpy(scale)[:, None]
    assert np.array_equal(by_torch.numpy(), want)


def test_rounding_is_to_nearest_even():
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    numbers, scales = quantize(x, np.ones(6, np.float32))
    assert scales.tolist() == [1.0]
    assert numbers.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_the_smallest_and_largest_rows():
    tiny = np.array([[1e-45, -1e-45], [0, 0], [1e-38, 3e-39], [3e38, -1e38]], np.float32)
    numbers, scales = quantize(tiny, np.ones(2, np.float32))
    assert (scales >= 2.0**-126).all()
    assert numbers[:2].tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(dequantize(numbers, scales, np.ones(2, np.float32)), tiny, atol=2e-38, rtol=0.01)


@pytest.mark.parametrize("shape", [(0, 3), (4,), (4, 1), (3, 2, 3)])
def test_any_shape(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    factors = np.ones(shape[1:], np.float32)
    numbers, scales = quantize(x, factors)
    assert (numbers.shape, scales.shape) == (shape, shape[:1])
    np.testing.assert_allclose(dequantize(numbers, scales, factors), x, atol=np.abs(x).max(initial=0) / 250)


def test_blocks_do_not_show(monkeypatch):
    x = values()[RESID]
    factors = int8.choose_factors(x)
    want = quantize(x, factors)
    monkeypatch.setattr(int8, "BLOCK_BYTES", 1)
    for found, expected in zip(quantize(x, factors), want, strict=True):
        assert np.array_equal(found, expected)
    assert np.array_equal(dequantize(*want, factors), want[0] * want[1][:, None] * factors)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "a value is NaN: int8 cannot hold it"),
        (np.inf, "a value is infinite"),
        (-np.inf, "a value is infinite"),
        (3.4028235e38, "too large to be rounded"),
    ],
)
def test_what_it_cannot_hold_names_hook_point_and_row(value, says):
    x = np.zeros((3, 2), np.float32)
    x[2, 1] = value
    with pytest.raises(StoreError, match=rf"blocks\.0\.hook_mlp_out, row 42: .*{says}.*store as bfloat16 or float32"):
        quantize(x, np.ones(2, np.float32), hook_point="blocks.0.hook_mlp_out", first_row=40)


# --- factors ----------------------------------------------------------------------------------------------------------
def test_factors_find_the_channels_that_are_always_large_and_no_others():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 64)).astype(np.float32)
    assert (int8.choose_factors(x) == 1).all()
    x[:, 5] *= 100
    x[:, 9] += 30
    factors = int8.choose_factors(x * np.exp2(rng.integers(-9, 9, (2000, 1))).astype(np.float32))
    assert np.flatnonzero(factors > 1).tolist() == [5, 9]
    assert factors[5] in (32, 64, 128)
    assert factors[9] in (16, 32)


def test_a_few_rows_of_huge_values_are_no_large_channel():
    """The first token's massive entries: the row's own scale takes care of them."""
    x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    x[::200, 5] = 3000
    assert (int8.choose_factors(x) == 1).all()


@pytest.mark.parametrize("x", [np.zeros((5, 3)), np.eye(3), np.zeros((0, 3)), np.ones((4, 1)), np.full((2, 2), 1e38)])
def test_factors_of_odd_rows_are_one(x):
    assert (int8.choose_factors(x.astype(np.float32)) == 1).all()


def test_what_factors_are_worth():
    """The claim of docs/store.md, with its control: one scale per row alone loses what the large channel leaves."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 64)).astype(np.float32)
    x[:, 5] *= 300

    def loss(factors):
        return ((dequantize(*quantize(x, factors), factors) - x) ** 2).mean(0) / x.var(0)

    assert np.median(loss(int8.choose_factors(x))) < 2e-4
    assert np.median(loss(np.ones(64, np.float32))) > 0.1


def test_factors_go_through_the_manifest():
    factors = np.exp2(np.arange(int8.MAX_EXPONENT + 1)).astype(np.float32).reshape(1, -1)
    assert np.array_equal(int8.from_text(int8.to_text(factors), factors.shape), factors)


# --- stores -----------------------------------------------------------------------------------------------------------
def restored(arrays, factors):
    return dequantize(*quantize(arrays[RESID], factors), factors)


def test_readers_give_float32_whichever_way_rows_are_asked_for(folder):
    store, arrays = open_store(folder), values()
    assert store.manifest["schema"] == 2
    assert store.verify() == []
    factors = int8.choose_factors(arrays[RESID][:8])  # the first chunk
    assert factors.tolist()[3] > 8
    assert np.array_equal(store.int8_factors[RESID], factors)
    want = restored(arrays, factors)
    assert store.read(RESID).dtype == np.float32
    assert np.array_equal(store.read(RESID), want)
    assert np.array_equal(store.read(RESID, [99, 3, 3, 40]), want[[99, 3, 3, 40]])
    assert np.array_equal(store.read(RESID, slice(20, 30), verify=False), want[20:30])
    assert torch.equal(store.read_tensor(RESID), torch.from_numpy(want))
    for names in (RESID, [RESID], [OTHER, RESID]):
        for rows, batch in store.sequential(names, batch_rows=9):
            found = batch if names == RESID else batch[RESID]
            assert found.dtype == torch.float32
            assert np.array_equal(found, want[rows])
        seen = []
        loader = store.shuffled(names, batch_rows=9, seed=1, special=True)
        for batch in loader:
            assert np.array_equal(batch if names == RESID else batch[RESID], want[loader.rows])
            if names == [OTHER, RESID]:
                assert np.array_equal(batch[OTHER], arrays[OTHER][loader.rows])
            seen += loader.rows.tolist()
        assert sorted(seen) == list(range(N_ROWS))


def test_a_resumed_shuffle_goes_on(folder):
    store = open_store(folder)
    whole = [batch.clone() for batch in store.shuffled(RESID, batch_rows=9, seed=1)]
    loader = store.shuffled(RESID, batch_rows=9, seed=1)
    next(loader)
    state = loader.state()
    loader.close()
    rest = list(store.shuffled(RESID, batch_rows=9, seed=1, state=state))
    assert torch.equal(torch.cat(rest), torch.cat(whole[1:]))


def test_plain_h5py_finds_how_to_rescale(folder):
    store = open_store(folder)
    for path in (folder / "index.h5", folder / "shards" / "000000.h5"):
        with h5py.File(path) as file:
            numbers = file[f"activations/{RESID}"]
            assert numbers.dtype == np.int8
            assert numbers.attrs["dtype"] == "int8"
            assert numbers.attrs["rescale"] == "float32: this * scales[row] * factors; those two name datasets"
            scales = file[numbers.attrs["scales"]]
            assert scales.attrs["of"] == f"/activations/{RESID}"
            x = numbers[:20] * scales[:20][:, None] * file[numbers.attrs["factors"]][()]
            assert x.dtype == np.float32
            assert np.array_equal(x, store.read(RESID, slice(20)))
            assert file.attrs["schema"] == 2


def test_a_missing_shard_reads_as_nan_through_the_index(folder):
    (folder / "shards" / "000001.h5").unlink()
    with h5py.File(folder / "index.h5") as file:
        numbers = file[f"activations/{RESID}"]
        x = numbers[()] * file[numbers.attrs["scales"]][()][:, None]
    assert np.isnan(x).all(1).tolist() == [24 <= row < 48 for row in range(N_ROWS)]


@pytest.mark.parametrize("batch_rows", [1, 8, 9, 100])
@pytest.mark.parametrize("stops", [[], [3], [8, 30], [24, 47, 99]])
def test_batches_and_stops_do_not_show(tmp_path, folder, all_datasets, batch_rows, stops):
    for stop in [*stops, N_ROWS]:
        write(tmp_path / "often", values(), batch_rows=batch_rows, end=stop)
    for name in ("manifest.json", "shards/000000.h5", "shards/000004.h5", "examples.h5"):
        assert (tmp_path / "often" / name).read_bytes() == (folder / name).read_bytes()
    assert all_datasets(tmp_path / "often") == all_datasets(folder)


def test_a_store_is_copied_bit_for_bit(folder, tmp_path, all_datasets):
    store = open_store(folder)
    with StoreWriter(
        tmp_path / "copy", store.hook_points, store.examples, {}, rows_per_shard=24, factors=store.int8_factors
    ) as writer:
        while writer.next_row < writer.n_rows:
            writer.append(store.read_stored(list(store.hook_points), slice(writer.next_row, writer.next_row + 13)))
    assert all_datasets(tmp_path / "copy") == all_datasets(folder)
    assert open_store(tmp_path / "copy").fingerprint() == store.fingerprint()


def test_factors_count_in_the_fingerprint(folder, tmp_path):
    store = open_store(folder)
    other = {name: factors * 2 for name, factors in store.int8_factors.items()}
    with StoreWriter(tmp_path / "o", store.hook_points, store.examples, {}, rows_per_shard=24, factors=other) as writer:
        writer.append(store.read_stored(list(store.hook_points)))
    assert np.array_equal(open_store(tmp_path / "o").read(RESID), 2 * store.read(RESID))
    assert open_store(tmp_path / "o").fingerprint() != store.fingerprint()


def test_a_shard_with_other_factors_is_damage(folder, tmp_path):
    """Numbers and scales alone are right; only the factors tell that the shard belongs elsewhere."""
    store = open_store(folder)
    other = {name: factors * 2 for name, factors in store.int8_factors.items()}
    with StoreWriter(tmp_path / "o", store.hook_points, store.examples, {}, rows_per_shard=24, factors=other) as writer:
        writer.append(store.read_stored(list(store.hook_points)))
    (folder / "shards/000001.h5").write_bytes((tmp_path / "o/shards/000001.h5").read_bytes())
    with pytest.raises(DamageError, match=r"shards/000001\.h5 .*other factors than the manifest"):
        open_store(folder).read(RESID)
    assert [damage.file for damage in open_store(folder).verify()] == ["shards/000001.h5"]


def test_shards_that_outlived_their_manifest_are_not_believed(folder, tmp_path, all_datasets):
    """Without a manifest the factors are unknown, and shards of an earlier writer may have been made with others."""
    want = all_datasets(folder)
    arrays = values()
    (folder / "manifest.json").unlink()
    write(folder, {**arrays, RESID: arrays[RESID][:, ::-1].copy()}, end=48)
    with pytest.raises(AssertionError):
        assert all_datasets(folder) == want
    store = open_store(folder)
    assert store.n_rows == 48
    assert store.int8_factors[RESID][2] > 8
    assert store.verify() == []


@pytest.mark.parametrize("place", ["/scales/" + RESID, "/activations/" + RESID])
def test_a_flipped_bit_in_numbers_or_scales_is_named(folder, place):
    path = folder / "shards" / "000001.h5"
    with h5py.File(path) as file:
        at = file[place].id.get_offset() + 9 * file[place].dtype.itemsize * int(np.prod(file[place].shape[1:]))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    store = open_store(folder)
    for read in (
        lambda: store.read(RESID),
        lambda: store.read_tensor(RESID, [33]),
        lambda: list(store.shuffled(RESID, batch_rows=9, seed=0)),
        lambda: list(store.sequential(RESID, batch_rows=9)),
    ):
        with pytest.raises(DamageError, match=rf"000001\.h5, dataset {place}, chunk 1 \(rows 32 to 39\)"):
            read()
    assert [(damage.dataset, damage.chunk) for damage in store.verify()] == [(place, 1)]


def test_rows_of_special_shapes_and_large_factors(tmp_path):
    """A row of one number, and one of many."""
    specs = {"one": ActivationSpec((), (), "int8"), "wide": ActivationSpec(("d",), (20_000,), "int8")}
    rng = np.random.default_rng(0)
    rows = {"one": rng.standard_normal(20).astype(np.float32), "wide": rng.standard_normal((20, 20_000), np.float32)}
    with StoreWriter(tmp_path / "acts", specs, build(20), {}) as writer:
        writer.append(rows)
    store = open_store(tmp_path / "acts")
    assert store.verify() == []
    np.testing.assert_allclose(store.read("one"), rows["one"], rtol=1e-4)
    np.testing.assert_allclose(store.read("wide"), rows["wide"], atol=0.08)


def test_an_empty_store(tmp_path):
    StoreWriter(tmp_path / "acts", SPECS, ExamplesBuilder().build(), {}).close()
    store = open_store(tmp_path / "acts")
    assert store.finished
    assert store.read(RESID).shape == (0, 6)
    assert store.read(RESID).dtype == np.float32
    assert list(store.shuffled(RESID, batch_rows=4, seed=0)) == []


BAD_BATCHES = [
    pytest.param(
        lambda a: {**a, RESID: a[RESID].astype(np.float64)}, "got float64; the store takes int8 with", id="f64"
    ),
    pytest.param(lambda a: {**a, RESID: a[RESID].astype(np.int8)}, "append got hook points", id="no scales"),
    pytest.param(
        lambda a: {**a, RESID: a[RESID].astype(np.int8), f"scales/{RESID}": np.ones(100, np.float32)},
        "go with the factors that they were made with; give factors",
        id="no factors",
    ),
    pytest.param(
        lambda a: {**a, f"scales/{RESID}": np.ones(100, np.float32)}, "append got hook points", id="scales of float32"
    ),
    pytest.param(
        lambda a: {**a, RESID: np.where(np.arange(100)[:, None] == 93, np.nan, a[RESID]).astype(np.float32)},
        rf"{RESID}, row 93: a value is NaN",
        id="NaN",
    ),
]


@pytest.mark.parametrize(("harm", "says"), BAD_BATCHES)
def test_a_bad_batch_is_explained_and_changes_nothing(tmp_path, harm, says):
    arrays = values()
    with StoreWriter(tmp_path / "acts", SPECS, build(), {}) as writer:
        with pytest.raises(StoreError, match=says):
            writer.append(harm(arrays))
        assert writer.next_row == 0
        writer.append(arrays)
    assert open_store(tmp_path / "acts").verify() == []


BAD_SCALES = [
    pytest.param(np.zeros(100, np.float32), "row 0: scale 0.0: must be finite and positive", id="zero"),
    pytest.param(np.where(np.arange(100) == 9, np.nan, 1).astype(np.float32), "row 9: scale nan", id="NaN"),
    pytest.param(np.ones(100), "scales are float64", id="float64"),
    pytest.param(np.ones((100, 1), np.float32), r"must be float32 \(100,\)", id="column"),
]


@pytest.mark.parametrize(("scales", "says"), BAD_SCALES)
def test_bad_scales_are_explained(tmp_path, scales, says):
    arrays = {**values(), RESID: np.zeros((N_ROWS, 6), np.int8), f"scales/{RESID}": scales}
    factors = {RESID: np.ones(6)}
    with (
        StoreWriter(tmp_path / "acts", SPECS, build(), {}, factors=factors) as writer,
        pytest.raises(StoreError, match=says),
    ):
        writer.append(arrays)


BAD_FACTORS = [
    pytest.param({}, "factors are of", id="none"),
    pytest.param({OTHER: np.ones((2, 3))}, "factors are of", id="of another"),
    pytest.param({RESID: np.ones(5)}, r"factors have shape \(5,\)", id="shape"),
    pytest.param({RESID: np.full(6, 3.0)}, "factor 3: must be a power of two", id="three"),
    pytest.param({RESID: np.full(6, 0.5)}, "factor 0.5: must be a power of two", id="half"),
    pytest.param({RESID: np.full(6, np.nan)}, "factor nan: must be a power of two", id="NaN"),
    pytest.param({RESID: np.full(6, 2.0**31)}, "must be a power of two", id="too large"),
]


@pytest.mark.parametrize(("factors", "says"), BAD_FACTORS)
def test_bad_factors_are_explained(tmp_path, factors, says):
    with pytest.raises(StoreError, match=says):
        StoreWriter(tmp_path / "acts", SPECS, build(), {}, factors=factors)
    assert not (tmp_path / "acts").exists()


def test_a_store_is_not_continued_with_other_factors(tmp_path, small_chunks):
    write(tmp_path / "acts", values(), end=30)
    with pytest.raises(StoreError, match="has other factors: leave factors out"):
        write(tmp_path / "acts", values(), factors={RESID: np.full(6, 4)})
    write(tmp_path / "acts", values())


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_batches_give_the_bound(lengths, seed, tmp_path_factory):
    n_rows = sum(lengths)
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(n_rows))
    x = np.random.default_rng(seed).standard_cauchy((n_rows, 5)).astype(np.float32)
    folder = tmp_path_factory.mktemp("acts")
    with StoreWriter(
        folder, {"h": ActivationSpec(("d",), (5,), "int8")}, builder.build(), {}, rows_per_shard=16
    ) as writer:
        for length in lengths:
            writer.append({"h": x[writer.next_row : writer.next_row + length]})
    store = open_store(folder)
    stored = store.read_stored("h")
    steps = stored["scales/h"][:, None] * store.int8_factors["h"]
    assert (np.abs(store.read("h") - x) <= steps * (0.5 + 2**-16)).all()
