"""What must hold exactly between patching, circuits and attribution, on decoders of several kinds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import UserError
from workbench.plugins.circuit.attribution import attribute
from workbench.plugins.circuit.circuits import prune, run_circuit, run_circuits
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.objectives import objective
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import patch_edges, patch_nodes, read_places, with_added
from workbench.plugins.circuit.stream import Stream
from workbench.subjects.ungrouping import ungrouped

OURS = {
    "pre-norm": {},
    "attention only, no norm": {"norm": "none", "d_mlp": 0, "n_layers": 3},
}
SHARED = {
    "grouped": {"n_key_value_heads": 2, "rotary_base": 100.0, "d_head": 4},
    "ungrouped": {"n_key_value_heads": 2},
}
SIZES = {
    "hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2_SIZES = {
    "n_embd": 24, "n_head": 6, "n_layer": 2, "vocab_size": 50, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
LIBRARY = {
    "gpt2": ("GPT2", GPT2_SIZES, {}),
    "llama": ("Llama", SIZES, GROUPED),
    "gpt_neox": ("GPTNeoX", SIZES, {"rotary_pct": 0.5}),
    "gemma2": ("Gemma2", SIZES, {**GROUPED, "head_dim": 6}),
    "olmo2": ("Olmo2", SIZES, GROUPED),
    "granite": ("Granite", SIZES, {**GROUPED, "residual_multiplier": 0.22}),
    "phi": ("Phi", SIZES, {}),
    "opt": ("OPT", {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 24}, {}),
}
TOLERANCE = 1e-6  # of metrics of about 1, in float64; Gemma and OLMo normalise in float32 all the same
CLEAN = [[1, 2, 3, 4, 5, 6], [1, 7, 8, 9], [1, 3, 3, 7, 2]]
CORRUPTED = [[1, 2, 9, 4, 8, 6], [1, 5, 8, 10], [1, 4, 3, 2, 2]]


def random_library_subject(family, folder):
    import transformers

    from workbench.subjects.hf_source import load
    from workbench.testing.checkpoints import save_random

    name, sizes, settings = LIBRARY[family]
    config = getattr(transformers, f"{name}Config")(**{**sizes, **settings})
    return load(
        str(save_random(transformers.AutoModelForCausalLM.from_config(config), folder)), device="cpu", dtype="float64"
    )


def marked(names, mark):
    return [pytest.param(name, marks=mark) for name in names]


@pytest.fixture(scope="module", params=[*OURS, *marked(SHARED, pytest.mark.slow), *marked(LIBRARY, pytest.mark.long)])
def subject(request, random_subject, tmp_path_factory):
    if request.param in LIBRARY:
        return random_library_subject(request.param, tmp_path_factory.mktemp("model"))
    made = random_subject(**{**OURS, **SHARED}[request.param])
    return ungrouped(made) if request.param == "ungrouped" else made


@pytest.fixture(scope="module")
def graph(subject):
    return Graph.of(subject)


@pytest.fixture(scope="module")
def pairs():
    return Pairs.of(CLEAN, CORRUPTED, [[1], [2, 3], [4]], [[5], [6], [7, 8]])


def metric(subject, pairs, tokens):
    """The metric of each prompt run alone, by plain arithmetic."""
    logits = [subject.run(subject.batch([each])).value[0, -1].double().numpy() for each in tokens]
    return np.array(
        [x[list(a)].mean() - x[list(w)].mean() for x, a, w in zip(logits, pairs.answer, pairs.wrong, strict=True)]
    )


def some_edges(graph, n=12):
    chosen = np.zeros_like(graph.real)
    where = np.argwhere(graph.real)
    for i, j in where[np.random.default_rng(0).choice(len(where), size=n, replace=False)]:
        chosen[i, j] = True
    chosen[:, graph.logits] |= graph.real[:, graph.logits]
    return chosen


def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(subject, graph, pairs):
    all_and_none = run_circuits(subject, pairs, graph, [graph.real, graph.real & False], batch_size=2)
    np.testing.assert_allclose(all_and_none[0], metric(subject, pairs, CLEAN), atol=TOLERANCE)
    np.testing.assert_allclose(all_and_none[1], metric(subject, pairs, CORRUPTED), atol=TOLERANCE)


def test_patching_an_edge_is_the_circuit_without_it(subject, graph, pairs):
    chosen = some_edges(graph)
    lost = patch_edges(subject, pairs, graph, edges=chosen, batch_size=2)
    assert np.isnan(lost[~chosen]).all()
    clean = run_circuit(subject, pairs, graph, graph.real).mean()
    circuits = []
    for i, j in np.argwhere(chosen):
        circuits.append(graph.real.copy())
        circuits[-1][i, j] = False
    without = run_circuits(subject, pairs, graph, circuits).mean(axis=1)
    np.testing.assert_allclose(lost[chosen], clean - without, atol=TOLERANCE)
    assert (np.abs(lost[chosen]) > 1e-6).sum() > 8


def test_attribution_of_a_node_is_the_sum_over_its_edges(subject, graph, pairs):
    for method in ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted"):
        scores = attribute(subject, pairs, graph, method=method, steps=3, batch_size=2)
        np.testing.assert_allclose(scores.nodes.mean(axis=0), scores.edges.sum(axis=1), rtol=1e-6, atol=TOLERANCE)
        assert (scores.edges[~graph.real] == 0).all()
        assert (scores.edges[graph.real] != 0).mean() > 0.9


def test_attribution_is_the_slope_of_patching(subject, graph, pairs):
    """Change the source's value by a tiny step instead: the loss is the score times the step, edge by edge."""
    if subject.address != "zoo:random":
        pytest.skip("norms in float32 are too rough for tiny steps")
    scores = attribute(subject, pairs, graph, method="eap")
    tiny, edges = 1e-5, some_edges(graph)
    stream, score = Stream(subject, graph), objective(pairs)
    lost = np.zeros(graph.real.shape)
    for at, clean, corrupted in stream.batches(pairs, 3):
        now, logits = stream.values(clean)
        change = stream.values(corrupted)[0] - now
        for i, j in np.argwhere(edges):
            name, head = read_places(graph)[j]
            nudged = subject.intervene(clean, {name: with_added(tiny * change[i], head)})
            lost[i, j] = float((score(logits, at) - score(nudged, at)).mean()) / tiny
    np.testing.assert_allclose(scores.edges[edges], lost[edges], rtol=1e-3, atol=1e-6)


def test_paths_are_complete(subject, graph, pairs):
    if subject.address != "zoo:random":
        pytest.skip("the norms of tiny random models are rough along a path that leads near zero")
    gap = metric(subject, pairs, CLEAN) - metric(subject, pairs, CORRUPTED)
    errors = {}
    for rule in ("midpoint", "left"):
        scores = attribute(subject, pairs, graph, method="eap-ig", rule=rule, steps=20)
        errors[rule] = np.abs(scores.nodes[:, 0] - gap).max() / np.abs(gap).max()
    assert errors["midpoint"] < 0.01
    assert errors["midpoint"] < errors["left"]


def naive_logits(weights, ids, embedded, leaves):
    """Attention-only decoder without norms or biases by loops over heads; every read of the stream is a leaf."""
    stream = embedded + weights["pos_embed.weight"][: len(ids)]
    values = [embedded]
    for layer in range(3):
        q, k, v, o = (weights[f"stack.blocks.{layer}.attn.{name}.weight"] for name in "qkvo")
        added = []
        for head in range(4):
            at, reads = slice(3 * head, 3 * head + 3), {}
            for which in "qkv":
                leaves[f"a{layer}.h{head}<{which}>"] = zero = torch.zeros_like(stream, requires_grad=True)
                reads[which] = stream + zero
            scores = (reads["q"] @ q[at].T) @ (reads["k"] @ k[at].T).T / 3**0.5
            pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
            added.append(pattern @ (reads["v"] @ v[at].T) @ o[:, at].T)
        values += added
        stream = stream + sum(added)
    leaves["logits"] = zero = torch.zeros_like(stream, requires_grad=True)
    return values, ((stream + zero) @ weights["unembed.weight"].T)[-1]


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_attribution_is_a_naive_sum_of_gradients(method, random_subject, pairs):
    """One example at a time, the network written out from its weights: equal to rounding, signs and all."""
    bare = {f"{name}_bias": False for name in ("query", "key", "value", "out")}
    subject = random_subject(norm="none", d_mlp=0, n_layers=3, **bare)
    graph, weights = Graph.of(subject), dict(subject.network.named_parameters())
    want = np.zeros(graph.real.shape)
    alphas = [1.0] if method == "eap" else [(k + 0.5) / 4 for k in range(4)]
    for clean, corrupted, right, wrong in zip(CLEAN, CORRUPTED, pairs.answer, pairs.wrong, strict=True):
        ends = [weights["embed.weight"][ids].detach() for ids in (clean, corrupted)]
        now, then = (naive_logits(weights, clean, end, {})[0] for end in ends)
        change = torch.stack(then) - torch.stack(now)
        for alpha in alphas:
            leaves = {}
            logits = naive_logits(weights, clean, ends[1] + alpha * (ends[0] - ends[1]), leaves)[1]
            (logits[list(right)].mean() - logits[list(wrong)].mean()).backward()
            for name, leaf in leaves.items():
                found = (change * leaf.grad).sum((1, 2)).detach().numpy()
                want[:, graph.destinations.index(name)] -= found / len(alphas) / len(CLEAN)
    want = np.where(graph.real, want, 0)
    steps = {"steps": 4} if method == "eap-ig" else {}
    np.testing.assert_allclose(attribute(subject, pairs, graph, method=method, **steps).edges, want, atol=1e-12)
    assert np.abs(want).max() > 0.1


def test_batches_and_padding_change_nothing(subject, graph, pairs):
    whole = attribute(subject, pairs, graph, method="eap-ig", steps=2, batch_size=3)
    alone = attribute(subject, pairs, graph, method="eap-ig", steps=2, batch_size=1)
    np.testing.assert_allclose(whole.edges, alone.edges, rtol=1e-6, atol=TOLERANCE)
    np.testing.assert_allclose(
        patch_nodes(subject, pairs, graph, batch_size=3),
        patch_nodes(subject, pairs, graph, batch_size=2),
        atol=TOLERANCE,
    )


def test_denoising_is_noising_of_exchanged_pairs(subject, graph, pairs):
    noising = patch_nodes(subject, pairs, graph)
    exchanged = patch_nodes(subject, pairs.swapped(), graph, direction="denoising")
    np.testing.assert_allclose(noising, -exchanged, atol=TOLERANCE)
    gap = metric(subject, pairs, CLEAN) - metric(subject, pairs, CORRUPTED)
    np.testing.assert_allclose(noising[:, 0], gap, atol=TOLERANCE)


def test_a_patched_head_is_a_naive_loop(subject, graph, pairs):
    name, head = "blocks.1.attn.hook_z", graph.n_heads - 1
    want = []
    for clean, corrupted in zip(CLEAN, CORRUPTED, strict=True):
        other = subject.capture(subject.batch([corrupted]), [name])[name][:, :, head]

        def put(z, at, other=other):
            z[:, :, head] = other
            return z

        want.append(subject.intervene(subject.batch([clean]), {name: put})[0, -1].double().numpy())
    patched = [x[list(a)].mean() - x[list(w)].mean() for x, a, w in zip(want, pairs.answer, pairs.wrong, strict=True)]
    source = graph.sources.index(f"a1.h{head}")
    np.testing.assert_allclose(
        patch_nodes(subject, pairs, graph)[:, source], metric(subject, pairs, CLEAN) - patched, atol=TOLERANCE
    )


def test_pruning_changes_nothing(subject, graph, pairs):
    if "blocks.0.ln1_post.hook_scale" in subject.hook_points:
        pytest.skip("a norm behind the attention ties a layer's heads together")
    rng = np.random.default_rng(1)
    present = graph.real & (rng.random(graph.real.shape) < 0.15)
    present[0, graph.logits] = True
    fewer = prune(graph, present)
    assert 0 < fewer.sum() < present.sum()
    assert not (fewer & ~present).any()
    both = run_circuits(subject, pairs, graph, [present, fewer])
    np.testing.assert_allclose(both[0], both[1], atol=TOLERANCE)
    assert not prune(graph, graph.real & False).any()


def test_zero_and_mean_ablation(subject, graph, pairs):
    none = graph.real & False
    zero, mean = (run_circuit(subject, pairs, graph, none, ablation=way) for way in ("zero", "mean"))
    assert np.isfinite(zero).all()
    assert np.isfinite(mean).all()
    alike = pairs.take([0, 0])  # the mean over one and the same corrupted prompt is that prompt
    np.testing.assert_allclose(
        run_circuit(subject, alike, graph, none, ablation="mean"),
        run_circuit(subject, alike, graph, none),
        atol=TOLERANCE,
    )
    for way in ("zero", "mean"):
        full = run_circuit(subject, pairs, graph, graph.real, ablation=way)
        np.testing.assert_allclose(full, metric(subject, pairs, CLEAN), atol=TOLERANCE)


def test_divergence_of_the_whole_subject_is_none(subject, graph, pairs):
    pairs = replace(pairs, metric="kl")
    both = run_circuits(subject, pairs, graph, [graph.real, graph.real & False])
    np.testing.assert_allclose(both[0], 0, atol=TOLERANCE)
    assert (both[1] < -1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_library_models_have_them_too(family, pairs, tmp_path):
    subject = random_library_subject(family, tmp_path)
    graph = Graph.of(subject)
    assert (graph.parallel, graph.n_key_value_heads) == (family == "gpt_neox", 2 if family == "llama" else 6)
    test_all_edges_are_the_clean_run_and_none_the_corrupted_one(subject, graph, pairs)
    test_patching_an_edge_is_the_circuit_without_it(subject, graph, pairs)
    test_attribution_of_a_node_is_the_sum_over_its_edges(subject, graph, pairs)


def test_edges_into_logits_without_a_norm_are_exact(random_subject, pairs):
    subject = random_subject(norm="none", d_mlp=0, n_layers=3)
    graph = Graph.of(subject)
    last = np.zeros_like(graph.real)
    last[:, graph.logits] = True
    lost = patch_edges(subject, pairs, graph, edges=last)
    np.testing.assert_allclose(attribute(subject, pairs, graph).edges[last], lost[last], rtol=1e-6)


def test_a_rotated_stream_changes_nothing(random_subject, pairs):
    subject, turned = (random_subject(norm="none", d_mlp=0, n_layers=3) for _ in range(2))
    turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    for name, weight in turned.network.named_parameters():
        if name.endswith("o.weight"):
            weight.data = turn.T @ weight.data
        elif weight.ndim == 2 or name.endswith("o.bias"):
            weight.data = weight.data @ turn
    graph = Graph.of(subject)
    for one, other in (
        (patch_nodes(each, pairs, graph) for each in (subject, turned)),
        (attribute(each, pairs, graph, method="eap-ig", steps=5).edges for each in (subject, turned)),
    ):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)
        assert np.abs(one).max() > 0.1


def test_budgets_and_wrong_options_are_refused(random_subject, pairs):
    subject = random_subject(norm="none", d_mlp=0)
    graph = Graph.of(subject)
    with pytest.raises(UserError, match=r"are 162 passes, more than 100"):
        patch_edges(subject, pairs, graph, batch_size=2, most_passes=100)
    with pytest.raises(UserError, match="steps=0"):
        attribute(subject, pairs, graph, method="eap-ig", steps=0)
    with pytest.raises(UserError, match="must be eap"):
        attribute(subject, pairs, graph, method="eap-gi")
    with pytest.raises(UserError, match="batches of 0"):
        patch_nodes(subject, pairs, graph, batch_size=0)
