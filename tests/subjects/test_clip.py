"""CLIP's two towers: equal to the library, and to themselves under edits."""

import shutil

import pytest
import tokenizers
import torch
import transformers

from workbench.errors import UserError
from workbench.subjects.protocol import Batch
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import CHECKS, assert_near

SEQUENCES = [[3, 5, 6, 7, 39], [3, 9, 39]]
TEXT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "eos_token_id": 39,
    "bos_token_id": 3,
    "pad_token_id": 39,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 15,
    "patch_size": 4,
}
EITHER = [pytest.param({}, id="quick-gelu")] + [
    pytest.param(settings, id=str(number), marks=pytest.mark.slow)
    for number, settings in enumerate(
        [
            {"hidden_act": "gelu", "hidden_size": 36, "num_attention_heads": 9},
            {"hidden_act": "gelu_new", "num_attention_heads": 1, "num_hidden_layers": 3},
            {"hidden_act": "relu", "hidden_size": 16, "num_attention_heads": 8, "layer_norm_eps": 1e-3},
        ]
    )
]
DTYPES = [("float32", 1e-4), ("float64", 1e-10)]


def both_towers(projection=11, text=None, vision=None):
    """Make CLIP."""
    config = transformers.CLIPConfig(
        text_config={**TEXT, **(text or {})}, vision_config={**VISION, **(vision or {})}, projection_dim=projection
    )
    return transformers.CLIPModel(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One CLIP, saved."""
    return save_random(both_towers(), tmp_path_factory.mktemp("clip"))


def images(n=2, size=15):
    """Return seeded noise."""
    return list(torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)))


def padded(sequences, pad=39):
    """Token ids and mask of sequences, filled up on the right."""
    longest = max(len(ids) for ids in sequences)
    tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    return {"input_ids": tokens, "attention_mask": mask}


def features(out):
    """The embedding, which older versions of the library return bare."""
    return out if isinstance(out, torch.Tensor) else out.pooler_output


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("settings", EITHER)
def test_embeddings_are_the_librarys(tmp_path, settings, dtype, tolerance):
    save_random(both_towers(7, settings, settings), tmp_path)
    library = transformers.CLIPModel.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    text = load_subject(f"hf:{tmp_path}#text", device="cpu", dtype=dtype)
    vision = load_subject(f"hf:{tmp_path}#vision", device="cpu", dtype=dtype)
    seen = vision.batch(images())
    with torch.no_grad():
        want_text = features(library.get_text_features(**padded(SEQUENCES)))
        want_vision = features(library.get_image_features(pixel_values=seen.inputs))
    assert_near(text.run(text.batch(SEQUENCES)).value, want_text, "text", tolerance)
    assert_near(vision.run(seen).value, want_vision, "vision", tolerance)
    assert text.hook_points["hook_output"].shape == vision.hook_points["hook_output"].shape == (None, 7)


@pytest.mark.parametrize("settings", EITHER)
def test_exactness(tmp_path, settings):
    save_random(both_towers(5, settings, settings), tmp_path)
    text, vision = (load_subject(f"hf:{tmp_path}#{tower}", device="cpu") for tower in ("text", "vision"))
    for check in CHECKS:
        check(text, text.batch(SEQUENCES))
        check(vision, vision.batch(images()))


def test_the_norm_before_the_blocks_is_the_first_part(folder):
    subject = load_subject(f"hf:{folder}#vision", device="cpu")
    seen = subject.run(subject.batch(images()), capture=["*"]).captured
    assert torch.equal(seen["ln_pre.hook_normalized"], seen["blocks.0.hook_resid_pre"])
    norm = torch.nn.functional.layer_norm(
        seen["hook_embed"] + seen["hook_pos_embed"], (20,), subject.weights("ln_pre.w"), subject.weights("ln_pre.b")
    )
    assert_near(norm, seen["ln_pre.hook_normalized"], "ln_pre")
    assert_near(seen["ln_final.hook_normalized"][:, 0], seen["hook_pooled"], "hook_pooled")
    assert_near(seen["hook_pooled"] @ subject.weights("W_proj"), seen["hook_output"], "hook_output")


ALONE = [
    ("CLIPVisionModel", {**VISION}, "pooler_output"),
    ("CLIPVisionModelWithProjection", {**VISION, "projection_dim": 6}, "image_embeds"),
    ("CLIPTextModel", {**TEXT, "eos_token_id": 2}, "pooler_output"),
    ("CLIPTextModelWithProjection", {**TEXT, "projection_dim": 6}, "text_embeds"),
]


@pytest.mark.parametrize(("class_name", "settings", "field"), ALONE, ids=[case[0] for case in ALONE])
def test_a_tower_saved_alone(tmp_path, class_name, settings, field):
    cls = getattr(transformers, class_name)
    save_random(cls(cls.config_class(**settings)), tmp_path)
    subject = load_subject(f"hf:{tmp_path}", device="cpu", dtype="float64")
    batch = subject.batch(images() if subject.modality == "vision" else SEQUENCES)
    given = {"pixel_values": batch.inputs} if subject.modality == "vision" else padded(SEQUENCES)
    with torch.no_grad():
        want = cls.from_pretrained(tmp_path, dtype=torch.float64).eval()(**given)[field]
    assert_near(subject.run(batch).value, want, class_name, 1e-10)


@pytest.mark.parametrize("end", [39, 2, 17], ids=["newer rule", "old rule", "absent"])
@pytest.mark.parametrize("pad", [39, 0, 38])
def test_the_pooled_token_is_the_librarys_whatever_the_padding(tmp_path, end, pad):
    save_random(both_towers(text={"eos_token_id": end}), tmp_path)
    subject = load_subject(f"hf:{tmp_path}#text", device="cpu")
    sequences = [[3, 5, 39, 7, 39, 8], [3, 9, 39], [3, 4, 5, 6]]
    library = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    ours = subject.batch(sequences)
    ours = Batch(ours.inputs.masked_fill(~ours.mask, pad), ours.mask, ours.special)
    with torch.no_grad():
        alone = [features(library.get_text_features(input_ids=torch.tensor([ids]))) for ids in sequences]
    assert_near(subject.run(ours).value, torch.cat(alone), "pooled")


def test_without_a_tower_both_addresses_are_named(folder):
    with pytest.raises(UserError) as error:
        load_subject(f"hf:{folder}", device="cpu")
    assert f"hf:{folder}#vision or hf:{folder}#text" in str(error.value)
    with pytest.raises(UserError, match="#"):
        load_subject(f"hf:{folder}#audio", device="cpu")


def test_a_tower_does_not_keep_the_other(folder):
    text, vision = (load_subject(f"hf:{folder}#{tower}", device="cpu") for tower in ("text", "vision"))
    assert (text.address, vision.address) == (f"hf:{folder}#text", f"hf:{folder}#vision")
    assert text.fingerprint() != vision.fingerprint()
    total = sum(parameter.numel() for parameter in both_towers().parameters()) - 1  # the temperature is neither's
    kept = sum(parameter.numel() for tower in (text, vision) for parameter in tower.network.parameters())
    assert kept == total


def test_dtype_and_device_map_reach_the_loader(folder):
    subject = load_subject(f"hf:{folder}#text", dtype="bfloat16", device_map="auto")
    assert subject.dtype is torch.bfloat16
    assert subject.run(subject.batch(SEQUENCES)).value.dtype is torch.bfloat16
    if not torch.cuda.is_available():
        assert subject.network.hf_device_map == {"": "cpu"}


@pytest.fixture
def with_tokenizer(folder, tmp_path):
    """CLIP with a tokenizer of words that starts and ends texts, and pads with the end."""
    words = ["a", "the", "red", "blue", "square", "circle", "is", "above"]
    vocabulary = {"<unk>": 0, "<start>": 3, "<end>": 39, **{word: 4 + i for i, word in enumerate(words)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 3), ("<end>", 39)]
    )
    names = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    shutil.copytree(folder, tmp_path / "clip")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_texts_are_embedded_as_the_library_embeds_them(with_tokenizer):
    texts = ["a red square", "the blue circle is above the red square", ""]
    tokenizer = transformers.AutoTokenizer.from_pretrained(with_tokenizer)
    library = transformers.CLIPModel.from_pretrained(with_tokenizer).eval()
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = features(library.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"]))
    subject = load_subject(f"hf:{with_tokenizer}#text", device="cpu")
    batch = subject.batch(texts)
    assert_near(subject.run(batch).value, want, "texts")
    assert batch.special.sum(1).tolist() == [2, 2, 2]
    with pytest.raises(UserError, match="12"):
        subject.batch(["red " * 20])
