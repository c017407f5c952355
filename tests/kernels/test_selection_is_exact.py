"""Every kernel returns the latents and the bits of one computation, whatever the numbers are."""

import itertools

import numpy as np
import pytest
import torch

from workbench.kernels.choice import in_use, use
from workbench.kernels.cpu import kernels
from workbench.kernels.cpu.units import UNITS
from workbench.kernels.topk import topk_encode

# rows, width, latents, k: one of everything, k = latents, odd sizes, no rows, several chunks, panels and blocks
SIZES = [(1, 1, 1, 1), (3, 5, 7, 7), (0, 4, 9, 2), (7, 33, 65, 8), (13, 65, 530, 3), (5, 300, 1100, 40)]


@pytest.mark.parametrize(("rows", "width", "latents", "k"), SIZES)
def test_each_kernel_gives_the_bits_of_the_definition(kernel, draw, by_definition, same_bits, rows, width, latents, k):
    for family in ("gaussian", "whole_numbers"):
        task = draw(family, 0, rows, width, latents, k)
        with use(kernel):
            same_bits(topk_encode(task.x, task.W, task.b, task.k), by_definition(task.x, task.W, task.b, task.k))


def test_nasty_numbers_do_not_mislead_any_kernel(family, all_kernels, draw, by_definition, same_bits):
    for seed, (rows, width, latents, k) in enumerate(
        [(9, 40, 200, 6), (5, 1, 40, 3), (4, 70, 90, 90), (6, 64, 300, 1)]
    ):
        task = draw(family, seed, rows, width, latents, k)
        want = by_definition(task.x, task.W, task.b, task.k)
        for kernel in all_kernels:
            with use(kernel):
                same_bits(topk_encode(task.x, task.W, task.b, task.k), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_scored_in_float32_and_rounded_once(kernel, dtype, draw, by_definition):
    for family in ("gaussian", "whole_numbers", "shifted", "broken"):
        task = draw(family, 3, 20, 50, 300, 7)
        x, W, b = (t.to(dtype) for t in (task.x, task.W, task.b))
        with use(kernel):
            values, indices = topk_encode(x, W, b, 7)
        want, where = by_definition(x, W, b, 7)
        np.testing.assert_array_equal(indices, where)
        assert values.dtype == dtype
        torch.testing.assert_close(values, torch.from_numpy(want).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_no_bit(threads, kernel, draw, by_definition, same_bits):
    before = torch.get_num_threads()
    task = draw("heavy_tails", 1, 37, 70, 700, 9)
    torch.set_num_threads(threads)
    try:
        with use(kernel):
            got = topk_encode(task.x, task.W, task.b, task.k)
    finally:
        torch.set_num_threads(before)
    same_bits(got, by_definition(task.x, task.W, task.b, task.k))


def test_flushing_small_numbers_to_zero_changes_nothing_and_stays_as_it_was(kernel, draw, by_definition, same_bits):
    task = draw("subnormal", 0, 6, 20, 80, 4)
    want = by_definition(task.x, task.W, task.b, task.k)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        if kernel != "reference":  # whose float64 products see the subnormal inputs as zero
            with use(kernel):
                same_bits(topk_encode(task.x, task.W, task.b, task.k), want)
        assert float(torch.tensor(1e-39) * 1) == 0
    finally:
        torch.set_flush_denormal(False)


def test_batches_are_cut_and_joined(kernel, draw, same_bits):
    """More rows than are encoded at once: the parts must be those of a smaller batch."""
    task = draw("gaussian", 5, 16384 + 77, 3, 40, 2)
    with use(kernel):
        values, indices = topk_encode(task.x, task.W, task.b, 2)
        tail = topk_encode(task.x[-100:].clone(), task.W, task.b, 2)
    same_bits(tail, (values[-100:].numpy(), indices[-100:].numpy()))


def test_the_chosen_screen_really_ran(draw):
    task = draw("gaussian", 0, 60, 64, 1500, 5)
    candidates = {}
    for screen, rescored in {"exact": 0, "float32": 60 * 5, "int8": 60 * 5, "bfloat16": 60 * 5}.items():
        with use("auto") as best:
            if best.library is None or screen not in best.library.unit.screens:
                continue
            kernels.topk_encode(best.library, task.x, task.W, task.b, 5, screen)
            counts = best.library.counts
        assert counts["first screen"] == kernels.SCREENS[screen]
        assert counts["computed exactly"] == (60 if screen == "exact" else 0)
        assert rescored <= counts["rescored"] < 60 * 40
        assert (counts["candidates"] > 0) == (screen in ("int8", "bfloat16"))
        candidates[screen] = counts["candidates"]
    if "bfloat16" in candidates:
        assert candidates["bfloat16"] - 60 * 5 < (candidates["int8"] - 60 * 5) / 2


@pytest.mark.parametrize("screen", ["int8", "bfloat16"])
def test_rows_that_a_screen_cannot_settle_go_to_the_next_one(screen, draw, by_definition, same_bits):
    with use("auto") as best:
        if best.library is None or screen not in best.library.unit.screens:
            pytest.skip(f"no unit with a screen in {screen} runs here (issue 5)")
    task = draw("gaussian", 0, 40, 64, 3000, 5)
    task.x[::4] *= 1e-30  # out of the range that is screened
    task.x[1] = 0
    task.W[5:2500] = task.W[5]  # a tie of 2495
    with use(f"{best.library.unit.name}:{screen}") as choice:
        got = topk_encode(task.x, task.W, task.b * 0, 5)
        assert choice.library.counts["left to float32"] >= 9
    same_bits(got, by_definition(task.x, task.W, task.b * 0, 5))


def test_near_the_line_the_spread_of_scores_decides_between_int8_and_bfloat16(draw, same_bits):
    if UNITS["avx512_bf16"].lacking():
        pytest.skip("this processor has no products of bfloat16 (issue 5)")
    assert in_use(size=(400, 1344, 1024, 8))["topk_encode"] == "avx512_bf16:bfloat16"
    task = draw("gaussian", 0, 400, 1344, 1024, 8)
    sizes = torch.exp(torch.randn(1344, generator=torch.Generator().manual_seed(0)))
    for scale, screen in ((1, "bfloat16"), (sizes, "int8")):  # channels that are large on both sides spread scores
        x, W = task.x * scale, task.W * scale
        with use("avx512_bf16") as choice:
            got = topk_encode(x, W, task.b, 8)
            assert choice.library.counts["first screen"] == kernels.SCREENS[screen]
        with use("avx512_bf16:float32"):
            want = topk_encode(x, W, task.b, 8)
        same_bits(got, [part.numpy() for part in want])


def test_rows_that_are_too_hard_for_int8_are_screened_in_bfloat16(draw, same_bits):
    """Rows lie in directions in which latents have next to nothing, so that norms tell little of scores."""
    if UNITS["avx512_bf16"].lacking():
        pytest.skip("this processor has no products of bfloat16 (issue 5)")
    task = draw("gaussian", 0, 400, 256, 8192, 4)
    task.W[:, :128] *= 0.06
    task.x[:, 128:] *= 0.05
    turned = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0))).Q
    task.x, task.W = task.x @ turned, task.W @ turned
    assert in_use(size=(400, 256, 8192, 4))["topk_encode"] == "avx512_bf16:int8"
    found, left = {}, {}
    for screen in ("", ":int8", ":exact"):
        with use(f"avx512_bf16{screen}") as choice:
            found[screen] = topk_encode(task.x, task.W, task.b * 0, 4)
            left[screen] = choice.library.counts["left to float32"]
    assert left[":int8"] == 400
    assert left[""] < 100
    for screen in ("", ":int8"):
        same_bits(found[screen], [part.numpy() for part in found[":exact"]])


@pytest.mark.parametrize(
    "kind", ["gaussian", "outlier_channels", "heavy_tails", "cancelling", "large_biases", "shifted"]
)
def test_no_latent_is_better_in_float64_than_a_selected_one(kernel, kind, draw):
    """By another computation: selected scores are right to the last digit but one, and nothing larger is left out."""
    task = draw(kind, 7, 12, 90, 600, 11)
    with use(kernel):
        values, indices = topk_encode(task.x, task.W, task.b, 11)
    scores = task.x.double() @ task.W.double().T + task.b.double()
    chosen = scores.gather(1, indices)
    lost = 2e-15 * (task.x.double().norm(dim=1, keepdim=True) * task.W.double().norm(dim=1).max() + 1)
    assert ((values.double() - chosen).abs() <= 2.0**-23 * chosen.abs() + lost).all()
    left = scores.scatter(1, indices, -torch.inf).amax(1)
    worst = chosen.amin(1)
    assert (left <= worst + 2.0**-23 * worst.abs() + lost.squeeze(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "latents", "k"), [(420, 2100, 2048, 8), (401, 1027, 1500, 64)])
def test_batches_that_a_low_precision_takes(family, draw, same_bits, rows, width, latents, k):
    """Many rows, chunks of latents and blocks of the width, as `auto` and each screen of the best unit take them."""
    with use("auto") as best:
        if best.library is None:
            pytest.skip("no compiled kernel runs here")
        unit = best.library.unit
    task = draw(family, 2, rows, width, latents, k)
    with use(f"{unit.name}:exact"):
        want = [part.numpy() for part in topk_encode(task.x, task.W, task.b, k)]
    for screen in ("auto", *unit.screens[:-1]):
        with use(f"{unit.name}:{screen}"):
            same_bits(topk_encode(task.x, task.W, task.b, k), want)


@pytest.mark.slow
def test_ten_thousand_problems(all_kernels, families, draw, by_definition, same_bits):
    numbers = np.random.default_rng(20)
    turn = itertools.cycle(families)
    for seed in range(10_000):
        rows, width = int(numbers.integers(1, 8)), int(numbers.choice([1, 2, 7, 16, 33, 64, 70]))
        latents = int(numbers.choice([1, 3, 17, 64, 200, 300]))
        k = int(numbers.choice([1, min(4, latents), max(1, latents // 3), latents]))
        task = draw(next(turn), seed, rows, width, latents, k)
        want = by_definition(task.x, task.W, task.b, k)
        for kernel in all_kernels:
            if kernel == "reference" and seed % 10:
                continue  # many times slower
            with use(kernel):
                same_bits(topk_encode(task.x, task.W, task.b, k), want)
