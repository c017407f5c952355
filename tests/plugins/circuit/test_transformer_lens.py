"""Edge attribution held against a naive one on TransformerLens, with its own hooks and its own weights' layout."""

import numpy as np
import pytest
import torch

from workbench.plugins.circuit.attribution import attribute
from workbench.plugins.circuit.circuits import run_circuit
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.pairs import Pairs

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PAIRS = Pairs.of(
    [[1, 2, 3, 4, 5], [1, 7, 8, 9, 2], [1, 3, 3, 7, 2]], [[1, 2, 9, 4, 8], [1, 5, 8, 10, 2], [1, 4, 3, 2, 2]],
    [[1], [2], [4]], [[5], [6], [7]],
)  # fmt: skip


def in_transformer_lens(subject):
    """The same weights in a HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(
        n_layers=subject.n_layers, d_model=subject.d_model, n_ctx=subject.n_context, d_head=subject.d_head,
        n_heads=subject.n_heads, d_mlp=subject.d_mlp, d_vocab=11, act_fn="gelu", normalization_type="LN",
        dtype=torch.float64, device="cpu", use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    ))  # fmt: skip
    state = {name: value for name, value in model.state_dict().items() if name.endswith(("mask", "IGNORE"))}
    for name in ("W_E", "W_U", "W_pos"):
        state[{"W_E": "embed.", "W_U": "unembed.", "W_pos": "pos_embed."}[name] + name] = subject.weights(name)
    state["unembed.b_U"] = torch.zeros(11, dtype=torch.float64)
    state["ln_final.w"], state["ln_final.b"] = subject.weights("ln_final.w"), subject.weights("ln_final.b")
    for layer in range(subject.n_layers):
        for role in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            state[f"blocks.{layer}.attn.{role}"] = subject.weights(role, layer)
        for role in ("W_in", "b_in", "W_out", "b_out"):
            state[f"blocks.{layer}.mlp.{role}"] = subject.weights(role, layer)
        for role in ("ln1.w", "ln1.b", "ln2.w", "ln2.b"):
            state[f"blocks.{layer}.{role}"] = subject.weights(role, layer)
    model.load_state_dict(state)
    return model


def place(name):
    """Hook point and head of a source or a destination."""
    if name == "input":
        return "hook_embed", None
    if name == "logits":
        return "blocks.1.hook_resid_post", None
    layer = name[1]
    if name[0] == "m":
        return f"blocks.{layer}.hook_mlp_out", None
    head = int(name.split(".h")[1][0])
    return (f"blocks.{layer}.hook_{name[-2]}_input" if name.endswith(">") else f"blocks.{layer}.attn.hook_result"), head


def read_place(name):
    return (f"blocks.{name[1]}.hook_mlp_in", None) if name[0] == "m" else place(name)


def of_head(values, head):
    return values if head is None else values[:, :, head]


def metric(logits):
    answer, wrong = (torch.tensor([each[0] for each in tokens]) for tokens in (PAIRS.answer, PAIRS.wrong))
    rows = torch.arange(len(answer))
    return logits[rows, -1, answer] - logits[rows, -1, wrong]


def naive_scores(model, graph, alphas):
    """Every gradient kept, every edge in turn."""
    clean, corrupted = torch.from_numpy(PAIRS.clean), torch.from_numpy(PAIRS.corrupted)
    _, now = model.run_with_cache(clean)
    _, other = model.run_with_cache(corrupted)
    scores = np.zeros(graph.real.shape)
    for alpha in alphas:
        gradients = {}

        def between(x, hook, alpha=alpha):
            mixed = other["hook_embed"] + alpha * (now["hook_embed"] - other["hook_embed"])
            return mixed.detach().requires_grad_()

        model.reset_hooks()
        model.add_hook("hook_embed", between)
        for name in {read_place(destination)[0] for destination in graph.destinations}:
            model.add_hook(name, lambda g, hook, kept=gradients: kept.__setitem__(hook.name, g.clone()), dir="bwd")
        metric(model(clean)).sum().backward()
        for i, j in np.argwhere(graph.real):
            (source, head), (destination, reader) = place(graph.sources[i]), read_place(graph.destinations[j])
            change = of_head(other[source], head) - of_head(now[source], head)
            scores[i, j] -= float((change * of_head(gradients[destination], reader)).sum()) / len(alphas) / len(PAIRS)
    model.reset_hooks()
    return scores


@pytest.fixture(scope="module")
def subject(random_subject):
    return random_subject()


@pytest.fixture(scope="module")
def model(subject):
    return in_transformer_lens(subject)


@pytest.mark.parametrize(
    ("method", "options", "alphas"),
    [
        ("eap", {}, [1.0]),
        ("clean-corrupted", {}, [0.0, 1.0]),
        ("eap-ig", {"steps": 4}, [0.125, 0.375, 0.625, 0.875]),
        ("eap-ig", {"steps": 4, "rule": "left"}, [0.0, 0.25, 0.5, 0.75]),
    ],
)
def test_attribution_is_the_naive_one(method, options, alphas, subject, model):
    graph = Graph.of(subject)
    found = attribute(subject, PAIRS, graph, method=method, batch_size=2, **options)
    want = naive_scores(model, graph, alphas)
    np.testing.assert_allclose(found.edges, want, atol=1e-8)
    assert (np.abs(want) > 1e-3).sum() > 50


def test_a_circuit_is_the_naive_one(subject, model):
    """Each absent edge, by a hook at its destination that looks at this run's own sources."""
    graph = Graph.of(subject)
    present = graph.real & (np.random.default_rng(0).random(graph.real.shape) < 0.5)
    _, other = model.run_with_cache(torch.from_numpy(PAIRS.corrupted))
    now = {}
    model.reset_hooks()
    for name in {place(source)[0] for source in graph.sources}:
        model.add_hook(name, lambda x, hook: now.__setitem__(hook.name, x))
    for destination in graph.destinations:
        name, reader = read_place(destination)

        def mend(x, hook, destination=destination, reader=reader):
            x = x.clone()
            j = graph.destinations.index(destination)
            for i in np.flatnonzero(graph.real[:, j] & ~present[:, j]):
                source, head = place(graph.sources[i])
                of_head(x, reader).add_(of_head(other[source], head) - of_head(now[source], head))
            return x

        model.add_hook(name, mend)
    want = metric(model(torch.from_numpy(PAIRS.clean))).detach().numpy()
    model.reset_hooks()
    np.testing.assert_allclose(run_circuit(subject, PAIRS, graph, present), want, atol=1e-8)
