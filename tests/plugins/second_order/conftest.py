"""A tiny CLIP of random weights with a tokenizer, and a folder of images with classes and masks."""

import numpy as np
import pytest
import tokenizers
import transformers
from PIL import Image

from workbench.testing.checkpoints import save_random

WORDS = ["a", "photo", "of", "red", "blue", "square", "disc", "dog", "cat", "tree", "bright", "dark"]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Save the model; returns its folder."""
    folder = tmp_path_factory.mktemp("second-order") / "clip"
    vocabulary = {"<unk>": 0, "<start>": 1, "<end>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config={**text, "pad_token_id": 2}, vision_config=vision, projection_dim=6)
    save_random(transformers.CLIPModel(config), folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    names = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Make 60 images in two folders, a bright square in each, and a folder of masks; returns both folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(60):
        kind = ("red", "blue")[number % 2]
        pixels = rng.integers(0, 90, (16, 16, 3))
        top, left = rng.integers(0, 9, 2)
        pixels[top : top + 7, left : left + 7, 0 if kind == "red" else 2] += 150
        mask = np.zeros((16, 16), np.uint8)
        mask[top : top + 7, left : left + 7] = 1
        for place, values in (("images", pixels), ("masks", mask)):
            (root / place / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(root / place / kind / f"{number}.png")
    return root / "images", root / "masks"
