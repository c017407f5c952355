"""Each architecture's loss and gradients against dense autograd, and the estimators against their definition."""

import math

import pytest
import torch

from workbench.plugins.sae import JumpReluConfig, MatryoshkaConfig, SaeConfig, TrainConfig
from workbench.plugins.sae.architecture import Moment
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.settings import L1, Settings, choose_settings
from workbench.plugins.sae.sites import Place, Site
from workbench.plugins.sae.weights import Weights

ROWS, WIDTH, LATENTS, K, AUX_K = 12, 7, 24, 4, 3
FAMILY = sorted(ARCHITECTURES)


def make_settings(architecture="topk", **changes) -> Settings:
    train = TrainConfig(aux_k=AUX_K, aux_weight=0.5)
    k = None if architecture in L1 else K
    config = SaeConfig(architecture=architecture, latents=LATENTS, k=k, train=train, **changes)
    settings = choose_settings(config, width=WIDTH, epoch_rows=1000)
    object.__setattr__(settings, "precision", "float64")
    return settings


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Sums in float64, so that two ways of summing agree to many digits."""
    monkeypatch.setattr(Settings, "dtype", property(lambda self: torch.float64))


def random_weights(architecture="topk") -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = [(LATENTS, WIDTH), (LATENTS,), (LATENTS, WIDTH), (WIDTH,)]
    common = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    names = {"jumprelu": ["log_threshold"], "gated": ["r_mag", "b_mag"]}.get(architecture, [])
    extra = {name: torch.rand(LATENTS, generator=generator, dtype=torch.float64) - 0.5 for name in names}
    return Weights(
        *(tensor.requires_grad_() for tensor in common),
        {name: tensor.requires_grad_() for name, tensor in extra.items()},
    )


def rows() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def targets() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def latents(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def losses(architecture="topk", weights=None, dead=(), variance=1.0, sparsity=0.0, y=None, **changes):
    weights = random_weights(architecture) if weights is None else weights
    moment = Moment(variance, latents(*dead), K, sparsity)
    return ARCHITECTURES[architecture].losses(
        rows(), rows() if y is None else y, weights, make_settings(architecture, **changes), moment
    )


# --- the same by [rows, latents] matrices ----------------------------------------------------------------------------
def dense_codes(architecture, weights):
    """Return activations, in the graph."""
    scores = (rows() - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    match architecture:
        case "topk":
            top = scores.topk(K, dim=1)
            return torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())
        case "batchtopk" | "matryoshka":
            lowest = scores.flatten().sort(descending=True).values[K * ROWS - 1]
            return scores.relu() * (scores >= lowest)
        case "jumprelu":
            return scores * (scores > weights.extra["log_threshold"].exp())
        case "standard":
            return scores.relu()
        case "gated":
            product = (rows() - weights.b_dec) @ weights.W_enc.T
            magnitude = (weights.extra["r_mag"].exp() * product + weights.extra["b_mag"]).relu()
            return torch.where(scores > 0, magnitude, 0.0)


def dense_error(architecture, weights, y):
    """Return the squared error that is trained on, and that of the whole reconstruction, in the graph."""
    codes = dense_codes(architecture, weights)
    squared = (y - codes @ weights.W_dec - weights.b_dec).pow(2).mean()
    if architecture == "matryoshka":
        ends = [6, 12, 24]
        parts = [(y - codes[:, :end] @ weights.W_dec[:end] - weights.b_dec).pow(2).mean() for end in ends]
        return sum(parts) / len(parts), squared
    if architecture == "gated":
        gates = ((rows() - weights.b_dec) @ weights.W_enc.T + weights.b_enc).relu()
        return squared + (y - gates @ weights.W_dec.detach() - weights.b_dec.detach()).pow(2).mean(), squared
    return squared, squared


def dense_losses(architecture, weights, variance, dead, y):
    error, shown = (each / variance for each in dense_error(architecture, weights, y))
    if not dead:
        return error, shown, torch.zeros(())
    left = y - dense_codes(architecture, weights) @ weights.W_dec - weights.b_dec
    alive = torch.ones(LATENTS, dtype=torch.bool).index_fill(0, latents(*dead), False)
    again = (rows() - weights.b_dec).detach() @ weights.W_enc.T + weights.b_enc
    top = again.masked_fill(alive, -torch.inf).topk(min(AUX_K, len(dead)), dim=1)
    codes = torch.zeros_like(again).scatter(1, top.indices, top.values.relu())
    target = left.detach()
    return error, shown, (codes @ weights.W_dec - target).pow(2).mean() / target.pow(2).mean()


GROUPS = {"matryoshka": {"matryoshka": MatryoshkaConfig((0.25, 0.25, 0.5))}}


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("dead", [[], [5], [1, 2, 3, 20], list(range(LATENTS))])
@pytest.mark.parametrize("architecture", FAMILY)
def test_losses_and_gradients_equal_the_dense_ones(architecture, dead, transcoder):
    weights, y = random_weights(architecture), targets() if transcoder else rows()
    found = losses(architecture, weights, dead, variance=2.0, y=y, **GROUPS.get(architecture, {}))
    error, shown, auxiliary = dense_losses(architecture, weights, 2.0, dead, y)
    torch.testing.assert_close(found.error, shown.detach())
    torch.testing.assert_close(found.auxiliary.double(), auxiliary.detach().double())
    leaves = {name: leaf for name, leaf in weights.named().items() if name != "log_threshold"}
    got = torch.autograd.grad(found.total, list(leaves.values()))
    want = torch.autograd.grad(error + 0.5 * auxiliary, list(leaves.values()))
    for name, ours, theirs in zip(leaves, got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("architecture", FAMILY)
def test_what_fired_and_how_many_are_counted(architecture):
    weights = random_weights(architecture)
    found, codes = losses(architecture, weights), dense_codes(architecture, weights)
    assert sorted(set(found.fired.tolist())) == (codes > 0).any(0).nonzero().squeeze(1).tolist()
    assert float(found.l0) == pytest.approx(float((codes > 0).sum(1).float().mean()))
    torch.testing.assert_close(found.left, (rows() - codes @ weights.W_dec - weights.b_dec).detach())


def test_dead_latents_learn_and_only_through_the_auxiliary_loss():
    """With no score ever reaching them, dead latents get a gradient with the auxiliary loss and none without."""
    weights = random_weights()
    with torch.no_grad():
        weights.b_enc[3] = -50.0
    for dead in ([3], []):
        (grad,) = torch.autograd.grad(losses(weights=weights, dead=dead).total, weights.W_enc)
        assert not grad[3].any()
    with torch.no_grad():
        weights.b_enc[3] = 0.0
        weights.W_enc[3] *= 1e-3  # never among the k best, yet positive somewhere
    assert torch.autograd.grad(losses(weights=weights, dead=[3]).total, weights.W_enc)[0][3].any()


# --- BatchTopK -------------------------------------------------------------------------------------------------------
def test_the_smallest_activation_of_a_batch_is_noted():
    weights = random_weights()
    codes, found = dense_codes("batchtopk", weights).detach(), losses("batchtopk", weights)
    assert float(found.smallest) == pytest.approx(float(codes[codes > 0].min()))
    assert losses("topk").smallest is None


def test_inference_uses_one_threshold_for_all_latents():
    inference = ARCHITECTURES["batchtopk"].inference(random_weights(), make_settings("batchtopk"), 0.25)
    assert inference["activation"] == "jumprelu"
    assert inference["threshold"].tolist() == [0.25] * LATENTS


# --- JumpReLU --------------------------------------------------------------------------------------------------------
BANDWIDTH = 0.8 * math.sqrt(WIDTH)


def estimates(weights, penalty, sparsity):
    """Return the threshold's gradient by the paper's estimators (equations 11 and 12), entry by entry."""
    scores = ((rows() - weights.b_dec) @ weights.W_enc.T + weights.b_enc).detach()
    threshold = weights.extra["log_threshold"].detach().exp()
    codes = scores * (scores > threshold)
    left = rows() - codes @ weights.W_dec - weights.b_dec
    by_codes = (-2 * left @ weights.W_dec.T / left.numel()).detach()
    l0 = (scores > threshold).sum(1).double()
    total = torch.zeros(LATENTS, dtype=torch.float64)
    for row in range(ROWS):
        for latent in range(LATENTS):
            if abs(float((scores[row, latent] - threshold[latent]) / BANDWIDTH)) >= 0.5:
                continue
            by_l0 = sparsity / ROWS
            if penalty == "quadratic":
                by_l0 *= 2 * (l0[row] / K - 1) / K
            by_activation = by_codes[row, latent]
            if penalty == "tanh":
                by_activation = by_activation + sparsity / ROWS * 4 * (1 - (4 * codes[row, latent]).tanh() ** 2)
                by_l0 = 0.0
            total[latent] -= (threshold[latent] * by_activation + by_l0) / BANDWIDTH
    return total * threshold  # by the logarithm


@pytest.mark.parametrize("penalty", ["quadratic", "l0", "tanh"])
def test_the_thresholds_gradient_is_the_papers_estimate(penalty):
    weights = random_weights("jumprelu")
    options = JumpReluConfig(penalty=penalty, bandwidth=0.8)
    total = losses("jumprelu", weights, sparsity=0.3, jumprelu=options).total
    (got,) = torch.autograd.grad(total, weights.extra["log_threshold"])
    torch.testing.assert_close(got, estimates(weights, penalty, 0.3))
    assert got.any()


def test_penalties_are_those_of_the_papers():
    weights = random_weights("jumprelu")
    codes = dense_codes("jumprelu", weights).detach()
    l0 = (codes > 0).sum(1).double()
    wanted = {
        "quadratic": (l0 / K - 1).pow(2).mean(),
        "l0": l0.mean(),
        "tanh": (4 * codes).tanh().sum(1).mean(),
    }
    for penalty, value in wanted.items():
        found = losses("jumprelu", weights, sparsity=0.5, jumprelu=JumpReluConfig(penalty=penalty))
        assert float(found.penalty) == pytest.approx(0.5 * float(value)), penalty
        assert found.total.item() == pytest.approx(float(found.error + found.penalty))


def test_only_the_tanh_penalty_reaches_the_encoder_through_the_window():
    """A score just below its threshold: the encoder learns of it with Anthropic's estimator, not with DeepMind's."""
    weights = random_weights("jumprelu")
    with torch.no_grad():
        weights.b_enc[:] = -50.0
        weights.W_enc[5], weights.b_enc[5] = 0, 0.9
        weights.extra["log_threshold"][5] = 0.0
    for penalty, learns in (("quadratic", False), ("tanh", True)):
        options = JumpReluConfig(penalty=penalty, bandwidth=0.8)
        total = losses("jumprelu", weights, sparsity=1.0, jumprelu=options).total
        (grad,) = torch.autograd.grad(total, weights.b_enc)
        assert bool(grad[5].any()) is learns, penalty


def test_thresholds_start_where_k_latents_are_active():
    weights, settings = random_weights(), make_settings("jumprelu")
    jumprelu = ARCHITECTURES["jumprelu"]
    weights.extra = jumprelu.extra(rows(), weights, settings)
    threshold = jumprelu.inference(weights, settings, 0.0)["threshold"]
    scores = (rows() - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    assert int((scores >= threshold * (1 - 1e-9)).sum()) == K * ROWS
    given = make_settings("jumprelu", jumprelu=JumpReluConfig(threshold=0.001))
    torch.testing.assert_close(
        jumprelu.extra(rows(), weights, given)["log_threshold"].exp(), torch.full_like(threshold, 0.001 * WIDTH**0.5)
    )
    with torch.no_grad():
        weights.extra["log_threshold"][3] = 5.0
        jumprelu.restart(weights, latents(3))
    assert 0 < float(weights.extra["log_threshold"][3] - threshold.log()[0]) < 1


# --- Standard and Gated ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", L1)
def test_the_l1_penalty_is_of_summed_activations_on_rows_of_spread_one(architecture):
    """With the weight λ: Σ (x − x̂)² + λ Σ f on rows whose distance from their mean is 1, root mean square."""
    weights, variance = random_weights(architecture), 2.0
    found = losses(architecture, weights, sparsity=0.3, variance=variance)
    penalised = dense_codes("standard", weights)  # of a gated one the scores of the gates, ReLU taken
    length = math.sqrt(WIDTH * variance)
    want = 0.3 * (penalised / length).sum(1).mean()
    assert float(found.penalty) == pytest.approx(want.item())
    squared, _ = dense_error(architecture, weights, rows())
    whole = squared * WIDTH / length**2 + 0.3 * (penalised / length).sum(1).mean()
    leaves = list(weights.named().values())
    got, wanted = torch.autograd.grad(found.total, leaves, allow_unused=True), torch.autograd.grad(whole, leaves)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", FAMILY)
def test_what_is_kept_encodes_as_in_training(architecture):
    """The dictionary of a site has the activations of a training step: a Gated one as the JumpReLU one that it is."""
    weights, settings = random_weights(architecture), make_settings(architecture)
    moment = Moment(1.0, latents(), K)
    kind = ARCHITECTURES[architecture]
    codes = kind.encode(weights.centred(rows()), weights, settings, moment)
    smallest = kind.smallest(codes)
    place = Place("here", WIDTH, 1.0)
    inference = kind.inference(weights, settings, 0.0 if smallest is None else float(smallest) * (1 - 1e-9))
    dictionary = Site((place,), (place,)).dictionary(weights, inference)
    torch.testing.assert_close(dictionary.encode_dense(rows()), dense_codes(architecture, weights).detach())
    torch.testing.assert_close(dictionary.reconstruct(rows()), (codes.decode(weights.W_dec) + weights.b_dec).detach())


def test_a_gate_that_is_shut_lets_nothing_through_and_an_open_one_its_magnitude():
    weights = random_weights("gated")
    with torch.no_grad():
        weights.W_enc[:], weights.b_enc[:] = 0, -1.0
        weights.extra["b_mag"][:] = 2.0
        weights.b_enc[3] = 1.0
    kind, settings = ARCHITECTURES["gated"], make_settings("gated")
    codes = kind.encode(weights.centred(rows()), weights, settings, Moment(1.0, latents(), K))
    assert (codes.values[:, 3] == 2.0).all()
    assert float(codes.values.detach().sum()) == 2.0 * ROWS
