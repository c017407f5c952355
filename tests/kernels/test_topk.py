"""The operators against a naive float64 computation: values, order, ties, gradients, odd sizes, broken numbers."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workbench.kernels import encoding
from workbench.kernels.choice import use
from workbench.kernels.errors import KernelError
from workbench.kernels.selection import ranked
from workbench.kernels.topk import decode_error, gathered_dot, scatter_outer, sparse_decode, topk_encode

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# rows, width, latents, k: one of everything, k = latents, odd sizes, several tiles
SIZES = [(1, 1, 1, 1), (5, 3, 7, 7), (5, 3, 7, 1), (33, 65, 129, 8), (1, 16, 4099, 3), (1030, 5, 37, 4)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def whole_numbers(*shape: int, seed: int = 0, span: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: every dtype holds their sums exactly, and scores tie all the time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-span, span + 1, shape, generator=generator).to(dtype)


def encode_naive(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort (score, -index) of every latent in plain Python order; NaN counts as minus infinity."""
    scores = x.double() @ W.double().T + b.double()
    ranks = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    indices = torch.tensor(
        [sorted(range(len(b)), key=lambda j, row=row: (-row[j], j))[:k] for row in ranks.tolist()], dtype=torch.int64
    ).reshape(len(x), k)
    return scores.gather(1, indices), indices


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "width", "latents", "k"), SIZES)
def test_encode_finds_the_largest_scores(device, rows, width, latents, k):
    x, W, b = (gaussian(*shape, seed=i) for i, shape in enumerate([(rows, width), (latents, width), (latents,)]))
    values, indices = topk_encode(x.to(device), W.to(device), b.to(device), k)
    want, where = encode_naive(x, W, b, k)
    torch.testing.assert_close(values.cpu().double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(indices.cpu(), where)
    assert (values.dtype, indices.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("latents", "k"), [(7, 7), (40, 5), (700, 3), (4099, 40)])
def test_ties_go_to_the_lowest_index(dtype, latents, k):
    x, W = whole_numbers(9, 4, dtype=dtype), whole_numbers(latents, 4, seed=1, dtype=dtype)
    b = whole_numbers(latents, seed=2, dtype=dtype)
    values, indices = topk_encode(x, W, b, k)
    want, where = encode_naive(x, W, b, k)
    assert torch.equal(indices, where)
    assert torch.equal(values.double(), want)


def test_ties_across_tiles_go_to_the_lowest_index(monkeypatch):
    monkeypatch.setattr(encoding, "TILE_LATENTS", 16)
    monkeypatch.setattr(encoding, "TILE_ROWS", 4)
    x, W, b = whole_numbers(11, 3), whole_numbers(133, 3, seed=1), whole_numbers(133, seed=2)
    for k in (1, 5, 17, 40, 133):
        assert torch.equal(encoding.topk_encode(x, W, b, k)[1], encode_naive(x, W, b, k)[1])


@pytest.mark.parametrize("span", [0, 1, 40, 10_000])
def test_ranking_is_a_stable_sort(span):
    for n, k in [(3, 1), (200, 5), (201, 5), (1000, 30), (97, 2), (65, 1)]:
        scores = whole_numbers(50, n, seed=n, span=span)
        scores[0] = -torch.inf
        scores[1, ::2] = torch.inf
        assert torch.equal(ranked(scores, k), scores.argsort(dim=1, descending=True, stable=True)[:, :k])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_ranked_in_float32_and_rounded_once(dtype):
    x, W, b = (gaussian(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(33, 65), (129, 65), (129,)]))
    values, indices = topk_encode(x, W, b, 8)
    want, where = topk_encode(x.float(), W.float(), b.float(), 8)
    assert torch.equal(indices, where)
    assert torch.equal(values, want.to(dtype))


def test_nan_ranks_last_and_is_seen_if_nothing_else_is_left():
    x = torch.tensor([[1.0], [torch.nan], [torch.inf], [-torch.inf]])
    W, b = torch.tensor([[1.0], [torch.nan], [2.0], [-1.0]]), torch.zeros(4)
    values, indices = topk_encode(x, W, b, 4)
    assert indices.tolist() == [[2, 0, 3, 1], [0, 1, 2, 3], [0, 2, 1, 3], [3, 0, 1, 2]]
    torch.testing.assert_close(values[0], torch.tensor([2.0, 1.0, -1.0, torch.nan]), equal_nan=True)
    assert values[1].isnan().all()
    torch.testing.assert_close(values[2], torch.tensor([torch.inf, torch.inf, torch.nan, -torch.inf]), equal_nan=True)
    assert not topk_encode(x[:1], W, b, 3)[0].isnan().any()  # three healthy latents: the broken one is not chosen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "latents", "k"), SIZES)
def test_linear_operators_equal_their_definition(unit, device, dtype, rows, width, latents, k):
    values, x = gaussian(rows, k, dtype=dtype), gaussian(rows, width, seed=1, dtype=dtype)
    values[0] = 0  # a row with no active latent
    W, b = gaussian(latents, width, seed=2, dtype=dtype), gaussian(width, seed=3, dtype=dtype)
    indices = torch.randint(latents, (rows, k), generator=torch.Generator().manual_seed(4))  # repeats allowed
    dense = torch.zeros(rows, latents, dtype=torch.float64).scatter_add_(1, indices, values.double())
    want = {
        "decode": dense @ W.double() + b.double(),
        "dot": torch.einsum("rw,rkw->rk", x.double(), W.double()[indices]),
        "scatter": dense.T @ x.double(),
    }
    want["left"] = x.double() - want["decode"]
    want["error"] = want["left"].pow(2).sum(1)
    values, x, W, b, indices = (t.to(device) for t in (values, x, W, b, indices))
    with use(unit):
        error, left = decode_error(values, indices, W, b, x)
        got = {
            "decode": sparse_decode(values, indices, W, b),
            "dot": gathered_dot(x, indices, W),
            "scatter": scatter_outer(values, indices, x, latents),
            "left": left,
            "error": error,
        }
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        scale = float(want[name].abs().max())
        torch.testing.assert_close(tensor.cpu().double(), want[name], rtol=0, atol=TOLERANCE[dtype] * scale, msg=name)


Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, Tensor], Tensor]


def dense_step(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, target: Tensor) -> Tensor:
    """Square errors of a TopK autoencoder with [rows, latents] matrices everywhere."""
    scores = x @ W_enc.T + b_enc
    top = scores.topk(k, dim=1)
    codes = torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())
    return (codes @ W_dec + b_dec - target).pow(2).sum(1)


def sparse_step(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, target: Tensor
) -> Tensor:
    values, indices = topk_encode(x, W_enc, b_enc, k)
    return (sparse_decode(values.relu(), indices, W_dec, b_dec) - target).pow(2).sum(1)


def fused_step(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, target: Tensor) -> Tensor:
    values, indices = topk_encode(x, W_enc, b_enc, k)
    return decode_error(values.relu(), indices, W_dec, b_dec, target)[0]


@pytest.mark.parametrize("step", [sparse_step, fused_step])
@pytest.mark.parametrize(
    ("latents", "k", "bias"),
    [
        pytest.param(31, 4, 0.0, id="plain"),
        pytest.param(31, 31, 0.0, id="k is all"),
        pytest.param(31, 1, 0.0, id="k is one"),
        pytest.param(31, 20, -2.0, id="fewer than k positive"),
        pytest.param(31, 4, -1e3, id="none positive"),
    ],
)
def test_gradients_equal_dense_autograd(step, latents, k, bias):
    shapes = [(12, 9), (latents, 9), (latents,), (latents, 9), (9,)]
    inputs = [gaussian(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]
    inputs[2] = inputs[2] + bias
    target = gaussian(12, 9, seed=9, dtype=torch.float64)
    grads = []
    for way in (dense_step, step):
        leaves = [t.clone().requires_grad_() for t in (*inputs, target)]
        way(*leaves[:5], k, leaves[5]).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for name, want, got in zip(("x", "W_enc", "b_enc", "W_dec", "b_dec", "target"), *grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12, msg=name)


def test_first_and_second_derivatives_numerically():
    x, W, b, v = (
        gaussian(*s, seed=i, dtype=torch.float64).requires_grad_() for i, s in enumerate([(3, 4), (6, 4), (6,), (3, 2)])
    )
    c = gaussian(4, seed=4, dtype=torch.float64).requires_grad_()
    indices = torch.tensor([[0, 5], [2, 2], [4, 1]])
    for function, inputs in [
        (lambda x, W, b: topk_encode(x, W, b, 2)[0], (x, W, b)),
        (lambda v, W: sparse_decode(v, indices, W), (v, W)),
        (lambda x, W: gathered_dot(x, indices, W), (x, W)),
        (lambda v, x: scatter_outer(v, indices, x, 6), (v, x)),
        (lambda v, W, c, x: decode_error(v, indices, W, c, x)[0], (v, W, c, x)),
    ]:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_only_wanted_gradients_are_computed():
    x, W, b = gaussian(4, 3), gaussian(5, 3, seed=1), gaussian(5, seed=2).requires_grad_()
    topk_encode(x, W, b, 2)[0].sum().backward()
    assert (x.grad, W.grad) == (None, None)
    assert int(b.grad.sum()) == 8


def test_an_empty_batch_gives_empty_results_and_zero_gradients():
    x, W, b = torch.empty(0, 3), gaussian(5, 3).requires_grad_(), gaussian(5).requires_grad_()
    values, indices = topk_encode(x, W, b, 2)
    assert (values.shape, indices.shape) == ((0, 2), (0, 2))
    sparse_decode(values, indices, W, torch.zeros(3)).sum().backward()
    assert torch.equal(W.grad, torch.zeros(5, 3))
    assert torch.equal(b.grad, torch.zeros(5))


def test_inputs_need_not_be_contiguous():
    x, W, b = gaussian(6, 10).T, gaussian(6, 40, seed=1).T, gaussian(80, seed=2)[::2]
    got, want = topk_encode(x, W, b, 3), topk_encode(x.contiguous(), W.contiguous(), b.contiguous(), 3)
    assert torch.equal(got[1], want[1])
    values, indices = torch.cat([got[0]] * 2, dim=1)[:, ::2], torch.cat([got[1]] * 2, dim=1)[:, ::2]
    for function, inputs in [(sparse_decode, (values, indices, W)), (gathered_dot, (x, indices, W))]:
        packed = [tensor.contiguous() for tensor in inputs]
        torch.testing.assert_close(function(*inputs), function(*packed), rtol=1e-5, atol=1e-5)
    packed = [tensor.contiguous() for tensor in (values, indices, x)]
    torch.testing.assert_close(scatter_outer(values, indices, x, 40), scatter_outer(*packed, 40), rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits():
    values, x = gaussian(300, 8), gaussian(300, 16, seed=1)
    indices = torch.randint(20, (300, 8), generator=torch.Generator().manual_seed(2))
    first = scatter_outer(values, indices, x, 20)
    assert all(torch.equal(first, scatter_outer(values, indices, x, 20)) for _ in range(5))


@pytest.mark.slow
def test_no_matrix_of_rows_by_latents_is_ever_held():
    """Peak memory of a step whose [rows, latents] scores would take 400 MB, seen from outside."""
    script = """
import resource, torch
from workbench.kernels.topk import sparse_decode, topk_encode
torch.set_num_threads(1)
rows, width, latents = 4096, 16, 24576
x, W, b, D = torch.randn(rows, width), torch.randn(latents, width), torch.zeros(latents), torch.randn(latents, width)
leaves = [t.requires_grad_() for t in (x, W, b, D)]
def step(rows):
    values, indices = topk_encode(leaves[0][:rows], *leaves[1:3], 8)
    sparse_decode(values.relu(), indices, leaves[3]).pow(2).sum().backward()
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(rows)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150  # MB; a tile of scores is 16 MB


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_index_that_names_no_latent_is_refused(bad):
    values, x, W = torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(5, 3)
    indices = torch.zeros(2, 4, dtype=torch.int64)
    indices[1, 2] = bad
    with use("generic"):
        for call in (
            lambda: sparse_decode(values, indices, W),
            lambda: gathered_dot(x, indices, W),
            lambda: scatter_outer(values, indices, x, 5),
            lambda: decode_error(values, indices, W, x[0], x),
        ):
            with pytest.raises(KernelError, match=rf"indices\[1, 2\] is {bad}; there are latents 0 to 4"):
                call()


x, W, b, i = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(5), torch.zeros(2, 4, dtype=torch.int64)
BAD_INPUT = [
    pytest.param(lambda: topk_encode(x, W, b, 0), "k=0 must be between 1 and 5", id="k of zero"),
    pytest.param(lambda: topk_encode(x, W, b, 6), "k=6 must be between 1 and 5", id="k above latents"),
    pytest.param(lambda: topk_encode(x[0], W, b, 1), "x has shape (3,), must have 2 axes", id="axes"),
    pytest.param(lambda: topk_encode(x[:, :2], W, b, 1), "width differs: x is (2, 2)", id="width"),
    pytest.param(lambda: topk_encode(x, W, b[:4], 1), "latents differs: W_enc is (5, 3)", id="bias"),
    pytest.param(lambda: topk_encode(x, W.half(), b, 1), "W_enc is torch.float16, but x is torch.float32", id="dtype"),
    pytest.param(lambda: topk_encode(x.int(), W, b, 1), "x is torch.int32; takes float16", id="integers"),
    pytest.param(lambda: sparse_decode(torch.zeros(2, 3), i, W), "does not fit values (2, 3)", id="indices"),
    pytest.param(lambda: sparse_decode(torch.zeros(2, 4), i.int(), W), "must be int64", id="index dtype"),
    pytest.param(lambda: sparse_decode(torch.zeros(2, 4), i, W, b), "width differs", id="decoder bias"),
    pytest.param(lambda: decode_error(torch.zeros(2, 4), i, W, b, x), "width differs", id="bias of the error"),
    pytest.param(lambda: decode_error(torch.zeros(2, 4), i, W, b[:3], x[:1]), "rows differs", id="target"),
    pytest.param(lambda: gathered_dot(x[:1], i, W), "does not fit x (1, 3)", id="rows"),
    pytest.param(lambda: scatter_outer(torch.zeros(2, 4), i, x[:1], 5), "rows differs", id="rows of x"),
]


@pytest.mark.parametrize(("call", "says"), BAD_INPUT)
def test_bad_input_is_explained(call, says):
    with pytest.raises(KernelError) as error:
        call()
    assert says in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_operators_keep_the_rules_of_torch_library(device):
    x, W, b = (gaussian(*s, device=device).requires_grad_() for s in [(5, 4), (9, 4), (9,)])
    values = gaussian(5, 3, device=device).requires_grad_()
    indices = torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(0)).to(device)
    ops = torch.ops.workbench
    for op, args in [
        (ops.topk_encode, (x, W, b, 3)),
        (ops.sparse_decode, (values, indices, W)),
        (ops.gathered_dot, (x, indices, W)),
        (ops.scatter_outer, (values, indices, x, 9)),
        (ops.decode_error, (values, indices, W, x[0].detach().requires_grad_(), x)),
    ]:
        torch.library.opcheck(op.default, args)


@pytest.mark.slow
@pytest.mark.parametrize("way", [sparse_step, fused_step])
def test_a_compiled_step_gives_the_same_gradients(way):
    inputs = [gaussian(*s, seed=i) for i, s in enumerate([(12, 9), (31, 9), (31,), (31, 9), (9,)])]
    compiled = torch.compile(way, backend="aot_eager", fullgraph=True)
    grads = []
    for step, rows in itertools.product((way, compiled), (12, 7)):
        leaves = [
            t[:rows].clone().requires_grad_() if i == 0 else t.clone().requires_grad_() for i, t in enumerate(inputs)
        ]
        step(*leaves, 4, inputs[0][:rows]).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for want, got in [(grads[0], grads[2]), (grads[1], grads[3])]:
        for a, b in zip(want, got, strict=True):
            assert torch.equal(a, b)
