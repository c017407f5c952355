"""What the tests of kernels share: which kernels can run here, the definition in numpy, and nasty inputs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.kernels.cpu.units import UNITS

RUNNABLE = [unit for unit in UNITS.values() if not unit.lacking()]
SCREENS = [f"{unit.name}:{screen}" for unit in RUNNABLE for screen in unit.screens]


def pytest_generate_tests(metafunc):
    """Give a test that takes `unit` every kernel that runs here, and `kernel` also every way to choose latents."""
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", [*SCREENS, "reference"])
    if "unit" in metafunc.fixturenames:
        metafunc.parametrize("unit", [*(unit.name for unit in RUNNABLE), "reference"])
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def all_kernels() -> list[str]:
    """Every kernel that runs here."""
    return [*SCREENS, "reference"]


@pytest.fixture(scope="session")
def families() -> list[str]:
    """Names of all kinds of problems."""
    return list(FAMILIES)


@pytest.fixture(scope="session")
def by_definition():
    """Encoder in numpy: a function of x, W, b and k."""
    return encode_by_definition


@pytest.fixture(scope="session")
def draw():
    """Problem of a family: a function of family, seed, rows, width, latents and k."""
    return problem


@pytest.fixture(scope="session")
def same_bits():
    """Assertion that an encoder's results are those of the definition."""
    return assert_same_bits


def encode_by_definition(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores as `workbench.kernels.exact` defines them, for every pair, and a stable sort."""
    rows, latents = (np.pad(t.double().numpy(), [(0, 0), (0, -t.shape[1] % 32)]) for t in (x, W))
    sums = np.zeros((len(rows), len(latents), 32))
    with np.errstate(all="ignore"):
        for c in range(0, rows.shape[1], 32):
            sums += rows[:, None, c : c + 32] * latents[None, :, c : c + 32]
        for half in (16, 8, 4, 2, 1):
            sums = sums[..., :half] + sums[..., half : 2 * half]
        scores = (sums[..., 0] + b.double().numpy()).astype(np.float32) + np.float32(0)
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def assert_same_bits(got: tuple[Tensor, Tensor], want: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    """Equal indices, and equal values bit by bit; any NaN equals any other."""
    np.testing.assert_array_equal(got[1].numpy(), want[1])
    values, wanted = (np.where(np.isnan(v), np.float32(np.nan), v) for v in (got[0].numpy(), want[0]))
    np.testing.assert_array_equal(values.view(np.uint32), wanted.view(np.uint32))


@dataclass
class Problem:
    """Arguments of an encoder."""

    x: Tensor
    W: Tensor
    b: Tensor
    k: int


def problem(family: str, seed: int, rows: int, width: int, latents: int, k: int) -> Problem:
    """Draw a problem of one of `FAMILIES`."""
    numbers = np.random.default_rng([seed, list(FAMILIES).index(family)])
    x, W = numbers.standard_normal((rows, width)), numbers.standard_normal((latents, width))
    b = 0.1 * numbers.standard_normal(latents)
    with np.errstate(all="ignore"):
        x, W, b = FAMILIES[family](numbers, x, W, b)
        tensors = [torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in (x, W, b)]
    return Problem(*tensors, k)


def some(numbers, array, share):
    """A mask of a share of an array's entries, at least one."""
    mask = numbers.random(array.shape) < share
    mask.flat[numbers.integers(mask.size)] = True
    return mask


def outlier_channels(numbers, x, W, b):
    x[:, numbers.integers(x.shape[1], size=2)] *= 1000
    return x, W, b


def outlier_entries(numbers, x, W, b):
    return np.where(some(numbers, x, 0.02), 1000 * x, x), W, b


def heavy_tails(numbers, x, W, b):
    scale = np.exp(2 * numbers.standard_normal(x.shape[1]))
    return x**3 * scale, W * scale[::-1], b


def near_ties(numbers, x, W, b):
    return x, W[:1] + 1e-6 * W, 1e-7 * b


def duplicates(numbers, x, W, b):
    copied = numbers.integers(max(1, len(W) // 8), size=len(W))
    return x, W[copied], b[copied]


def whole_numbers(numbers, x, W, b):
    return np.rint(x), np.rint(W), np.rint(b)


def cancelling(numbers, x, W, b):
    half = x.shape[1] // 2
    x[:, half : 2 * half] = -x[:, :half] + 1e-6 * x[:, half : 2 * half]
    W[:, half : 2 * half] = W[:, :half]
    return 1e4 * x, W, b * 1e-3


def huge(numbers, x, W, b):
    return x * 10.0 ** numbers.integers(-15, 37, (len(x), 1)), W * 10.0 ** numbers.integers(-15, 20, (len(W), 1)), b


def overflowing(numbers, x, W, b):
    return 1e30 * x, 1e8 * W, 1e38 * b


def subnormal(numbers, x, W, b):
    return 1e-39 * x, W * 10.0 ** numbers.integers(-8, 1, (len(W), 1)), 1e-39 * b


def tiny(numbers, x, W, b):
    return 1e-30 * x, 1e-30 * W, 0 * b


def zeros(numbers, x, W, b):
    x[some(numbers, x[:, 0], 0.5)] = 0
    W[some(numbers, W[:, 0], 0.3)] = -0.0
    return x, W, np.where(some(numbers, b, 0.5), 0, b)


def shifted(numbers, x, W, b):
    return x + 300 * numbers.standard_normal(x.shape[1]), W + 30 * numbers.standard_normal(x.shape[1]), b


def none_positive(numbers, x, W, b):
    return x, W, b - 1000


def large_biases(numbers, x, W, b):
    return x, W, b * 10.0 ** numbers.integers(-3, 8, len(b))


def broken(numbers, x, W, b):
    for array, share in ((x, 0.01), (W, 0.01), (b, 0.02)):
        array[some(numbers, array, share)] = numbers.choice([np.nan, np.inf, -np.inf, 3e38])
    return x, W, b


def half_grid(numbers, x, W, b):
    """Numbers half way between two multiples of the largest 127th: what int8 loses most on."""
    x, W = (np.clip(np.rint(30 * part), -126, 125) + 0.499 * np.sign(part) for part in (x, W))
    x[:, 0], W[:, 0] = 127, 127
    return x, W, b


def half_steps(numbers, x, W, b):
    """Numbers half way between two of bfloat16, ties and all: what it loses most on, always in the same direction."""
    x, W = (np.sign(part) * (1 + numbers.integers(0, 128, part.shape) / 128 + 2.0**-8) for part in (x, W))
    return x * 2.0 ** numbers.integers(-3, 4, (len(x), 1)), W, b


def within_a_step(numbers, x, W, b):
    """Latents that are one and the same in bfloat16, and biases that nearly make up for what tells them apart."""
    alike = np.sign(W[:1]) * (1 + numbers.integers(0, 128, W[:1].shape) / 128)
    apart = 2.0**-9 * numbers.uniform(-1, 1, W.shape) * alike
    return x, alike + apart, -(apart @ x[0]) * numbers.choice([0, 1], len(W))


def barely_normal(numbers, x, W, b):
    """Large numbers that meet zeros: what decides are numbers whose products, or they themselves, are subnormal."""
    x, W = x * 2.0 ** numbers.integers(-130, -40, (len(x), 1)), W * 2.0 ** numbers.integers(-80, -1, (len(W), 1))
    x[:, 0], W[:, 0] = 1, 0
    x[:, -1], W[:, -1] = 0, 1
    return x, W, 0 * b


def one_direction(numbers, x, W, b):
    return x[:1] * numbers.standard_normal((len(x), 1)) + 1e-4 * x, W, b


def constant(numbers, x, W, b):
    return x, W[:1].repeat(len(W), 0), b[:1].repeat(len(b))


FAMILIES = {
    "gaussian": lambda numbers, x, W, b: (x, W, b),
    **{
        function.__name__: function
        for function in (
            outlier_channels, outlier_entries, heavy_tails, near_ties, duplicates, whole_numbers, cancelling, huge,
            overflowing, subnormal, tiny, zeros, shifted, none_positive, large_biases, broken, half_grid, one_direction,
            constant, half_steps, within_a_step, barely_normal,
        )
    },
}  # fmt: skip
