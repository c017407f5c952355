"""The CUDA encoder gives the result of exact scores, bit for bit, on ordinary and on hostile data."""

import pytest
import torch
from torch import Tensor

from workbench.kernels.cuda import encode

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SUMS = 32


def exact_scores(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Scores as they are defined: 32 interleaved float64 sums, folded in halves, rounded to float32 once."""
    steps = max(1, -(-x.shape[1] // SUMS))
    padded = torch.zeros(x.shape[0], W.shape[0], steps * SUMS, dtype=torch.float64)
    padded[:, :, : x.shape[1]] = x.double()[:, None] * W.double()[None]
    sums = torch.zeros(x.shape[0], W.shape[0], SUMS, dtype=torch.float64)
    for step in padded.split(SUMS, dim=2):
        sums += step
    while sums.shape[2] > 1:
        half = sums.shape[2] // 2
        sums = sums[:, :, :half] + sums[:, :, half:]
    return (sums[:, :, 0] + b.double()).float() + 0.0


def best(scores: Tensor, k: int) -> Tensor:
    ranks = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return ranks.argsort(dim=1, descending=True, stable=True)[:, :k]


def assert_exact(device, x: Tensor, W: Tensor, b: Tensor, k: int) -> None:
    values, indices = device.call(encode.topk_encode, x, W, b, k)
    scores = exact_scores(x, W, b)
    want = best(scores, k)
    assert torch.equal(indices, want)
    chosen = scores.gather(1, want).to(x.dtype)
    assert torch.equal(values.isnan(), chosen.isnan())
    bits = torch.int32 if x.dtype == torch.float32 else torch.int16
    assert torch.equal(values[~values.isnan()].view(bits), chosen[~chosen.isnan()].view(bits))  # -0 is not 0


def stopped_rows(device) -> int:
    """How many rows the screen of the last call gave up."""
    (arguments,) = (a for kernel, a in device.arguments.items() if kernel.startswith("encode_select.encode_exact"))
    return int(arguments[3].count_nonzero())


@pytest.fixture(autouse=True)
def _screen_small_problems(monkeypatch):
    monkeypatch.setattr(encode, "FEWEST_LATENTS", 1)


# --- data: x [rows, width], W [latents, width], b [latents], all float64 ----------------------------------------------
def gaussian(g, rows, width, latents):
    return normal(g, rows, width), normal(g, latents, width), normal(g, latents)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def near_ties(g, rows, width, latents):
    x, W, _ = gaussian(g, rows, width, latents)
    return x, W[:1] + 1e-6 * W, torch.zeros(latents, dtype=torch.float64)


def rounding_in_step(g, rows, width, latents):
    """What 16 bits leave out points the same way everywhere: errors as large as Cauchy and Schwarz allow."""
    x = 1 + 2**-12 * torch.rand(rows, 1, generator=g, dtype=torch.float64).expand(rows, width)
    W = 1 + 2**-12 * torch.rand(latents, 1, generator=g, dtype=torch.float64).expand(latents, width)
    return x * 2.0 ** torch.randint(-9, 9, (rows, 1), generator=g), W, torch.zeros(latents, dtype=torch.float64)


def many_scales(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    spread = [10.0 ** torch.randint(-7, 8, (n, 1), generator=g).double() for n in (rows, latents)]
    return x * spread[0], W * spread[1], b


def outlier_channels(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    x[:, :: max(1, width // 2)] *= 1000
    return x, W, b


def cancelling(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    x[:, 1::2] = x[:, : 2 * (width // 2) : 2]
    W[:, 1::2] = -W[:, : 2 * (width // 2) : 2] * (1 + 1e-4 * W[:, : 2 * (width // 2) : 2])
    return x, W, 1e-3 * b


def whole_numbers(g, rows, width, latents):
    x, W, b = (torch.randint(-2, 3, s, generator=g).double() for s in ((rows, width), (latents, width), (latents,)))
    return x, W, b


def zeros_among_them(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    x[::2] = 0
    W[::3] = 0
    return x, W, b * (torch.arange(latents) % 5 == 0)


def twins(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    return x, W[torch.arange(latents) % max(1, latents // 8)], torch.zeros_like(b)


def all_alike(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    return x, W[:1].expand_as(W), torch.full_like(b, 0.1)


def large_biases(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    return x, W, 1e4 + 1e-3 * b


def tiny(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    return x * 1e-40, W, b * 1e-40


def huge(g, rows, width, latents):
    x, W, b = gaussian(g, rows, width, latents)
    return x * 1e30, W * 1e7, b


def broken(g, rows, width, latents):
    """NaN and infinities in every place."""
    x, W, b = gaussian(g, rows, width, latents)
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    x[::3, 0] = poison[torch.randint(3, x[::3, 0].shape, generator=g)]
    W[::17, -1] = poison[torch.randint(3, W[::17, -1].shape, generator=g)]
    b[::13] = poison[torch.randint(3, b[::13].shape, generator=g)]
    return x, W, b


KINDS = [gaussian, near_ties, rounding_in_step, many_scales, outlier_channels, cancelling, whole_numbers]
KINDS += [zeros_among_them, twins, all_alike, large_biases, tiny, huge, broken]


def draw_case(
    kind, dtype: torch.dtype, seed: int, *, rows: int, width: int, latents: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Tensors of a kind in random sizes, and a k."""
    g = torch.Generator().manual_seed(seed)
    rows, width, latents = (int(torch.randint(1, n + 1, (), generator=g)) for n in (rows, width, latents))
    k = int(torch.randint(1, min(latents, 40) + 1, (), generator=g))
    x, W, b = (t.to(dtype) for t in kind(g, rows, width, latents))
    return x, W, b, k


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_exact_scores(device, kind, dtype):
    assert_exact(device, *draw_case(kind, dtype, seed=device.seed, rows=12, width=50, latents=600))


@pytest.mark.shim
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_more_than_ten_thousand_rows_of_every_kind(new_device, kind, part):
    """14 kinds x 8 parts x 8 cases of some 13 rows each."""
    for i in range(8):
        seed = 1_000_003 * part + 101 * i + 7
        case = draw_case(kind, DTYPES[(part + i) % 3], seed, rows=25, width=40, latents=400)
        assert_exact(new_device(seed), *case)


@pytest.mark.parametrize(
    "kind", [gaussian, outlier_channels, cancelling, whole_numbers, zeros_among_them, large_biases]
)
def test_the_screen_decides_by_itself_on_data_that_it_is_made_for(device, kind):
    x, W, b = (t.float() for t in kind(torch.Generator().manual_seed(1), 8, 48, 1500))
    assert_exact(device, x, W, b, 8)
    assert stopped_rows(device) == 0


@pytest.mark.parametrize(
    ("dtype", "rows", "width", "latents", "k"),
    [
        pytest.param(torch.float32, 140, 72, 1300, 9, id="several tiles each way, and splits"),
        pytest.param(torch.bfloat16, 65, 200, 600, 40, id="more steps than stages"),
        pytest.param(torch.float16, 66, 9, 513, 256, id="the largest k that is screened, unaligned rows"),
    ],
)
def test_large_tiles(device, dtype, rows, width, latents, k):
    x, W, b = (t.to(dtype) for t in gaussian(torch.Generator().manual_seed(device.seed), rows, width, latents))
    assert_exact(device, x, W, b, k)
    assert stopped_rows(device) == 0
    assert any("screen_large" in kernel for kernel in device.launched)


def test_several_passes_over_rows_share_the_latents(device, monkeypatch):
    monkeypatch.setattr(encode, "ROWS_AT_ONCE", 16)
    x, W, b = (t.float() for t in gaussian(torch.Generator().manual_seed(2), 37, 24, 200))
    assert_exact(device, x, W, b, 5)
    assert sum("prepare" in kernel for kernel in device.launched) == 1 + 3


@pytest.mark.parametrize("kind", [all_alike, near_ties])
def test_a_row_with_more_candidates_than_its_list_holds_is_scored_exactly(device, kind):
    x, W, b = (t.float() for t in kind(torch.Generator().manual_seed(3), 3, 8, 2600))
    assert_exact(device, x, W, b, 5)
    assert stopped_rows(device) == 3


@pytest.mark.parametrize("kind", [gaussian, twins, broken])
@pytest.mark.parametrize(
    ("latents", "k", "way"),
    [(300, 257, "exact"), (1100, 1024, "exact"), (1100, 1025, "scores"), (1030, 1030, "scores"), (1, 1, "exact")],
)
def test_other_k_are_served_without_the_screen(device, kind, latents, k, way):
    x, W, b = (t.float() for t in kind(torch.Generator().manual_seed(k), 3, 10, latents))
    assert_exact(device, x, W, b, k)
    assert latents == 1 or {name.split("encode_")[2] for name in device.launched} == {f"{way}_f32"}


def test_a_wide_enough_batch_of_scores_is_sorted_in_parts(device, monkeypatch):
    monkeypatch.setattr(encode, "SCORES_AT_ONCE", 2500)
    x, W, b = (t.float() for t in gaussian(torch.Generator().manual_seed(5), 5, 12, 1200))
    assert_exact(device, x, W, b, 1100)
    assert len(device.launched) == 3


@pytest.mark.parametrize(("rows", "width", "latents", "k"), [(0, 4, 9, 3), (3, 0, 9, 3), (1, 1, 1, 1)])
def test_empty_and_single_sizes(device, rows, width, latents, k):
    x, W, b = (t.float() for t in gaussian(torch.Generator().manual_seed(6), rows, width, latents))
    assert_exact(device, x, W, b, k)


def test_inputs_need_not_be_contiguous(device):
    x, W, b = (t.float() for t in gaussian(torch.Generator().manual_seed(7), 6, 20, 300))
    want = device.call(encode.topk_encode, x, W, b, 4)
    doubled = torch.stack([b, b], dim=1)[:, 0]
    got = device.call(encode.topk_encode, x.T.contiguous().T, W.T.contiguous().T, doubled, 4)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# --- the bound --------------------------------------------------------------------------------------------------------
def errors_and_bounds(device) -> tuple[Tensor, Tensor]:
    """Of each pair in the lists of the last call: |exact score - screen's score|, and e as encode.cuh defines it."""
    (screen,) = (a for kernel, a in device.arguments.items() if kernel.startswith("encode_screen."))
    (select,) = (a for kernel, a in device.arguments.items() if kernel.startswith("encode_select.encode_select"))
    x, W, bias = (tensor.cpu() for tensor in select[:3])
    facts_x, facts_W = screen[2].cpu().double(), screen[3].cpu().double()
    lists, counts = screen[6].cpu(), screen[7].cpu()
    splits, sigma = screen[-2].value, screen[-1].value
    lists = lists.view(-1, encode.CAPACITY)
    kept = torch.arange(encode.CAPACITY) < counts[:, None]
    row = (torch.arange(len(lists)) // splits)[:, None].expand_as(lists)[kept]
    score, latent = lists[kept].view(torch.float32).view(-1, 2)[:, 0], lists[kept].view(torch.int32).view(-1, 2)[:, 1]
    _, norm_x, residual_x, _ = facts_x[row].T
    _, norm_W, residual_W, _ = facts_W[latent.long()].T
    e = (residual_x + sigma * norm_x) * norm_W + norm_x * residual_W + 2**-21 * bias[latent.long()].double().abs()
    exact = exact_scores(x, W, bias)[row, latent.long()]
    return (exact.double() - score.double()).abs(), e


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [gaussian, near_ties, rounding_in_step, many_scales, cancelling, large_biases])
def test_no_score_is_further_off_than_the_bound_says(device, kind, dtype):
    x, W, b = (t.to(dtype) for t in kind(torch.Generator().manual_seed(8), 10, 130, 500))
    device.call(encode.topk_encode, x, W, b, 200)
    errors, bounds = errors_and_bounds(device)
    judged = bounds.isfinite()
    assert judged.count_nonzero() >= 1900
    assert (errors <= bounds)[judged].all()


def test_the_bound_is_nearly_reached_where_all_residuals_point_the_same_way(device):
    x, W, b = (t.float() for t in rounding_in_step(torch.Generator().manual_seed(9), 10, 130, 500))
    device.call(encode.topk_encode, x, W, b, 200)
    errors, bounds = errors_and_bounds(device)
    assert float((errors / bounds).max()) > 0.4


def test_with_a_bound_of_zero_the_result_is_wrong(new_device, monkeypatch):
    """The control: what the bound protects from does happen."""
    device = new_device(0)
    start = device.start

    def without_bound(kernel, grid, block, *arguments, shared_bytes):
        facts = [a for a in arguments if isinstance(a, Tensor) and a.dtype == torch.float32 and a.shape[1:] == (4,)]
        for tensor in facts:
            tensor[:, 2] = 0
        if kernel.startswith(("encode_screen", "encode_select.encode_select")):
            arguments[-1].value = 0.0
        start(kernel, grid, block, *arguments, shared_bytes=shared_bytes)

    monkeypatch.setattr(device, "start", without_bound)
    monkeypatch.setattr(encode, "MOST_SPLITS", 1)  # lists of several splits hold more than k together
    x, W, b = (t.float() for t in gaussian(torch.Generator().manual_seed(10), 10, 40, 900))
    W = W[:1] + 0.01 * W
    with pytest.raises(AssertionError):
        assert_exact(device, x, W, b, 200)
    assert stopped_rows(device) == 0


# --- how the work is cut ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row_tiles", "latent_tiles", "processors", "splits"),
    [(64, 512, 132, 2), (64, 512, 108, 5), (1, 512, 132, 16), (1, 3, 132, 3), (132, 512, 132, 1), (1, 1, 1, 1)],
)
def test_splits_fill_the_processors(row_tiles, latent_tiles, processors, splits):
    assert encode.split_count(row_tiles, latent_tiles, processors) == splits
