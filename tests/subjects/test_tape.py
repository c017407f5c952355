"""The record of a forward pass: capture, edits, stopping, the graph."""

import pytest
import torch

from workbench.errors import UserError
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.tape import Stopped, Tape

POINTS = {name: HookPoint(name, ("batch", "d_model"), (None, 3)) for name in ("a", "b")}
BATCH = Batch(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.bool))


def tape(**settings):
    """A tape over two hook points; edits as a person gives them."""
    edits = settings.pop("edits", {})
    settings["edits"] = {name: [fns] if callable(fns) else fns for name, fns in edits.items()}
    return Tape(POINTS, BATCH, **settings)


@pytest.fixture
def value():
    """An activation."""
    return torch.arange(6.0).reshape(2, 3)


def test_a_pass_that_wants_nothing_hands_values_through(value):
    empty = tape()
    assert empty("a", value) is value
    assert empty.captured == {}
    assert not empty.wants("a", "b")


def test_what_is_captured_is_what_the_edits_made(value):
    running = tape(capture=["a"], edits={"a": [lambda x, at: x + 1, lambda x, at: x * 2]})
    assert torch.equal(running("a", value), (value + 1) * 2)
    assert torch.equal(running.captured["a"], (value + 1) * 2)


def test_an_edit_sees_its_hook_point_and_batch(value):
    seen = []
    running = tape(edits={"b": lambda x, at: (seen.append((at.hook_point.name, at.batch)), x)[1]})
    running("a", value)
    running("b", value)
    assert seen == [("b", BATCH)]


def test_an_edit_in_place_changes_neither_weights_nor_earlier_captures(value):
    before = value.clone()
    running = tape(capture=["a", "b"], edits={"b": lambda x, at: x.zero_()})
    after = running("b", running("a", value))
    assert not after.any()
    assert torch.equal(value, before)
    assert torch.equal(running.captured["a"], before)


def test_an_edit_in_place_of_a_view_that_repeats_entries(value):
    running = tape(edits={"a": lambda x, at: x.add_(1)})
    assert torch.equal(running("a", value[:1].expand(2, 3)), value[:1].expand(2, 3) + 1)


def test_the_last_hook_point_stops_the_pass_with_its_value_captured(value):
    running = tape(capture=["a", "b"], stop_after="b")
    assert running.wants("b")
    running("a", value)
    with pytest.raises(Stopped):
        running("b", value)
    assert list(running.captured) == ["a", "b"]


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        pytest.param(None, False, id="no edit"),
        pytest.param(lambda x, at: x, False, id="itself"),
        pytest.param(lambda x, at: x.clone(), False, id="a copy"),
        pytest.param(lambda x, at: x.mul_(2), True, id="in place"),
        pytest.param(lambda x, at: x + 1, True, id="another"),
    ],
)
def test_a_value_on_the_side_is_used_only_if_it_was_changed(value, edit, changed):
    running = tape(capture=["a"], edits={} if edit is None else {"a": edit})
    after, used = running.rewritten("a", value)
    assert used is changed
    assert torch.equal(after, running.captured["a"])


def test_with_a_graph_values_can_be_differentiated_and_side_values_are_used(value):
    running = tape(capture=["a"], grad=True)
    after, used = running.rewritten("a", value)
    assert used
    (slope,) = torch.autograd.grad((after**2).sum(), running.captured["a"])
    assert torch.equal(slope, 2 * value)
    assert not value.requires_grad  # the frozen activation itself stays out of it


def test_without_a_graph_captured_values_are_detached(value):
    running = tape(capture=["a"])
    running("a", value.requires_grad_())
    assert not running.captured["a"].requires_grad


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        pytest.param(lambda x, at: None, "at a returned None: it must return", id="nothing"),
        pytest.param(lambda x, at: x[:1], r"returned \(1, 3\), where the activation is \(2, 3\)", id="shape"),
        pytest.param(lambda x, at: 1.0, "returned float", id="number"),
    ],
)
def test_what_cannot_replace_an_activation(value, edit, says):
    with pytest.raises(UserError, match=says):
        tape(edits={"a": edit})("a", value)
