"""Subjects of two towers, an image's and a text's, that share one embedding: small CLIPs of the zoo."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.subjects.architecture import Architecture
from workbench.subjects.clip import TextTower, TextTowerArchitecture
from workbench.subjects.images import ImageProcessor
from workbench.subjects.protocol import Batch
from workbench.subjects.sources import resolve_device
from workbench.subjects.stacked import HookedNetwork, StackedSubject
from workbench.subjects.tape import Tape
from workbench.subjects.vit import VisionArchitecture, VisionTransformer
from workbench.subjects.vit_subject import VisionSubject
from workbench.zoo.subject import ZooSubject
from workbench.zoo.text import ZooText

TOWERS = ("vision", "text")
START_TEMPERATURE = 0.07
LOWEST_TEMPERATURE = 0.01


@dataclass(frozen=True)
class TowersArchitecture:
    """Both towers' shapes; their heads are of one size."""

    vision: VisionArchitecture
    text: TextTowerArchitecture


class TwoTowers(nn.Module):
    """Both towers while they are trained, and the temperature of their similarities.

    Attributes
    ----------
    vision : VisionTransformer
    text : TextTower
    temperature : Parameter
        Its logarithm; left out of what ships.
    """

    def __init__(self, arch: TowersArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.vision, self.text = VisionTransformer(arch.vision), TextTower(arch.text)
        self.temperature = nn.Parameter(torch.tensor(START_TEMPERATURE).log())

    def similarities(self, images: Batch, texts: Batch) -> Tensor:
        """Return cosines over the temperature, float32 [image, text]."""
        one, other = (F.normalize(embed(*each).float(), dim=-1) for each in ((self.vision, images), (self.text, texts)))
        return one @ other.T / self.temperature.exp().clamp(min=LOWEST_TEMPERATURE)


def embed(tower: HookedNetwork, batch: Batch) -> Tensor:
    """Return embeddings [example, embedding], in the graph where there is one."""
    points = tower.hook_points()
    if not torch.is_grad_enabled():
        found: Tensor = tower(batch, Tape(points, batch))
        return found
    # Asked for, patterns are computed in the open: for short sequences the way back through torch's fused attention
    # takes about six times as long on a processor, in bfloat16.
    patterns = [name for name in points if name.endswith("attn.hook_pattern")]
    found = tower(batch, Tape(points, batch, capture=patterns, grad=True))
    return found


def contrastive_loss(similarities: Tensor, also_true: Tensor) -> Tensor:
    """Return the mean of -log p (nats) of each image's own text, and of each text's own image.

    Parameters
    ----------
    similarities : float Tensor [image, text]
        Image i and text i belong together; texts after the last image's are wrong answers only.
    also_true : bool Tensor [image, text]
        Where a text is true of an image, its own or not: other true pairs are no wrong answers, and are left out.
    """
    n_images = len(similarities)
    own = torch.eye(*similarities.shape, dtype=torch.bool)
    scores = similarities.masked_fill(also_true & ~own, -torch.inf)
    right = torch.arange(n_images)
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores[:, :n_images].T, right)) / 2


def answer_loss(similarities: Tensor, true: Tensor) -> Tensor:
    """Return the mean of -log of all the probability (nats) that an image gives to the texts that are true of it.

    Parameters
    ----------
    similarities : float Tensor [image, text]
        The texts are answers to one question.
    true : bool Tensor [image, text]
        At least one is right for each image.
    """
    right = similarities.masked_fill(~true, -torch.inf)
    return (similarities.logsumexp(1) - right.logsumexp(1)).mean()


def load_tower(folder: Path, name: str, tower: str, device: str = "auto", dtype: str | None = None) -> StackedSubject:
    """Load one tower of a folder of the zoo.

    Parameters
    ----------
    folder : Path
        With the four files.
    name : str
        For the address: ``zoo:NAME#TOWER``.
    tower : "vision" or "text"
        Which.
    device, dtype : str
        See `load_zoo`.

    Raises
    ------
    UserError
        If it is none of the two.
    """
    if tower not in TOWERS:
        both = " or ".join(f"zoo:{name}#{each}" for each in TOWERS)
        raise UserError(f"zoo:{name} has two towers, each a subject of its own: write {both}")
    architecture, processor = read_towers(folder / "architecture.json")
    network: HookedNetwork = (
        VisionTransformer(architecture.vision) if tower == "vision" else TextTower(architecture.text)
    )
    weights = load_file(folder / "model.safetensors")
    start = f"{tower}."
    network.load_state_dict({k.removeprefix(start): v.float() for k, v in weights.items() if k.startswith(start)})
    network.to(resolve_device(device), getattr(torch, dtype or "float32"))
    text = ZooText.load(folder / "tokenizer.json", architecture.text.n_positions)
    return as_subject(f"zoo:{name}#{tower}", network, text, processor)


def as_subject(address: str, network: HookedNetwork, text: ZooText, processor: ImageProcessor) -> StackedSubject:
    """Return a tower as a subject, with the image processor or the tokenizer."""
    if isinstance(network, VisionTransformer):
        return VisionSubject(address, network, lambda: processor)
    return ZooSubject(address, network, text)


@dataclass(frozen=True)
class Towers:
    """Both towers as subjects."""

    vision: StackedSubject
    text: StackedSubject

    @classmethod
    def of(cls, address: str, network: TwoTowers, text: ZooText, processor: ImageProcessor) -> Towers:
        """Return both towers of a network, with the tokenizer and the image processor."""
        towers: tuple[HookedNetwork, HookedNetwork] = network.vision, network.text
        return cls(*(as_subject(f"{address}#{n}", t, text, processor) for n, t in zip(TOWERS, towers, strict=True)))

    def fingerprint(self) -> str:
        """Return the vision tower's and the text tower's fingerprints as one text."""
        return f"{self.vision.fingerprint()} {self.text.fingerprint()}"

    def save_tokenizer(self, folder: Path) -> None:
        """Write ``tokenizer.json``."""
        self.text.save_tokenizer(folder)


def read_towers(path: Path) -> tuple[TowersArchitecture, ImageProcessor]:
    """Read what `write_towers` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    vision, text = ({**values[tower], "stack": Architecture(**values[tower]["stack"])} for tower in TOWERS)
    shape = {key: tuple(vision[key]) for key in ("image_size", "patch_size")}
    architecture = TowersArchitecture(VisionArchitecture(**{**vision, **shape}), TextTowerArchitecture(**text))
    image: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values["image"].items()
    }
    return architecture, ImageProcessor(**image)


def write_towers(architecture: TowersArchitecture, processor: ImageProcessor, path: Path) -> None:
    """Write both shapes and how an image becomes pixels, as JSON."""
    values: dict[str, Any] = {"kind": "towers", **asdict(architecture), "image": asdict(processor)}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
