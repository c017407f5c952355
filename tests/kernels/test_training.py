"""Factored gradients and Adam on them, against autograd and `torch.optim.Adam` on dense ones."""

import pytest
import torch
from torch import Tensor

from workbench.kernels import topk
from workbench.kernels.choice import use
from workbench.kernels.errors import KernelError
from workbench.kernels.training import FactoredAdam, LatentMatrix

ROWS, WIDTH, LATENTS, K = 30, 37, 50, 6
LR, EPS = 0.01, 1e-8
DEAD = torch.arange(5, 30, 3)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(unit_rows: bool = False) -> dict[str, Tensor]:
    decoder = gaussian(LATENTS, WIDTH, seed=3)
    if unit_rows:
        decoder /= decoder.norm(dim=1, keepdim=True)
    return {
        "W_enc": gaussian(LATENTS, WIDTH, seed=1), "b_enc": gaussian(LATENTS, seed=2), "W_dec": decoder,
        "b_dec": gaussian(WIDTH, seed=4),
    }  # fmt: skip


def dense_loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """A top-k autoencoder with pre-bias, and an auxiliary loss of some latents on what is left, in plain PyTorch."""

    def coded(scores: Tensor, k: int) -> Tensor:
        top = scores.topk(k, dim=1)
        return torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())

    scores = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    left = x - (coded(scores, K) @ weights["W_dec"] + weights["b_dec"])
    again = coded(((x - weights["b_dec"].detach()) @ weights["W_enc"].T + weights["b_enc"])[:, DEAD], 3)
    return left.pow(2).sum(1).mean() + 0.3 * (again @ weights["W_dec"][DEAD] - left.detach()).pow(2).mean()


def factored_loss(encoder: LatentMatrix, decoder: LatentMatrix, b_dec: Tensor, x: Tensor) -> Tensor:
    """The same."""
    values, indices = encoder.encode(x, K, centre=b_dec)
    error, left = decoder.decode_error(values.relu(), indices, b_dec, x)
    values_dead, indices_dead = encoder.encode(x - b_dec.detach(), 3, among=DEAD)
    again = decoder.decode(values_dead.relu(), indices_dead)
    return error.mean() + 0.3 * (again - left).pow(2).mean()


def test_factored_gradients_are_autograds(unit):
    x = gaussian(ROWS, WIDTH)
    weights = {name: tensor.requires_grad_() for name, tensor in start().items()}
    dense_loss(weights, x).backward()
    own = start()
    b_dec = own["b_dec"].requires_grad_()
    encoder, decoder = LatentMatrix(own["W_enc"], own["b_enc"]), LatentMatrix(own["W_dec"])
    with use(unit):
        factored_loss(encoder, decoder, b_dec, x).backward()
        found = {"b_dec": b_dec.grad, "W_dec": decoder.gradient()[0]}
        found["W_enc"], found["b_enc"] = encoder.gradient()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("unit_rows", [False, True])
def test_steps_are_those_of_torchs_adam(unit, unit_rows):
    weights = {name: tensor.requires_grad_() for name, tensor in start(unit_rows).items()}
    reference = torch.optim.Adam(weights.values(), lr=LR, eps=EPS)
    own = start(unit_rows)
    b_dec = own["b_dec"].requires_grad_()
    encoder = LatentMatrix(own["W_enc"], own["b_enc"])
    decoder = LatentMatrix(own["W_dec"], unit_rows=unit_rows)
    adam = FactoredAdam({"encoder": encoder, "decoder": decoder}, {"b_dec": b_dec}, lr=1.0, eps=EPS)
    for step in range(12):
        x = gaussian(ROWS if step % 3 else 2, WIDTH, seed=100 + step)  # two rows: most latents have no gradient
        reference.zero_grad()
        dense_loss(weights, x).backward()
        W = weights["W_dec"]
        with torch.no_grad():
            if unit_rows:
                W.grad -= (W.grad * W).sum(1, keepdim=True) * W
            reference.step()
            if unit_rows:
                W /= W.norm(dim=1, keepdim=True)
        with use(unit):
            factored_loss(encoder, decoder, b_dec, x).backward()
            adam.step(LR)
        assert (encoder.factors, decoder.factors, b_dec.grad) == ([], [], None)
    found = {"W_enc": encoder.rows, "b_enc": encoder.bias, "W_dec": decoder.rows, "b_dec": b_dec}
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
        assert (found[name] - start(unit_rows)[name]).abs().max() > 5 * LR  # they have moved


def test_the_same_steps_give_the_same_bits_whatever_the_number_of_threads(unit):
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        own = start()
        encoder, decoder = LatentMatrix(own["W_enc"], own["b_enc"]), LatentMatrix(own["W_dec"], unit_rows=True)
        adam = FactoredAdam({"encoder": encoder, "decoder": decoder}, {}, lr=LR)
        with use(unit if unit != "reference" else "generic"):
            for step in range(3):
                factored_loss(encoder, decoder, own["b_dec"], gaussian(ROWS, WIDTH, seed=step)).backward()
                adam.step()
        results.append(torch.cat([encoder.rows.flatten(), decoder.rows.flatten(), encoder.bias]))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_step_without_rows_decays_the_moments(unit):
    encoder = LatentMatrix(gaussian(9, 4), gaussian(9))
    adam = FactoredAdam({"encoder": encoder}, {}, lr=LR)
    with use(unit):
        encoder.encode(gaussian(5, 4), 9)[0].sum().backward()
        adam.step()
        first = adam.state()["first.encoder"].clone()
        encoder.encode(torch.empty(0, 4), 3)[0].sum().backward()
        adam.step()
    torch.testing.assert_close(adam.state()["first.encoder"], 0.9 * first)


def test_state_is_taken_over():
    matrices = [LatentMatrix(gaussian(9, 4), gaussian(9)) for _ in range(2)]
    first, second = (FactoredAdam({"encoder": matrix}, {"b": torch.zeros(3)}, lr=LR) for matrix in matrices)
    for step in range(4):
        matrices[0].encode(gaussian(5, 4, seed=step), 2)[0].pow(2).sum().backward()
        first.step()
        if step == 1:
            second.load({name: tensor.clone() for name, tensor in first.state().items()})
            matrices[1].rows.copy_(matrices[0].rows)
            matrices[1].bias.copy_(matrices[0].bias)
        if step > 1:
            matrices[1].encode(gaussian(5, 4, seed=step), 2)[0].pow(2).sum().backward()
            second.step()
    assert torch.equal(matrices[0].rows, matrices[1].rows)
    assert second.steps == 4


def test_latents_whose_moments_are_forgotten_stand_where_no_step_was_taken():
    encoder = LatentMatrix(gaussian(9, 4), gaussian(9))
    adam = FactoredAdam({"encoder": encoder}, {"b": torch.zeros(3)}, lr=LR)
    encoder.encode(gaussian(5, 4), 9)[0].pow(2).sum().backward()
    adam.step()
    before = {name: tensor.clone() for name, tensor in adam.state().items() if name.endswith("encoder")}
    adam.forget(torch.tensor([2, 7]))
    kept = torch.tensor([latent not in (2, 7) for latent in range(9)])
    for name, tensor in before.items():
        assert tensor.any(), name
        now = adam.state()[name]
        assert not now[~kept].any(), name
        assert torch.equal(now[kept], tensor[kept]), name


def test_weights_that_were_saved_for_a_backward_pass_are_not_changed_in_silence():
    encoder = LatentMatrix(gaussian(9, 4))
    leaf = gaussian(5, 4, seed=1).requires_grad_()
    loss = topk.topk_encode(leaf, encoder.rows, torch.zeros(9), 2)[0].sum()
    FactoredAdam({"encoder": encoder}, {}, lr=LR).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


BAD_INPUT = [
    pytest.param(lambda: LatentMatrix(torch.zeros(3, 2).double()), "rows is torch.float64", id="dtype"),
    pytest.param(lambda: LatentMatrix(torch.zeros(2, 3).T), "must be torch.float32 and contiguous", id="layout"),
    pytest.param(lambda: LatentMatrix(torch.zeros(3, 2), torch.zeros(2)), "rows (3, 2) and bias (2,)", id="bias"),
    pytest.param(
        lambda: FactoredAdam({"a": LatentMatrix(torch.zeros(3, 2))}, {"a": torch.zeros(1)}, lr=1.0),
        "'a' names a matrix and another tensor",
        id="name twice",
    ),
    pytest.param(
        lambda: FactoredAdam({"a": LatentMatrix(torch.zeros(3, 2))}, {}, lr=1.0).load({"steps": torch.tensor(1)}),
        "state 'first.a' is missing, must be (3, 2)",
        id="state",
    ),
]


@pytest.mark.parametrize(("call", "says"), BAD_INPUT)
def test_bad_input_is_explained(call, says):
    with pytest.raises(KernelError) as error:
        call()
    assert says in str(error.value)
