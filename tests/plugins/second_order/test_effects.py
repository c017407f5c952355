"""Effects in factorised form, held against the library's model in float64: loops, hooks, the published convention."""

import itertools

import pytest
import torch
import transformers

from workbench.errors import UserError
from workbench.plugins.second_order.effects import layer_effect, second_order_effects
from workbench.plugins.second_order.paths import ValuePaths
from workbench.plugins.second_order.tracing import trace
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 5,
    "image_size": 6,
    "patch_size": 3,
}
TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHAPES = [
    pytest.param({}, id="quick-gelu"),
    pytest.param(
        {"hidden_act": "gelu", "num_attention_heads": 1, "layer_norm_eps": 1e-2},
        id="gelu-one-head",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"num_hidden_layers": 4, "image_size": 9, "patch_size": 4, "hidden_size": 18},
        id="four-layers",
        marks=pytest.mark.slow,
    ),
]


def images(n, size, channels=3):
    """Return seeded noise."""
    return list(torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)))


def clip(folder, settings):
    """Save a random CLIP; return our vision tower and the library's, in float64."""
    config = transformers.CLIPConfig(text_config=TEXT, vision_config={**SMALL, **settings}, projection_dim=5)
    save_random(transformers.CLIPModel(config), folder)
    library = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float64).eval()
    return load_subject(f"hf:{folder}#vision", device="cpu", dtype="float64"), library


@torch.no_grad()
def record(library, pixels):
    """Run the library's vision tower; return the inputs of norms, neurons, patterns and the embedding."""
    tower = library.vision_model
    kept = {"ln": [], "post": [], "mlp": [], "patterns": []}

    def keep_pattern(attention, arguments, named, out):
        """The library's softmax is taken in float32 whatever the model's dtype: here anew."""
        x = arguments[0] if arguments else named["hidden_states"]
        q, k = (
            f(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for f in (attention.q_proj, attention.k_proj)
        )
        kept["patterns"].append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))

    hooks = []
    for layer in layers(tower):
        hooks += [
            layer.layer_norm1.register_forward_hook(lambda m, i, o: kept["ln"].append(i[0])),
            layer.self_attn.register_forward_hook(keep_pattern, with_kwargs=True),
            layer.mlp.fc2.register_forward_hook(lambda m, i, o: kept["post"].append(i[0])),
            layer.mlp.register_forward_hook(lambda m, i, o: kept["mlp"].append(o)),
        ]
    hooks += [tower.post_layernorm.register_forward_hook(lambda m, i, o: kept.update(last=i[0].view(len(pixels), -1)))]
    out = tower(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    return {**kept, "embedding": library.visual_projection(out.pooler_output)}


def layers(tower):
    """The blocks of a tower."""
    return tower.encoder.layers


def deviation(norm, x):
    """What a layer norm divides by, [..., 1]."""
    return (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()


def heads(library, layer):
    """Value and output maps of each head: [head, d, e] with biases [head, e], [head, e, d], and the output bias."""
    attention = layers(library.vision_model)[layer].self_attn
    n = attention.num_heads
    value, out = attention.v_proj, attention.out_proj
    return (
        value.weight.view(n, -1, value.weight.shape[1]).transpose(1, 2),
        value.bias.view(n, -1),
        out.weight.T.reshape(n, -1, out.weight.shape[0]),
        out.bias,
    )


@torch.no_grad()
def by_loops(library, seen, layer):
    """The definition, one image, neuron, head and token at a time."""
    tower = library.vision_model
    blocks = layers(tower)
    n_images, n_tokens, n_neurons = seen["post"][layer].shape
    effects = torch.zeros(n_images, n_neurons, 5, dtype=torch.float64)
    weights = blocks[layer].mlp.fc2.weight.T
    centre = lambda v: v - v.mean()  # noqa: E731
    for image, neuron, later in itertools.product(range(n_images), range(n_neurons), range(layer + 1, len(blocks))):
        W_V, _, W_O, _ = heads(library, later)
        norm = blocks[later].layer_norm1
        for head, token in itertools.product(range(len(W_V)), range(n_tokens)):
            attention = seen["patterns"][later][image, head, 0, token]
            read = norm.weight * centre(weights[neuron]) / deviation(norm, seen["ln"][later][image, token])
            written = attention * seen["post"][layer][image, token, neuron] * (read @ W_V[head] @ W_O[head])
            last = tower.post_layernorm
            effects[image, neuron] += library.visual_projection(
                last.weight * centre(written) / deviation(last, seen["last"][image])
            )
    return effects


@torch.no_grad()
def by_published_code(library, seen, layer):
    """The published convention, with everything [image, token, neuron, width], scaled to 100 for each embedding."""
    tower = library.vision_model
    blocks, last = layers(tower), tower.post_layernorm
    mlp = blocks[layer].mlp.fc2
    n = mlp.weight.shape[1]
    parts = torch.einsum("btn,dn->btnd", seen["post"][layer], mlp.weight) + mlp.bias / n
    total = 0
    for later in range(layer + 1, len(blocks)):
        norm, x, share = blocks[later].layer_norm1, seen["ln"][later], (1 + 2 * later) * n
        W_V, b_V, W_O, b_O = heads(library, later)
        centred = parts - x.mean(-1)[:, :, None, None] / share
        normed = norm.weight * centred / deviation(norm, x)[:, :, None] + norm.bias / share
        for head in range(len(W_V)):
            values = normed @ W_V[head] + b_V[head] / share
            mixed = torch.einsum("bqk,bkne->bqne", seen["patterns"][later][:, head], values)
            written = (mixed @ W_O[head] + b_O / (share * len(W_V)))[:, 0]
            final = share * (1 + 2 * len(blocks)) * len(W_V)
            end = seen["last"]
            out = last.weight * (written - end.mean(-1)[:, None, None] / final) / deviation(last, end)[:, None]
            total = total + library.visual_projection(out + last.bias / final)
    return 100 * total / seen["embedding"].norm(dim=-1)[:, None, None]


@torch.no_grad()
def by_routing(library, seen, layer):
    """What the class token's output loses if an MLP's output is hidden from later values, all else held."""
    tower = library.vision_model
    blocks, last = layers(tower), tower.post_layernorm
    lost = torch.zeros_like(seen["last"])
    for later in range(layer + 1, len(blocks)):
        norm, x = blocks[later].layer_norm1, seen["ln"][later]
        held = deviation(norm, x)
        attention = blocks[later].self_attn

        def attend(stream, norm=norm, held=held, attention=attention, later=later):
            normed = (stream - stream.mean(-1, keepdim=True)) / held * norm.weight + norm.bias
            values = attention.v_proj(normed).unflatten(-1, (attention.num_heads, -1))
            mixed = torch.einsum("bhqk,bkhe->bqhe", seen["patterns"][later], values).flatten(2)
            return attention.out_proj(mixed)[:, 0]

        lost += attend(x) - attend(x - seen["mlp"][layer])

    def read(token):
        normed = (token - token.mean(-1, keepdim=True)) / deviation(last, seen["last"]) * last.weight + last.bias
        return library.visual_projection(normed)

    return read(seen["last"]) - read(seen["last"] - lost)


def near(got, want, tolerance=1e-10):
    """Assert equality relative to the largest entry."""
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


@pytest.mark.parametrize("settings", SHAPES)
def test_effects_are_those_of_the_definition(tmp_path, settings):
    subject, library = clip(tmp_path, settings)
    batch = subject.batch(images(2, subject.arch.image_size[0]))
    seen = record(library, batch.inputs)
    for layer in range(subject.n_layers - 1):
        want = by_loops(library, seen, layer)
        near(second_order_effects(subject, batch, layer), want)
        near(second_order_effects(subject, batch, layer, slice(2, 5)), want[:, 2:5])
        published = second_order_effects(subject, batch, layer, convention="published", normalize=True, scale=100)
        near(published, by_published_code(library, seen, layer))


@pytest.mark.parametrize("settings", SHAPES)
def test_neurons_and_bias_sum_to_what_values_lose_without_the_mlp(tmp_path, settings):
    subject, library = clip(tmp_path, settings)
    batch = subject.batch(images(3, subject.arch.image_size[0]))
    seen = record(library, batch.inputs)
    for layer in range(subject.n_layers - 1):
        traced, paths = trace(subject, batch, [layer]), ValuePaths(subject, layer)
        bias = layer_effect(traced, paths, paths.bias().expand(3, subject.n_context, -1))
        summed = second_order_effects(subject, batch, layer).sum(1)
        near(summed + bias, by_routing(library, seen, layer))
        near(layer_effect(traced, paths, traced.post(layer) @ paths.neurons()), summed)


def test_blocks_of_neurons_change_nothing_and_silent_neurons_have_no_effect(tmp_path, monkeypatch):
    subject, _ = clip(tmp_path, {"hidden_act": "relu"})
    batch = subject.batch(images(2, 6))
    whole = second_order_effects(subject, batch, 1)
    silent = trace(subject, batch, [1]).post(1).eq(0).all(1)
    assert silent.any()
    assert whole[silent].abs().max() == 0
    monkeypatch.setattr(
        "workbench.plugins.second_order.effects.blocks", lambda n, *_: (slice(i, i + 1) for i in range(n))
    )
    near(second_order_effects(subject, batch, 1), whole, 1e-14)


V2 = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 6, "patch_size": 3}
TOWERS = [
    pytest.param("CLIPVisionModel", {**SMALL}, id="CLIP without projection"),
    pytest.param(
        "ViTForImageClassification", {**SMALL, "num_labels": 4}, id="ViT's classifier", marks=pytest.mark.slow
    ),
    pytest.param("Dinov2ForImageClassification", {**V2, "mlp_ratio": 2, "num_labels": 4}, id="mean over patches"),
    pytest.param(
        "Dinov2WithRegistersModel",
        {**V2, "use_swiglu_ffn": True, "num_register_tokens": 2},
        id="SwiGLU",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "DINOv3ViTModel",
        {**V2, "hidden_size": 16, "intermediate_size": 8, "num_register_tokens": 1},
        id="rotary positions",
    ),
    pytest.param(
        "DeiTForImageClassificationWithTeacher", {**SMALL, "num_labels": 4}, id="two heads", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("name", "settings"), TOWERS)
def test_other_towers_by_freezing_patterns_and_scales(tmp_path, name, settings):
    """Give each later layer's values the MLP's output once more, all else held; read the rise out, and add up."""
    cls = getattr(transformers, name)
    save_random(cls(cls.config_class(**settings)), tmp_path)
    subject = load_subject(f"hf:{tmp_path}", device="cpu", dtype="float64")
    batch = subject.batch(images(2, 6))
    everything = subject.run(batch, capture=["*"])
    kept = everything.captured
    held = {p: (lambda v, at, p=p: kept[p]) for p in kept if p.endswith(("hook_scale", "hook_pattern"))}
    layer = 0
    at, last = "blocks.0.mlp.hook_post", f"blocks.{subject.n_layers - 1}.hook_resid_post"
    paths = ValuePaths(subject, layer)
    written = kept[at] @ paths.neurons() + paths.bias()
    total = torch.zeros_like(everything.value)
    for later in paths.layers:
        attention = f"blocks.{later}.hook_attn_out"
        centred = written - written.mean(-1, keepdim=True)
        normed = centred / kept[f"blocks.{later}.ln1.hook_scale"] * subject.weights("ln1.w", later)
        more = torch.einsum("bpd,hde->bphe", normed, subject.weights("W_V", later))
        edits = {**held, f"blocks.{later}.attn.hook_v": lambda v, at, more=more: v + more}
        changed = subject.run(batch, capture=[attention], edits=edits, stop_after=attention).captured[attention]
        rise = changed - kept[attention]
        total += subject.intervene(batch, {**held, last: lambda v, at, rise=rise: kept[last] + rise}) - everything.value
    effects = second_order_effects(subject, batch, layer)
    bias = layer_effect(trace(subject, batch, [layer]), paths, paths.bias().expand_as(written))
    near(effects.sum(1) + bias, total, 1e-9)


REFUSED = [
    pytest.param("ViTModel", {**SMALL}, 0, "tanh of a pooler", id="pooler"),
    pytest.param("CLIPVisionModel", {**SMALL}, 2, "0 to 1", id="last layer"),
    pytest.param("CLIPVisionModel", {**SMALL, "num_hidden_layers": 1}, 0, "has one layer", id="one layer"),
    pytest.param("CLIPTextModel", {**TEXT}, 0, "no vision tower", id="text"),
]


@pytest.mark.parametrize(("name", "settings", "layer", "says"), REFUSED)
def test_towers_and_layers_without_the_formula_are_refused(tmp_path, name, settings, layer, says):
    cls = getattr(transformers, name)
    save_random(cls(cls.config_class(**settings)), tmp_path)
    subject = load_subject(f"hf:{tmp_path}", device="cpu")
    with pytest.raises(UserError, match=says):
        ValuePaths(subject, layer)
