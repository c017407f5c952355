"""DINOv2 with and without registers, and DINOv3: equal to the library, and to themselves under edits."""

import pytest
import torch
import transformers

from workbench.subjects.sources import load_subject
from workbench.subjects.towers_convert import translate
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import CHECKS, assert_near

V2 = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 15,
    "patch_size": 4,
}
V3 = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 15,
    "patch_size": 4,
}
SWIGLU = {"use_swiglu_ffn": True}
KINDS = [
    ("Dinov2Model", SWIGLU),
    ("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 3, "num_labels": 5}),
    ("DINOv3ViTModel", {"num_register_tokens": 4, "use_gated_mlp": True}),
]
SLOW_KINDS = [
    ("Dinov2Model", {"qkv_bias": False, "hidden_act": "relu"}),
    ("Dinov2ForImageClassification", {"num_labels": 4, "hidden_size": 33, "num_attention_heads": 3}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 0}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 8, **SWIGLU}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 1, "patch_size": 7, "image_size": 30}),
    ("DINOv3ViTModel", {"num_register_tokens": 0, "hidden_act": "silu"}),
    ("DINOv3ViTModel", {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False}),
    ("DINOv3ViTModel", {"key_bias": True, "num_register_tokens": 8, "num_attention_heads": 6}),
    ("DINOv3ViTModel", {"num_attention_heads": 1, "rope_theta": 10.0, "use_gated_mlp": True, "mlp_bias": False}),
]
MODELS = [pytest.param(*kind, id="-".join([kind[0], *kind[1]])) for kind in KINDS] + [
    pytest.param(*kind, id="-".join([kind[0], *kind[1]]), marks=pytest.mark.slow) for kind in SLOW_KINDS
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a model, made once for its class and settings."""
    made = {}

    def save(class_name, settings):
        key = class_name, str(settings)
        if key not in made:
            cls = getattr(transformers, class_name)
            sizes = V3 if class_name.startswith("DINOv3") else V2
            model = cls(cls.config_class(**{**sizes, **settings}))
            made[key] = save_random(model, tmp_path_factory.mktemp(class_name))
        return made[key]

    return save


def noise(size=(15, 15)):
    """Return seeded image tensors."""
    return list(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))


def library_output(class_name, folder, pixels):
    """What the library's own class gives: class scores or the pooled class token."""
    model = getattr(transformers, class_name).from_pretrained(folder, dtype=pixels.dtype).eval()
    with torch.no_grad():
        out = model(pixel_values=pixels)
    return out.logits if "logits" in out else out.pooler_output


@pytest.mark.parametrize("size", [(15, 15), (23, 31)], ids=["usual size", "another size"])
@pytest.mark.parametrize(("class_name", "settings"), MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_output_is_the_librarys(saved, class_name, settings, dtype, tolerance, size):
    folder = saved(class_name, settings)
    subject = load_subject(f"hf:{folder}", device="cpu", dtype=dtype)
    batch = subject.batch(noise(size))
    want = library_output(class_name, folder, batch.inputs)
    assert_near(subject.run(batch).value, want, class_name, tolerance)


@pytest.mark.parametrize(("class_name", "settings"), MODELS)
def test_exactness(saved, class_name, settings):
    subject = load_subject(f"hf:{saved(class_name, settings)}", device="cpu")
    batch = subject.batch(noise())
    for check in CHECKS:
        check(subject, batch)


def test_registers_stand_behind_the_class_token_without_a_position(saved):
    subject = load_subject(f"hf:{saved(*KINDS[1])}", device="cpu")
    seen = subject.run(subject.batch(noise()), capture=["hook_embed", "hook_pos_embed"]).captured
    assert subject.patch_index(6).tolist() == [-1, -2, -3, -4, 0, 1]
    assert_near(seen["hook_embed"][0, 1:4], subject.weights("registers"), "registers")
    assert not seen["hook_pos_embed"][:, 1:4].any()
    assert seen["hook_pos_embed"][:, [0, 4]].any()


def test_layer_scale_is_within_the_parts(saved):
    subject = load_subject(f"hf:{saved(*KINDS[0])}", device="cpu")
    seen = subject.run(subject.batch(noise()), capture=["blocks.1.*"]).captured
    heads = seen["blocks.1.attn.hook_result"].sum(2) + subject.weights("b_O", 1)
    assert_near(heads * subject.weights("ls1", 1), seen["blocks.1.hook_attn_out"], "attention")
    inner = seen["blocks.1.mlp.hook_post"] @ subject.weights("W_out", 1) + subject.weights("b_out", 1)
    assert_near(inner * subject.weights("ls2", 1), seen["blocks.1.hook_mlp_out"], "MLP")


def test_only_patches_are_rotated(saved):
    subject = load_subject(f"hf:{saved(*KINDS[2])}", device="cpu")
    seen = subject.run(subject.batch(noise()), capture=["blocks.0.attn.*"]).captured
    plain, turned = seen["blocks.0.attn.hook_q"], seen["blocks.0.attn.hook_rot_q"]
    assert torch.equal(plain[:, :5], turned[:, :5])
    assert not torch.isclose(plain[:, 5:9], turned[:, 5:9]).all(-1).any()
    assert_near(turned.norm(dim=-1), plain.norm(dim=-1), "length")


def test_a_fused_swiglu_is_split_into_views():
    from workbench.subjects.dino_convert import DINO_FAMILIES

    fused = torch.arange(12.0).reshape(6, 2)
    state = translate({"encoder.layer.7.mlp.weights_in.weight": fused}, DINO_FAMILIES["dinov2"], "x")
    assert list(state) == ["stack.blocks.7.mlp.gate.weight", "stack.blocks.7.mlp.inner.weight"]
    assert torch.equal(torch.cat(list(state.values())), fused)
    assert state["stack.blocks.7.mlp.inner.weight"].untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
