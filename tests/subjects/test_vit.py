"""ViT and DeiT with classifier, pooler or neither: equal to the library, and to themselves under edits."""

import accelerate
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import CHECKS, assert_near

SIZES = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 15,
    "patch_size": 4,
}
KINDS = [
    ("ViTModel", {}, {"pooler_output_size": 9, "hidden_size": 15, "num_attention_heads": 3}),
    ("ViTModel", {"add_pooling_layer": False}, {"qkv_bias": False}),
    ("ViTForImageClassification", {}, {"num_labels": 5}),
    ("DeiTForImageClassificationWithTeacher", {}, {"num_labels": 5}),
]
SLOW_KINDS = [
    ("ViTForImageClassification", {}, {"hidden_size": 21, "num_attention_heads": 3, "hidden_act": "gelu_new"}),
    ("ViTForImageClassification", {}, {"num_labels": 0}),
    ("ViTForImageClassification", {}, {"image_size": 17, "patch_size": 5, "num_channels": 1, "hidden_act": "relu"}),
    ("ViTForMaskedImageModeling", {}, {"image_size": 16}),
    ("ViTModel", {}, {"pooler_act": "relu", "num_attention_heads": 20}),
    ("DeiTModel", {}, {}),
    ("DeiTForImageClassification", {}, {"num_labels": 3, "qkv_bias": False}),
]


def name_of(kind):
    """Short name of a case."""
    return "-".join([kind[0], *kind[1], *(f"{key}={value}" for key, value in kind[2].items())])


MODELS = [pytest.param(*kind, id=name_of(kind)) for kind in KINDS] + [
    pytest.param(*kind, id=name_of(kind), marks=pytest.mark.slow) for kind in SLOW_KINDS
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a model, made once for its class and settings."""
    made = {}

    def save(class_name, arguments, settings):
        key = class_name, str(arguments), str(settings)
        if key not in made:
            cls = getattr(transformers, class_name)
            model = cls(cls.config_class(**{**SIZES, **settings}), **arguments)
            made[key] = save_random(model, tmp_path_factory.mktemp(class_name))
        return made[key]

    return save


@pytest.fixture
def classifier(saved):
    """A small ViT classifier."""
    return load_subject(f"hf:{saved(*KINDS[2])}", device="cpu")


def noise(settings, n=2, size=None):
    """Return seeded image tensors that fit a model."""
    size = size or (settings.get("image_size", 15),) * 2
    shape = n, settings.get("num_channels", 3), *size
    return list(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def library_output(class_name, arguments, folder, pixels, **options):
    """What the library's own class gives: class scores, the pooler's output, or the class token."""
    model = getattr(transformers, class_name).from_pretrained(folder, dtype=pixels.dtype, **arguments).eval()
    if class_name.endswith("MaskedImageModeling"):
        model = model.vit
    with torch.no_grad():
        out = model(pixel_values=pixels, **options)
    if "logits" in out:
        return out.logits
    return out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output


@pytest.mark.parametrize(("class_name", "arguments", "settings"), MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_output_is_the_librarys(saved, class_name, arguments, settings, dtype, tolerance):
    folder = saved(class_name, arguments, settings)
    subject = load_subject(f"hf:{folder}", device="cpu", dtype=dtype)
    batch = subject.batch(noise(settings))
    want = library_output(class_name, arguments, folder, batch.inputs)
    assert_near(subject.run(batch).value, want, class_name, tolerance)


@pytest.mark.parametrize(("class_name", "arguments", "settings"), MODELS)
def test_exactness(saved, class_name, arguments, settings):
    subject = load_subject(f"hf:{saved(class_name, arguments, settings)}", device="cpu")
    batch = subject.batch(noise(settings))
    for check in CHECKS:
        check(subject, batch)


@pytest.mark.parametrize("size", [(15, 23), (16, 16), (31, 9)])
@pytest.mark.parametrize("kind", [KINDS[2], KINDS[3]], ids=["vit", "deit"])
def test_images_of_another_size_stretch_the_positions(saved, kind, size):
    folder = saved(*kind)
    subject = load_subject(f"hf:{folder}", device="cpu", dtype="float64")
    batch = subject.batch(noise({}, size=size))
    want = library_output(*kind[:2], folder, batch.inputs, interpolate_pos_encoding=True)
    assert_near(subject.run(batch).value, want, f"{size}", 1e-10)


def test_positions_are_class_token_registers_patches(saved):
    vit, deit = (load_subject(f"hf:{saved(*kind)}", device="cpu") for kind in (KINDS[2], KINDS[3]))
    assert vit.patch_index().tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert deit.patch_index().tolist() == [-1, -2, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert deit.patch_index(5).tolist() == [-1, -2, 0, 1, 2]
    batch = deit.batch(noise({}))
    assert batch.mask.all()
    assert torch.equal(batch.special[0], torch.from_numpy(deit.patch_index() < 0))


def test_patches_are_in_reading_order(classifier):
    image = torch.zeros(3, 15, 15)
    image[:, 4:8, 8:12] = 1.0  # second row, third column of patches
    both = classifier.batch([image, torch.zeros(3, 15, 15)])
    seen = classifier.capture(both, ["hook_embed"])["hook_embed"]
    changed = (seen[0] != seen[1]).any(-1)
    assert classifier.patch_index()[changed.numpy()].tolist() == [5]


def test_weights_of_the_whole_model(classifier):
    batch = classifier.batch(noise({}))
    seen = classifier.run(batch, capture=["*"]).captured
    patches = batch.inputs.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 48)
    want = patches @ classifier.weights("W_E") + classifier.weights("b_E")
    assert_near(seen["hook_embed"][:, 1:], want, "W_E")
    assert_near(seen["hook_embed"][:, 0], classifier.weights("class_token").expand(2, -1), "class_token")
    assert_near(seen["hook_pos_embed"][0], classifier.weights("W_pos"), "W_pos")
    head = seen["hook_pooled"] @ classifier.weights("W_head") + classifier.weights("b_head")
    assert_near(seen["hook_output"], head, "W_head")


def test_pictures_files_and_tensors_are_the_same(classifier, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    picture.save(tmp_path / "a.png")
    batch = classifier.batch([picture, tmp_path / "a.png", str(tmp_path / "a.png"), classifier.processor(picture)])
    assert batch.inputs.shape == (4, 3, 15, 15)
    assert all(torch.equal(pixels, batch.inputs[0]) for pixels in batch.inputs)


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        pytest.param([], "at least one", id="none"),
        pytest.param([torch.zeros(3, 15, 15), torch.zeros(3, 16, 15)], "all of the same size", id="two sizes"),
        pytest.param([torch.zeros(1, 15, 15)], "must be floating point \\[3, height, width\\]", id="one channel"),
        pytest.param([torch.zeros(3, 15, 15, dtype=torch.uint8)], "must be floating point", id="bytes"),
        pytest.param([torch.zeros(3, 3, 3)], "smaller than a patch", id="tiny"),
        pytest.param(["no/such/file.png"], "image 'no/such/file.png' cannot be read", id="no file"),
        pytest.param([__file__], "cannot be read", id="no image"),
        pytest.param([3], "int is no image", id="a number"),
    ],
)
def test_images_that_cannot_be_read(classifier, examples, says):
    with pytest.raises(UserError, match=says):
        classifier.batch(examples)


def test_a_vision_model_has_no_text(classifier):
    with pytest.raises(UserError, match="has no tokenizer"):
        classifier.windows("text")
    with pytest.raises(UserError, match="without a text tower"):
        load_subject(f"{classifier.address}#text", device="cpu")


def test_dtype_and_device_map_reach_the_loader(saved):
    subject = load_subject(f"hf:{saved(*KINDS[0])}", dtype="bfloat16", device_map="auto")
    batch = subject.batch(noise({}))
    assert subject.dtype is batch.inputs.dtype is torch.bfloat16
    assert subject.run(batch).value.dtype is torch.bfloat16


def test_a_network_spread_over_devices_gives_the_same(saved, classifier):
    spread = load_subject(f"hf:{saved(*KINDS[2])}", device="cpu")
    parts = [name for name, _ in spread.network.named_children() if name != "stack"]
    parts += [f"stack.blocks.{layer}" for layer in range(2)]
    accelerate.dispatch_model(spread.network, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    assert all(hasattr(block, "_hf_hook") for block in spread.network.stack.blocks)
    batch = classifier.batch(noise({}))
    want = classifier.run(batch, capture=["*"])
    got = spread.run(batch, capture=["*"])
    assert torch.equal(got.value, want.value)
    assert all(torch.equal(got.captured[name], want.captured[name]) for name in want.captured)
