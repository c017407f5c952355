"""The built-in kinds of subject models: the zoo, TransformerLens and Hugging Face."""

from __future__ import annotations

from workbench.hookspecs import hookimpl
from workbench.plugin import LoadOptions, SubjectSource
from workbench.subjects.protocol import Subject


def load_zoo(name: str, options: LoadOptions) -> Subject:
    """Load a small subject that ships with the package."""
    from workbench.zoo.loading import load_zoo

    return load_zoo(name, device=options.device, dtype=options.dtype)


def zoo_names() -> list[str]:
    """List the zoo."""
    from workbench.zoo.shelf import zoo_names

    return zoo_names()


def load_transformer_lens(name: str, options: LoadOptions) -> Subject:
    """Load a model that TransformerLens knows by name."""
    from workbench.subjects.tl_source import load

    return load(name, device=options.device, dtype=options.dtype, device_map=options.device_map)


def load_hugging_face(name: str, options: LoadOptions) -> Subject:
    """Load a Hugging Face model by name or from a local folder."""
    from workbench.subjects.hf_source import load

    return load(name, device=options.device, dtype=options.dtype, device_map=options.device_map)


@hookimpl
def provide_subjects() -> list[SubjectSource]:
    """Offer ``zoo:``, ``tl:`` and ``hf:``."""
    return [
        SubjectSource("zoo", "small subjects with ground truth, shipped with the package", load_zoo, zoo_names),
        SubjectSource("tl", "any language model that TransformerLens loads, such as tl:gpt2", load_transformer_lens),
        SubjectSource(
            "hf",
            "a Hugging Face language model, BERT-style encoder, CLIP, ViT or DINO, by name or folder; "
            "#vision or #text names a tower of CLIP",
            load_hugging_face,
        ),
    ]
