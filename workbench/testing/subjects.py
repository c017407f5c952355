"""What must hold for every subject model, as functions that take a subject and a batch and raise `AssertionError`.

Use a small model with random weights and a batch of at least two examples of different lengths::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_exactness(check, subject, batch):
        check(subject, batch)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workbench.errors import UserError
from workbench.subjects.protocol import At, Batch, Edit, Subject

Check = Callable[[Subject, Batch], None]


def everything(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """Every activation of one pass, by hook point."""
    return subject.run(batch, capture=list(subject.hook_points)).captured


def result(subject: Subject, batch: Batch, edits: dict[str, Edit | Sequence[Edit]] | None = None) -> Tensor:
    """What a whole pass gives."""
    value = subject.run(batch, edits=edits).value
    assert value is not None, "a pass that was not stopped gave no value"
    return value


def assert_near(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Compare two tensors, the difference measured against the largest entry of `want`."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)}, not {tuple(want.shape)}"
    worst, scale = float((got - want).abs().max()), float(want.abs().max())
    assert worst <= tolerance * scale, f"{what}: off by {worst:.3g}, where the largest entry is {scale:.3g}"


def noise(like: Tensor, seed: int = 0) -> Tensor:
    """Seeded normal noise of the shape, dtype and scale of an activation."""
    generator = torch.Generator().manual_seed(seed)
    spread = like[like.isfinite()].std().clamp(min=0.1) if like.numel() > 1 else 1.0
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like) * spread


def check_declared_shapes(subject: Subject, batch: Batch) -> None:
    """Captured activations have the declared axes and sizes, and the subject's dtype."""
    n_pos = batch.mask.shape[1]
    free = {"batch": batch.n_examples, "pos": n_pos, "query": n_pos, "key": n_pos}
    for name, value in everything(subject, batch).items():
        point = subject.hook_points[name]
        want = tuple(free[axis] if size is None else size for axis, size in zip(point.axes, point.shape, strict=True))
        assert tuple(value.shape) == want, f"{name} is {tuple(value.shape)}, declared {point.axes} = {want}"
        assert value.dtype == subject.dtype, f"{name} is {value.dtype}, the subject is {subject.dtype}"
        assert not value.requires_grad, f"{name} is in a graph without grad=True"


def check_forward_order(subject: Subject, batch: Batch) -> None:
    """Stopped after any hook point, a pass has reached those listed up to there, no other, and gives no value."""
    order = list(subject.hook_points)
    assert list(everything(subject, batch)) == order
    for i, name in enumerate(order):
        out = subject.run(batch, capture=order, stop_after=name)
        assert out.value is None, f"stopped after {name}, but gave a value"
        assert list(out.captured) == order[: i + 1], f"stopped after {name}, reached {list(out.captured)[i - 2 :]}"


class _Reads(TorchFunctionMode):
    """Notes the memory that functions of torch are given."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        self.storages |= {value.untyped_storage().data_ptr() for value in given}
        return function(*args, **(kwargs or {}))


def check_only_needed_layers_run(subject: Subject, batch: Batch) -> None:
    """To capture a layer, no weight of a later layer is read."""
    last_of = {name.split(".")[1]: name for name in subject.hook_points if name.startswith("blocks.")}
    for layer in range(subject.n_layers):
        with _Reads() as reads:
            subject.capture(batch, [last_of[str(layer)]])
        for other in range(subject.n_layers):
            for role in ("W_Q", "W_K", "W_V", "W_O"):
                was_read = subject.weights(role, other).untyped_storage().data_ptr() in reads.storages
                said = "is read" if was_read else "is not read"
                assert was_read == (other <= layer), f"{role} of layer {other} {said} to capture {last_of[str(layer)]}"


def check_residual_sums(subject: Subject, batch: Batch) -> None:
    """The parts sum to the residual stream: to 1e-5 of the largest entry."""
    seen = everything(subject, batch)
    stream = seen["blocks.0.hook_resid_pre"]
    post_norm = "blocks.0.hook_normalized_resid_mid" in seen
    for layer in range(subject.n_layers):
        at = f"blocks.{layer}."
        if post_norm:  # each sum is of its two parts
            stream = seen[at + "hook_resid_pre"]
        stream = stream + seen[at + "hook_attn_out"]
        if at + "hook_resid_mid" in seen:
            assert_near(seen[at + "hook_resid_mid"], stream, at + "hook_resid_mid")
        if post_norm:
            stream = seen[at + "hook_normalized_resid_mid"]
        if at + "hook_mlp_out" in seen:
            stream = stream + seen[at + "hook_mlp_out"]
            assert_near(seen[at + "hook_resid_post"], stream, at + "hook_resid_post")


def check_edits_by_pattern(subject: Subject, batch: Batch) -> None:
    """An edit given for a pattern is applied at every hook point that the pattern matches, after those given before."""
    names = subject.expand(["blocks.*.hook_attn_out"])
    by_name = result(subject, batch, {name: [lambda x, at: x + 1, lambda x, at: x * 0.5] for name in names})
    first = {names[0]: lambda x, at: x + 1}
    rest = {name: lambda x, at: x + 1 for name in names[1:]}
    by_pattern = result(subject, batch, {**first, **rest, "blocks.*.hook_attn_out": lambda x, at: x * 0.5})
    assert torch.equal(by_name, by_pattern), "an edit by pattern differs from the same edit by name"
    assert not torch.equal(by_name, result(subject, batch)), "the edits had no effect"


def check_head_results(subject: Subject, batch: Batch) -> None:
    """The heads' results are their ``hook_z`` times their ``W_O``."""
    seen = everything(subject, batch)
    for layer in range(subject.n_layers):
        at = f"blocks.{layer}.attn."
        want = torch.einsum("bphe,hed->bphd", seen[at + "hook_z"], subject.weights("W_O", layer))
        assert_near(seen[at + "hook_result"], want, at + "hook_result")


def check_patterns(subject: Subject, batch: Batch) -> None:
    """Rows of a pattern sum to one, and no real position sees padding, nor a causal one what comes after it."""
    seen = batch.mask[:, None, None, :] & torch.ones_like(batch.mask)[:, None, :, None]
    if subject.causal:
        seen = seen & torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    real = batch.mask[:, None, :, None]
    for layer in range(subject.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern = subject.capture(batch, [name])[name].double()
        rows = pattern.sum(-1, keepdim=True).masked_fill(~real, 1.0)
        assert_near(rows, torch.ones_like(rows), name)
        assert not pattern.masked_select(real & ~seen).any(), f"{name}: a position sees what it must not"


def check_patterns_are_used(subject: Subject, batch: Batch) -> None:
    """Where each position is made to see itself only, ``hook_z`` is ``hook_v``."""
    n_pos = batch.mask.shape[1]
    for layer in range(subject.n_layers):
        at = f"blocks.{layer}.attn."

        def only_itself(pattern: Tensor, _: At) -> Tensor:
            return torch.eye(n_pos, dtype=pattern.dtype, device=pattern.device).expand_as(pattern)

        names = [at + "hook_v", at + "hook_z"]
        seen = subject.run(batch, capture=names, edits={at + "hook_pattern": only_itself}).captured
        values = seen[names[0]].repeat_interleave(subject.n_heads // subject.n_key_value_heads, dim=2)
        assert_near(seen[names[1]], values, names[1])


def check_identity_edits(subject: Subject, batch: Batch) -> None:
    """An edit that returns its input, or a copy of it, changes no bit, at each hook point and at all together."""
    plain = result(subject, batch)
    for name in subject.hook_points:
        for same in (lambda x, at: x, lambda x, at: x.clone()):
            assert torch.equal(result(subject, batch, {name: same}), plain), f"an edit that changes nothing at {name}"
    together: dict[str, Edit | Sequence[Edit]] = {name: lambda x, at: x.clone() for name in subject.hook_points}
    assert torch.equal(result(subject, batch, together), plain), "edits that change nothing at all hook points"


def check_edits_take_effect(subject: Subject, batch: Batch) -> None:
    """Noise at any hook point changes the result, and more of the result than rounding; the captured value has it."""
    plain = result(subject, batch)
    for name in subject.hook_points:
        out = subject.run(batch, capture=[name], edits={name: _shaken})
        before = subject.capture(batch, [name])[name]
        assert torch.equal(out.captured[name], _shaken(before)), f"{name}: the captured value is not the edited one"
        assert out.value is not None
        change = float((out.value - plain).abs().max() / plain.abs().max())
        assert change > 1e-6, f"an edit of {name} has no effect on the result ({change:.1e})"


def _shaken(x: Tensor, at: At | None = None) -> Tensor:
    return x * (1.5 + 0.5 * torch.tanh(noise(x) / noise(x).std())) + 0.1 * noise(x).where(x.isfinite(), 0.0)


def check_edits_in_order(subject: Subject, batch: Batch) -> None:
    """Several edits of a hook point are applied in the order given; one in place is as good as one that is not."""
    for name in subject.hook_points:
        first, second = (lambda x, at: x * 2, lambda x, at: x + 1)

        def in_place(x: Tensor, _: At) -> Tensor:
            return x.mul_(2).add_(1)

        runs = [subject.run(batch, capture=[name], edits={name: fns}) for fns in ([first, second], [in_place])]
        before = subject.capture(batch, [name])[name]
        for out in runs:
            assert torch.equal(out.captured[name], before * 2 + 1), name
        assert runs[0].value is not None
        assert runs[1].value is not None
        both = [run.value.nan_to_num() for run in runs if run.value is not None]
        assert_near(both[1], both[0], f"an edit in place at {name}")


def check_middle_edits(subject: Subject, batch: Batch) -> None:
    """An edited ``hook_resid_mid`` goes on in the stream; an edited ``hook_mlp_in`` reaches the MLP alone."""
    for layer in range(subject.n_layers):
        at = f"blocks.{layer}."
        mid, out, post = at + "hook_resid_mid", at + "hook_mlp_out", at + "hook_resid_post"
        if out not in subject.hook_points:
            continue
        plain = subject.run(batch, capture=[at + "hook_*"]).captured
        branch = subject.run(batch, capture=[at + "hook_*"], edits={at + "hook_mlp_in": _shaken}).captured
        assert torch.equal(branch[at + "hook_attn_out"], plain[at + "hook_attn_out"]), f"{at}hook_mlp_in"
        assert not torch.equal(branch[out], plain[out]), f"{at}hook_mlp_in does not reach the MLP"
        assert_near(branch[post] - branch[out], plain[post] - plain[out], f"{at}hook_mlp_in")
        if mid in subject.hook_points and at + "hook_normalized_resid_mid" not in subject.hook_points:
            edited = subject.run(batch, capture=[mid, out, post], edits={mid: _shaken}).captured
            assert_near(edited[post], edited[mid] + edited[out], f"{post} after an edit of {mid}")


def check_split_inputs(subject: Subject, batch: Batch) -> None:
    """A head's own input reaches that head's query, key or value and nothing else."""
    at = f"blocks.{subject.n_layers - 1}."
    names = [f"{at}attn.hook_{which}" for which in "qkv"]
    plain = subject.capture(batch, names)

    def head_0(x: Tensor, _: At) -> Tensor:
        return torch.cat([_shaken(x[:, :, :1]), x[:, :, 1:]], dim=2)

    for which, name in zip("qkv", names, strict=True):
        seen = subject.run(batch, capture=names, edits={f"{at}hook_{which}_input": head_0}).captured
        for other in set(names) - {name}:
            assert torch.equal(seen[other], plain[other]), f"{at}hook_{which}_input reaches {other}"
        assert not torch.allclose(seen[name][:, :, 0], plain[name][:, :, 0]), f"{at}hook_{which}_input has no effect"
        if seen[name].shape[2] > 1:
            assert_near(seen[name][:, :, 1:], plain[name][:, :, 1:], f"{at}hook_{which}_input, other heads")


def check_head_ablation(subject: Subject, batch: Batch) -> None:
    """A head whose ``hook_z`` or ``hook_result`` is zero is a head whose ``W_O`` is zero."""
    for layer in range(subject.n_layers):
        head = layer % subject.n_heads

        def without(x: Tensor, _: At, head: int = head) -> Tensor:
            return x.index_fill(2, torch.tensor([head], device=x.device), 0.0)

        weight = subject.weights("W_O", layer)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[head] = 0.0
            want = result(subject, batch)
            weight.copy_(kept)
        assert not torch.equal(want, result(subject, batch)), f"editing W_O of layer {layer} has no effect"
        for name in ("hook_z", "hook_result"):
            got = result(subject, batch, {f"blocks.{layer}.attn.{name}": without})
            assert_near(got, want, f"head {head} of layer {layer} by {name}")


def check_padding(subject: Subject, batch: Batch) -> None:
    """A padded batch gives what each example gives alone."""
    if batch.mask.all():
        return
    names = [name for name, point in subject.hook_points.items() if point.axes[:2] == ("batch", "pos")]
    padded = subject.run(batch, capture=names).captured
    for i, length in enumerate(batch.mask.sum(1).tolist()):
        one = Batch(
            batch.inputs[i : i + 1, :length],
            batch.mask[i : i + 1, :length],
            batch.special[i : i + 1, :length],
            {name: value[i : i + 1, :length] for name, value in batch.extra.items()},
        )
        for name, value in subject.run(one, capture=names).captured.items():
            assert_near(padded[name][i : i + 1, :length], value, f"{name}, example {i} in a padded batch")


def check_wrong_input_is_refused(subject: Subject, batch: Batch) -> None:
    """An edit that returns nothing or another shape, and a hook point that does not exist, are errors that say so."""
    name = "blocks.0.hook_resid_pre"
    wrong: list[tuple[dict[str, Edit], str]] = [
        ({name: lambda x, at: None}, "returned None"),  # type: ignore[dict-item,return-value]
        ({name: lambda x, at: x[..., 1:]}, "where the activation is"),
        ({name: lambda x, at: 0.0}, "returned float"),  # type: ignore[dict-item,return-value]
        ({"blocks.0.hook_resid_per": lambda x, at: x}, "nearest: blocks.0.hook_resid_pre"),
    ]
    for edits, says in wrong:
        message = _refusal(subject, batch, edits)
        assert message is not None, f"an edit that should be refused ({says}) was not"
        assert says in message, f"{message!r} does not say {says!r}"


def _refusal(subject: Subject, batch: Batch, edits: dict[str, Edit]) -> str | None:
    """The message with which edits are refused; None if they are not."""
    try:
        subject.run(batch, edits=edits)
    except UserError as error:
        return str(error)
    return None


def check_gradients(subject: Subject, batch: Batch) -> None:
    """With ``grad=True`` the result can be differentiated by what was captured; without, nothing is in a graph."""
    for name in subject.hook_points:
        out = subject.run(batch, capture=[name], grad=True)
        assert out.value is not None
        target = noise(out.value.detach(), seed=1)
        (slope,) = torch.autograd.grad((out.value * target).sum(), out.captured[name], allow_unused=True)
        assert slope is not None, f"the result does not depend on {name}"
        assert slope.isfinite().all(), f"{name}: gradient is not finite"


def check_gradients_are_slopes(subject: Subject, batch: Batch, step: float = 1e-6, tolerance: float = 1e-5) -> None:
    """Gradients are those of small edits. Not in `CHECKS`: the subject must compute in float64 throughout."""
    target = noise(result(subject, batch), seed=1)
    for name in subject.hook_points:
        out = subject.run(batch, capture=[name], grad=True)
        assert out.value is not None
        (gradient,) = torch.autograd.grad((out.value * target).sum(), out.captured[name])
        direction = noise(gradient, seed=2)

        def moved(by: float, name: str = name, direction: Tensor = direction) -> Tensor:
            return (result(subject, batch, {name: lambda x, at: x + by * direction}) * target).sum()

        want = (moved(step) - moved(-step)) / (2 * step)
        scale = (gradient * direction).abs().sum()
        assert (gradient * direction).sum().sub(want).abs() <= tolerance * scale, f"{name}: the gradient is no slope"


CHECKS: tuple[Check, ...] = (
    check_declared_shapes,
    check_forward_order,
    check_only_needed_layers_run,
    check_residual_sums,
    check_head_results,
    check_patterns,
    check_patterns_are_used,
    check_identity_edits,
    check_edits_take_effect,
    check_edits_in_order,
    check_edits_by_pattern,
    check_middle_edits,
    check_split_inputs,
    check_head_ablation,
    check_padding,
    check_wrong_input_is_refused,
    check_gradients,
)
