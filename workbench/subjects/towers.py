"""Hugging Face encoders and vision and text towers, loaded as subjects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from workbench.errors import UserError
from workbench.subjects.clip import CLIP_FAMILIES, TextTower
from workbench.subjects.dino_convert import DINO_FAMILIES
from workbench.subjects.encoder import Encoder
from workbench.subjects.encoder_convert import ENCODER_FAMILIES
from workbench.subjects.encoder_pooling import read_pooling
from workbench.subjects.encoder_subject import SentenceEncoder, TextSubject
from workbench.subjects.images import ImageProcessor
from workbench.subjects.sources import resolve_device
from workbench.subjects.stacked import HookedNetwork, StackedSubject
from workbench.subjects.tokenization import HuggingFaceText
from workbench.subjects.towers_convert import Family, build_empty, fill, translate
from workbench.subjects.vit import VisionArchitecture, VisionTransformer
from workbench.subjects.vit_convert import VIT_FAMILIES
from workbench.subjects.vit_subject import VisionSubject

Tower = Literal["vision", "text"]
FAMILIES: dict[str, Family | dict[str, Family]] = {**ENCODER_FAMILIES, **CLIP_FAMILIES, **VIT_FAMILIES, **DINO_FAMILIES}
DEVICE_MAPS = "auto", "balanced", "sequential"
PROCESSORS = {"clip": "CLIP", "vit": "ViT", "deit": "DeiT", "dinov2": "Bit", "dinov3_vit": "DINOv3ViT"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")

log = logging.getLogger(__name__)


def load_tower(
    name: str,
    tower: Tower | None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    device_map: str | None = None,
    address: str | None = None,
) -> StackedSubject:
    """Load an encoder, a vision tower or a text tower.

    What `Output.value` holds: for BERT-style encoders, hidden states [batch, pos, d_model], or logits
    [batch, pos, vocab] of a checkpoint saved with a masked-language-model head; other heads are left out. For CLIP, the
    embedding [batch, embedding], before it is divided by its length; for a tower saved without projection, its pooled
    token [batch, d_model]. For ViT, DeiT and DINO, class scores [batch, class] of a classifier, else what the pooler
    gives [batch, d_pooled], else the class token after the last norm [batch, d_model]. Images of another size than the
    checkpoint's are taken; learned positions are stretched as the library does when asked to.

    Parameters
    ----------
    name : str
        A local folder, or a name on the model hub. Weights must be safetensors; code in the checkpoint is never run.
    tower : "vision" or "text", optional
        Which tower of a model that has two; for the others, what they are or None.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    dtype : str, optional
        ``float32``, ``float64``, ``float16`` or ``bfloat16``; the checkpoint's own if not given.
    device_map : str, optional
        Spread the blocks over devices, as accelerate does: ``auto``, ``balanced``, ``sequential``.
    address : str, optional
        Recorded in stores and runs; by default ``hf:NAME``.

    Raises
    ------
    UserError
        If the model cannot be read, is of a kind that is not supported, or has two towers and none is named.
    """
    import transformers

    checkpoint = Checkpoint(name)
    with quiet(transformers), explained(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    family = find_family(config.model_type, tower, name)
    address = address or f"hf:{name}" + (f"#{tower}" if tower else "")
    network = load_network(family, config, name, dtype)
    place(network, device, device_map)
    if isinstance(network, VisionTransformer):
        return VisionSubject(address, network, partial(checkpoint.processor, config.model_type, network.arch))
    if isinstance(network, TextTower):
        n_context = network.arch.n_positions
        return TextSubject(address, network, checkpoint.text(n_context), n_context)
    assert isinstance(network, Encoder)
    padding = network.arch.padding
    n_context = network.arch.n_positions - (0 if padding is None else padding + 1)
    pooling = partial(read_pooling, checkpoint.read_json, name)
    return SentenceEncoder(address, network, checkpoint.text(n_context), n_context, pooling)


def find_family(model_type: str, tower: str | None, name: str) -> Family:
    """Return what to make of a model type, checking the tower asked for."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise UserError(f"{name} is a {model_type!r} model; encoders and towers: {', '.join(sorted(FAMILIES))}")
    if isinstance(family, dict):
        if tower not in family:
            both = " or ".join(f"hf:{name}#{each}" for each in sorted(family, reverse=True))
            raise UserError(f"{name} has two towers, each a subject of its own: write {both}")
        return family[tower]
    if tower not in (None, family.modality):
        raise UserError(f"{name} is a {family.modality} model without a {tower} tower: write hf:{name}")
    return family


def load_network(family: Family, config: Any, name: str, dtype: str | None) -> HookedNetwork:
    """Load a checkpoint with the library's class and move its tensors, uncopied, into a network of ours."""
    import transformers

    library_class = getattr(transformers, family.library_class(config.architectures), None)
    if library_class is None:
        raise UserError(f"transformers {transformers.__version__} has no {family.base}: a newer version is needed")
    with quiet(transformers), explained(name):
        model, report = library_class.from_pretrained(
            name,
            dtype="auto" if dtype is None else getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    absent = set(report["missing_keys"])  # made up by the library, not in the checkpoint
    loaded = {key: tensor for key, tensor in model.state_dict().items() if key not in absent}
    state = translate(loaded, family, name)
    network = build_empty(lambda: family.build(config, state, name))
    fill(network, state, name)
    return network


def place(network: HookedNetwork, device: str, device_map: str | None) -> None:
    """Move a network to a device, or spread it over several with whole blocks on each."""
    if device_map is None:
        network.to(resolve_device(device))
        return
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device_map not in DEVICE_MAPS:
        raise UserError(f"device map {device_map!r}: must be {', '.join(DEVICE_MAPS)}")
    if device != "auto":
        raise UserError(f"device {device!r} and device map {device_map!r}: give one of them")
    whole = ["Front", "Block"]
    dtype = next(network.parameters()).dtype
    memory = None
    if device_map != "sequential":
        memory = get_balanced_memory(network, no_split_module_classes=whole, dtype=dtype)
    spread = infer_auto_device_map(network, max_memory=memory, no_split_module_classes=whole, dtype=dtype)
    dispatch_model(network, spread)


class Checkpoint:
    """The small files beside a checkpoint's weights.

    Parameters
    ----------
    name : str
        A local folder, or a name on the model hub.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, filename: str) -> Path | None:
        """Return where a file is, fetched if need be; None if the checkpoint does not have it."""
        folder = Path(self.name)
        if folder.is_dir():
            return folder / filename if (folder / filename).is_file() else None
        from transformers.utils import cached_file

        try:
            found = cached_file(self.name, filename)
        except OSError:
            return None
        return None if found is None else Path(found)

    def read_json(self, filename: str) -> Any:
        """Return a JSON file's content; None if the checkpoint does not have it."""
        path = self.find(filename)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.name}: {filename} is no JSON file: {error}") from None

    def text(self, n_context: int) -> HuggingFaceText | None:
        """Return the tokenizer; None for a checkpoint saved without one."""
        if not any(self.find(filename) for filename in TOKENIZER_FILES):
            return None
        import transformers

        with quiet(transformers), explained(self.name):
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
        return HuggingFaceText(tokenizer, n_context)

    def processor(self, model_type: str, arch: VisionArchitecture) -> ImageProcessor:
        """Return the image processor; the family's usual one for a checkpoint saved without."""
        settings = self.read_json("preprocessor_config.json")
        if settings is None:
            settings = (self.read_json("processor_config.json") or {}).get("image_processor")
        if settings is not None:
            return ImageProcessor.from_settings(settings, arch.n_channels, self.name)
        kind = next(kind for start, kind in PROCESSORS.items() if model_type.startswith(start))
        height, width = arch.image_size
        log.warning(
            "%s was saved without an image processor: images are made %d x %d with %s's usual settings",
            *(self.name, height, width, kind),
        )
        return ImageProcessor.for_kind(kind, arch.image_size, arch.n_channels)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's progress bars and its remarks on unused weights, which are checked here, off the terminal."""
    logging_ = transformers.utils.logging
    level, bars = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(level)
        if bars:
            logging_.enable_progress_bar()


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what the library raises for a model it cannot read into a message."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()
        raise UserError(f"model {name!r} cannot be loaded: {first[0] if first else error!r}") from error
