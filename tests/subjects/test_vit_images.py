"""Image processing with Pillow: equal to the library's own Pillow processors, bit by bit."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from workbench.errors import UserError
from workbench.subjects.images import ImageProcessor, open_image
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random

LIBRARY = {"CLIP": "clip", "ViT": "vit", "DeiT": "deit", "Bit": "bit"}
SHAPES = [(300, 451), (60, 61), (31, 400), (224, 224), (301, 260)]
CHANGES = [
    {},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_resize": False},
    {"size": {"height": 50, "width": 31}},
    {"resample": 0},
    {"image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.5},
]


def picture(height, width, mode="RGB"):
    """Return seeded noise."""
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def library_processor(kind):
    """Return the library's class that needs no torchvision, wherever this version keeps it."""
    name = LIBRARY[kind]
    for module, suffix in ((f"image_processing_pil_{name}", "Pil"), (f"image_processing_{name}", "")):
        try:
            found = importlib.import_module(f"transformers.models.{name}.{module}")
        except ImportError:
            continue
        return getattr(found, f"{kind}ImageProcessor{suffix}")
    raise AssertionError(f"transformers {transformers.__version__} has no Pillow processor for {kind}")


@pytest.mark.parametrize("kind", LIBRARY)
@pytest.mark.parametrize(
    "changes", CHANGES[:1] + [pytest.param(c, marks=pytest.mark.slow) for c in CHANGES[1:]], ids=str
)
def test_pixels_are_the_librarys(kind, changes):
    theirs = library_processor(kind)(**changes)
    ours = ImageProcessor.from_settings(theirs.to_dict(), 3, "model")
    for shape in SHAPES:
        want = np.asarray(theirs(images=picture(*shape), return_tensors="np")["pixel_values"])[0]
        assert np.array_equal(ours(picture(*shape)).numpy(), want.astype(np.float32)), shape


def test_dinov3_resizes_what_is_rescaled():
    ours = ImageProcessor.from_settings({"image_processor_type": "DINOv3ViTImageProcessorFast"}, 3, "model")
    values = torch.from_numpy(np.asarray(picture(300, 451)).copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(values, (224, 224), mode="bilinear", antialias=True)[0]
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(ours(picture(300, 451)), (small - mean) / std)


@pytest.mark.parametrize(
    ("settings", "resize", "crop"),
    [
        pytest.param(
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 99, "crop_size": 88}, 99, (88, 88), id="old CLIP"
        ),
        pytest.param({"feature_extractor_type": "ViTFeatureExtractor", "size": 99}, (99, 99), None, id="old ViT"),
        pytest.param({"image_processor_type": "BitImageProcessorFast"}, 224, (224, 224), id="fast"),
    ],
)
def test_older_and_newer_files(settings, resize, crop):
    found = ImageProcessor.from_settings(settings, 3, "model")
    assert (found.resize, found.crop) == (resize, crop)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"image_processor_type": "ConvNextImageProcessor"}, "supported: CLIP, Bit, DeiT", id="kind"),
        pytest.param({}, "image processor ''", id="none"),
        pytest.param(
            {"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, "resizes images to", id="size"
        ),
        pytest.param(
            {"image_processor_type": "CLIPImageProcessor", "crop_size": {"shortest_edge": 9}}, "crops images", id="crop"
        ),
    ],
)
def test_settings_that_are_not_understood(settings, says):
    with pytest.raises(UserError, match=says):
        ImageProcessor.from_settings(settings, 3, "model")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_colours(mode):
    image = Image.new("I;16", (30, 40)) if mode == "I;16" else picture(40, 30, mode)
    pixels = ImageProcessor.for_kind("CLIP", (15, 15), 3)(image)
    assert pixels.shape == (3, 15, 15)
    assert ImageProcessor.for_kind("ViT", (15, 9), 1)(image).shape == (1, 15, 9)


def test_files_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(20, 30).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 30)


def test_the_checkpoints_own_processor_is_read(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=15, patch_size=5))
    save_random(model, tmp_path)
    usual = load_subject(f"hf:{tmp_path}", device="cpu")
    assert usual.processor.std == (0.5, 0.5, 0.5)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 15, "width": 15},
        "image_std": [1, 1, 1],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    own = load_subject(f"hf:{tmp_path}", device="cpu")
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "other.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    nested = load_subject(f"hf:{tmp_path}", device="cpu")
    assert own.processor.std == nested.processor.std == (1, 1, 1)
    assert own.tokenizer_fingerprint() == nested.tokenizer_fingerprint() != usual.tokenizer_fingerprint()
    own.save_tokenizer(tmp_path)
    assert json.loads((tmp_path / "image_processor.json").read_text())["std"] == [1, 1, 1]
    assert own.fingerprint() == usual.fingerprint()


def test_a_damaged_file_of_settings_is_named(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    save_random(transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=15, patch_size=5)), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    subject = load_subject(f"hf:{tmp_path}", device="cpu")
    with pytest.raises(UserError, match=r"preprocessor_config.json is no JSON file"):
        subject.batch([picture(20, 20)])
