"""How `zoo:shapes-clip` is made: an image tower and a text tower, trained to match rendered scenes with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from tokenizers import normalizers
from torch import Tensor

from workbench.datasets.shapes_captions import draw_caption, draw_questions, holds, vocabulary
from workbench.datasets.shapes_renderer import render
from workbench.datasets.shapes_scenes import SIZE, combinations, draw_scenes
from workbench.subjects.architecture import Architecture
from workbench.subjects.clip import TextTowerArchitecture
from workbench.subjects.images import BICUBIC, MEAN_HALF, ImageProcessor
from workbench.subjects.protocol import Batch
from workbench.subjects.tokenization import pad_windows
from workbench.subjects.vit import VisionArchitecture
from workbench.zoo.shapes_clip_measures import measure
from workbench.zoo.text import ZooText
from workbench.zoo.towers import Towers, TowersArchitecture, TwoTowers, answer_loss, contrastive_loss, write_towers
from workbench.zoo.trainer import Lesson, Recipe, initialise
from workbench.zoo.words import word_tokenizer

__all__ = ["ABOUT", "RECIPE", "ShapesLesson", "make_lesson", "measure"]

ABOUT = "image and text towers on rendered scenes: shape, colour, texture, place, one or two objects"
N_CONTEXT = 40
N_EMBEDDING = 64
TWO_SHARE = 0.6  # of the scenes
ANSWER_WEIGHT = 2.0
RECIPE = Recipe(
    seed=0, steps=2000, batch_size=128, lr=2e-3, weight_decay=0.05, warmup_steps=50, decay_share=1.0,
    betas=(0.9, 0.95), muon_lr=0.01, precision="bfloat16", checkpoint_every=50,
)  # fmt: skip
PATCH = 8
WAVE_SIZE = 0.3  # about what an embedded patch has
VISION = Architecture(n_layers=6, d_model=96, n_heads=4, d_head=24, d_mlp=512, activation="relu")
TEXT = Architecture(n_layers=3, d_model=128, n_heads=4, d_head=32, d_mlp=512, causal=True)
PROCESSOR = ImageProcessor(
    n_channels=3, resize=(SIZE, SIZE), resample=BICUBIC, crop=None, rescale=1 / 255, mean=MEAN_HALF, std=MEAN_HALF
)  # fmt: skip


def make_tokenizer() -> Any:
    """Return the tokenizer: a word, in any case of its letters, is a token; a text starts and ends with one more."""
    tokenizer = word_tokenizer(vocabulary(), end="<|end|>")
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


class Pairs(NamedTuple):
    """Images and captions of one step.

    Attributes
    ----------
    images, texts : Batch
        More texts than images: each image's own caption, then for each attribute one caption of each value.
    true : bool Tensor [image, text]
        Where a caption is true of an image.
    questions : list of slice
        Which texts are the captions of one attribute's values.
    """

    images: Batch
    texts: Batch
    true: Tensor
    questions: list[slice]


class ShapesLesson(Lesson):
    """Scenes and captions drawn afresh at each step; none shows a combination that is held out.

    Parameters
    ----------
    recipe : Recipe
        Its seed decides the scenes too.
    vision, text : Architecture
        Shapes of the towers' blocks.
    """

    loss_unit = "nats per image and text, the mean of both, plus twice nats per answer"

    def __init__(self, recipe: Recipe = RECIPE, *, vision: Architecture = VISION, text: Architecture = TEXT) -> None:
        self.recipe = recipe
        self.tokenizer = make_tokenizer()
        self.text = ZooText(self.tokenizer, N_CONTEXT)
        self.shown = combinations(held_out=False)
        n_vocab = self.tokenizer.get_vocab_size()
        self.architecture = TowersArchitecture(
            VisionArchitecture(
                vision,
                image_size=(SIZE, SIZE),
                patch_size=(PATCH, PATCH),
                patch_bias=False,
                norm_before=True,
                output="embedding",
                n_output=N_EMBEDDING,
                head_bias=False,
            ),
            TextTowerArchitecture(text, n_vocab, N_CONTEXT, end_of_text=1, n_embedding=N_EMBEDDING),
        )

    def fingerprint(self) -> str:
        """See `Lesson`: a hash of the first step's pixels and tokens."""
        pairs = self.examples(0)
        seen = pairs.images.inputs.numpy().tobytes() + pairs.texts.inputs.numpy().tobytes()
        return xxhash.xxh3_128_hexdigest(seen + self.tokenizer.to_str().encode())

    def examples(self, step: int) -> Pairs:
        """See `Lesson`."""
        rng = np.random.default_rng([self.recipe.seed, step])
        scenes = list(draw_scenes(rng, self.recipe.batch_size, self.shown, TWO_SHARE))
        captions = [draw_caption(rng, scene) for scene in scenes]
        questions = draw_questions(rng)
        ends = len(captions) + np.cumsum([0, *map(len, questions)])
        captions += [caption for question in questions for caption in question]
        true = holds(np.stack([c.claims for c in captions]), np.stack([scene.claims() for scene in scenes]))
        windows = [self.text.example(caption.text) for caption in captions]
        texts = pad_windows(windows, self.text.begin, N_CONTEXT)
        images = as_images(np.stack([render(scene)[0] for scene in scenes]))
        return Pairs(images, texts, torch.from_numpy(true.T), [*map(slice, ends[:-1], ends[1:])])

    def new_network(self) -> TwoTowers:
        """See `Lesson`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            network = TwoTowers(self.architecture)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        initialise(network.vision, self.architecture.vision.stack.n_layers, generator)
        initialise(network.text, self.architecture.text.stack.n_layers, generator)
        with torch.no_grad():
            network.vision.front.pos_embed[1:] = WAVE_SIZE * waves(self.architecture.vision)
        return network

    def loss(self, network: TwoTowers, examples: Pairs) -> Tensor:
        """See `Lesson`: images to captions and back, and the mean over attributes of each image's answers."""
        similarities = network.similarities(examples.images, examples.texts)
        n_captions = examples.questions[0].start
        matched = contrastive_loss(similarities[:, :n_captions], examples.true[:, :n_captions])
        answers = [answer_loss(similarities[:, each], examples.true[:, each]) for each in examples.questions]
        return matched + ANSWER_WEIGHT * torch.stack(answers).mean()

    def as_subject(self, address: str, network: TwoTowers) -> Towers:
        """See `Lesson`."""
        return Towers.of(address, network, self.text, PROCESSOR)

    def write_architecture(self, path: Path) -> None:
        """See `Lesson`."""
        write_towers(self.architecture, PROCESSOR, path)


def waves(arch: VisionArchitecture) -> Tensor:
    """Return where training starts for the positions of patches, [patch, d_model]: waves of several lengths.

    Random vectors of the usual size drown in what the patches hold, and places are then learned long after colours.
    """
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n) for n in arch.grid), indexing="ij")
    rates = torch.pi * 2 ** torch.linspace(-1, 3, arch.stack.d_model // 4)
    angles = torch.cat([place.reshape(-1, 1) * rates for place in (rows, columns)], dim=1)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def as_images(pictures: np.ndarray) -> Batch:
    """Return a batch from pictures, uint8 [image, height, width, channel]: what `PROCESSOR` makes of each."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).contiguous()
    n_positions = 1 + (pictures.shape[1] // PATCH) * (pictures.shape[2] // PATCH)
    mask = torch.ones(len(pictures), n_positions, dtype=torch.bool)
    return Batch(pixels, mask, (torch.arange(n_positions) == 0).expand_as(mask))


def make_lesson(recipe: Recipe = RECIPE) -> ShapesLesson:
    """Return the lesson of the shipped subject."""
    return ShapesLesson(recipe)
