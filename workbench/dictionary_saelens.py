"""Dictionaries in SAELens's layout, ``cfg.json`` and ``sae_weights.safetensors``: versions 3 to 6 read, 6 written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.dictionary import Activation, Dictionary, Normalisation
from workbench.errors import UserError, nearest

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.0.0"  # of the layout that is written
ACTIVATIONS: dict[str, Activation] = {
    "topk": "topk",
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
"""SAELens's architectures, and what they are here; a BatchTopK autoencoder is saved by SAELens as a JumpReLU one."""

ARCHITECTURES: dict[tuple[Activation, bool], str] = {
    ("topk", False): "topk",
    ("relu", False): "standard",
    ("jumprelu", False): "jumprelu",
    ("relu", True): "transcoder",
    ("jumprelu", True): "jumprelu_transcoder",
}
"""By activation, and whether another hook point is written than read."""

NORMALISATIONS: dict[Any, Normalisation] = {
    None: "none",
    False: "none",
    True: "none",
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_norm",
    # these two are folded into the weights when training ends; SAELens itself does nothing about them in use
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
}
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
PROCESSING = ("fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")  # TransformerLens's, off the stream
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float64)}
OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}  # before SAELens 6


# --- reading ------------------------------------------------------------------------------------------------------
def from_saelens(config: Mapping[str, Any], tensors: Mapping[str, Tensor], address: str) -> Dictionary:
    """Turn SAELens's configuration and weights into a dictionary with the same activations and reconstructions.

    Parameters
    ----------
    config : mapping
        Of ``cfg.json``, from SAELens 3 to 6.
    tensors : mapping of str to Tensor
        Of ``sae_weights.safetensors``: W_enc [width, latents], W_dec [latents, width], b_enc, b_dec, threshold, …
    address : str
        For messages.

    Raises
    ------
    UserError
        For an architecture, a normalisation or a head of a hook point that is not supported, and missing weights.

    Notes
    -----
    Weights come in the configuration's dtype. A gated autoencoder has its gate and its magnitude from one product; it
    is the JumpReLU one whose threshold is the magnitude at which the gate opens (Rajamanoharan et al. 2024). One that
    was trained on a residual stream that TransformerLens had centred takes each row's mean off, and gives it back.
    """
    config = {OLD_NAMES.get(key, key): value for key, value in config.items()}
    meta = config.get("metadata") or {}
    architecture = config.get("architecture", "standard")
    k = config.get("k")
    if config.get("activation_fn") == "topk":  # before SAELens 6 a TopK autoencoder was a standard one
        architecture, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ACTIVATIONS:
        raise UserError(f"dictionary {address}: architecture {architecture!r}; supported: {', '.join(ACTIVATIONS)}")
    normalised = config.get("normalize_activations")
    if normalised not in NORMALISATIONS:
        raise UserError(f"dictionary {address}: inputs normalised by {normalised!r} are not supported")
    transcoder = "transcoder" in architecture
    if transcoder and NORMALISATIONS[normalised] != "none":  # SAELens brings nothing back that a transcoder writes
        raise UserError(
            f"dictionary {address}: a transcoder whose inputs are normalised ({normalised}) is not supported"
        )
    hook = meta.get("hook_name") or config.get("hook_name")
    if not hook:
        raise UserError(f"dictionary {address}: its configuration names no hook point (hook_name)")
    if (head := meta.get("hook_head_index", config.get("hook_head_index"))) is not None:
        raise UserError(f"dictionary {address} reads head {head} of {hook} alone, which is not supported")
    processed = meta.get("model_from_pretrained_kwargs") or config.get("model_from_pretrained_kwargs") or {}
    normalisation = _on_plain_weights(NORMALISATIONS[normalised], processed, hook, transcoder, address)
    dtype = DTYPES.get(str(config.get("dtype", "float32")).removeprefix("torch."), torch.float32)
    scaling = tensors.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise UserError(f"dictionary {address}: it was fine-tuned with a scaling factor, which is not supported")
    try:
        parts = _encoder(architecture, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    except KeyError as missing:
        raise UserError(f"dictionary {address} is incomplete: {missing.args[0]} is missing") from None
    if config.get("rescale_acts_by_decoder_norm"):  # selection by score times decoder norm, decoding with unit rows
        norms = parts["W_dec"].norm(dim=1)
        parts |= {"W_enc": parts["W_enc"] * norms[:, None], "b_enc": parts["b_enc"] * norms}
        parts["W_dec"] = parts["W_dec"] / norms[:, None]
    centred = config.get("apply_b_dec_to_input", True) and not transcoder
    return Dictionary(
        W_enc=parts["W_enc"].contiguous(),
        b_enc=parts["b_enc"],
        W_dec=parts["W_dec"].contiguous(),
        b_dec=parts["b_dec"],
        b_pre=parts["b_dec"] if centred else parts["W_enc"].new_zeros(parts["W_enc"].shape[1]),
        activation=ACTIVATIONS[architecture],
        hook_in=hook,
        hook_out=(meta.get("hook_name_out") or hook) if transcoder else hook,
        k=k if architecture == "topk" else None,
        threshold=parts.get("threshold"),
        normalisation=normalisation,
        subject_address=meta.get("workbench_subject_address")
        or meta.get("model_name")
        or config.get("model_name")
        or "",
        subject_fingerprint=meta.get("workbench_subject_fingerprint") or "",
        address=address,
    )


def _on_plain_weights(
    normalisation: Normalisation, processed: Mapping[str, Any], hook: str, transcoder: bool, address: str
) -> Normalisation:
    """Return how rows of a subject with the checkpoint's own weights are brought to those that it was trained on.

    What writes into the residual stream may have been centred (``center_writing_weights``): then so is the stream, and
    nothing else about it differs.
    """
    in_stream = hook.rsplit(".", 1)[-1] in STREAM
    done = [name for name in PROCESSING if processed.get(name)] if not in_stream or transcoder else []
    if processed.get("center_writing_weights") and in_stream:
        if normalisation == "none" and not transcoder:
            return "centre"
        if normalisation != "layer_norm":  # which takes the mean off anyway
            done.append("center_writing_weights")
    if done:
        raise UserError(
            f"dictionary {address} was trained on {hook} of a model whose weights were processed "
            f"({', '.join(done)}); here they are the checkpoint's own, and its inputs would be others"
        )
    return normalisation


def _encoder(architecture: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return W_enc, b_enc, W_dec, b_dec and the threshold, if any, of SAELens's weights, as `Dictionary` has them."""
    parts = {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    if architecture == "gated":
        gain = tensors["r_mag"].exp()
        return {
            **parts,
            "W_enc": parts["W_enc"] * gain[:, None],
            "b_enc": tensors["b_mag"],
            "threshold": tensors["b_mag"] - gain * tensors["b_gate"],
        }
    parts["b_enc"] = tensors["b_enc"]
    if ACTIVATIONS[architecture] == "jumprelu":
        old = tensors.get("log_threshold")
        parts["threshold"] = tensors["threshold"] if old is None else old.exp()
    return parts


def from_release(address: str) -> Dictionary:
    """Download ``saelens:RELEASE/ID`` with sae_lens; a release may be a repository of the hub, ``USER/NAME``.

    Raises
    ------
    UserError
        If SAELens knows no such release or identifier (the nearest three are named), or it cannot be downloaded.
    """
    release, _, name = address.removeprefix("saelens:").partition("/")
    if not release or not name:
        example = "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre"
        raise UserError(f"dictionary {address!r}: write saelens:RELEASE/ID, such as {example}")
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known and name.count("/"):  # a repository of the hub has a slash in its name
        repository, _, name = name.partition("/")
        release = f"{release}/{repository}"
    if release in known:
        if name not in known[release].saes_map:
            near = nearest(name, known[release].saes_map)
            raise UserError(f"dictionary {address!r}: release {release} has no {name!r}; nearest: {near}")
    elif "/" not in release:
        raise UserError(
            f"dictionary {address!r}: SAELens has no release {release!r}; nearest: {nearest(release, known)}"
        )
    try:
        with warnings.catch_warnings():  # of weights that were processed: `from_saelens` sees to that
            warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
            sae = SAE.from_pretrained(release, name)
    except Exception as error:  # whatever the hub, the network or one of many converters raises
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"dictionary {address!r}: sae_lens could not download it ({type(error).__name__}: {cause[0]}); without a "
            "network, give a folder with cfg.json and sae_weights.safetensors"
        ) from error
    return from_saelens(sae.cfg.to_dict(), dict(sae.state_dict()), address)


# --- writing ------------------------------------------------------------------------------------------------------
def save_saelens(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary so that ``sae_lens.SAE.load_from_disk`` gives the same activations and reconstructions.

    Parameters
    ----------
    dictionary : Dictionary
        Its `scale` is folded into the weights; so is its pre-bias, where it is neither zero nor the decoder's bias.
    folder : Path
        Made if missing.

    Raises
    ------
    UserError
        For a TopK transcoder, a dictionary of several hook points, a transcoder that normalises rows: SAELens has none.
    """
    config, tensors = to_saelens(dictionary)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def to_saelens(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return SAELens's configuration and weights; see `save_saelens`."""
    transcoder = dictionary.hook_in != dictionary.hook_out
    if max(len(dictionary.hooks_in), len(dictionary.hooks_out)) > 1:
        raise UserError(
            f"dictionary {dictionary.address} reads {dictionary.hook_in} and reconstructs {dictionary.hook_out}: "
            "SAELens has nothing that takes several hook points at once"
        )
    architecture = ARCHITECTURES.get((dictionary.activation, transcoder))
    if architecture is None:
        raise UserError(f"dictionary {dictionary.address}: SAELens has no {dictionary.activation} transcoder")
    scale = dictionary.scale
    W_enc, b_enc = scale * dictionary.W_enc, dictionary.b_enc
    centred = not transcoder and torch.equal(dictionary.b_pre, dictionary.b_dec)
    if not centred:
        b_enc = b_enc - dictionary.W_enc @ dictionary.b_pre
    tensors = {
        "W_enc": W_enc.T,
        "b_enc": b_enc,
        "W_dec": dictionary.W_dec / scale,
        "b_dec": dictionary.b_dec / scale,
    }
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": dictionary.width,
        "d_sae": dictionary.n_latents,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": centred,
        "normalize_activations": _normalisation(dictionary),
        "reshape_activations": "hook_z" if dictionary.hook_in.endswith("hook_z") and not transcoder else "none",
    }
    if architecture == "topk":
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if transcoder:
        config["d_out"] = len(dictionary.b_dec)
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": _model_name(dictionary.subject_address),
        "hook_name": dictionary.hook_in,
        "workbench_subject_address": dictionary.subject_address,
        "workbench_subject_fingerprint": dictionary.subject_fingerprint,
    }
    if dictionary.normalisation == "centre":
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    if transcoder:
        metadata["hook_name_out"] = dictionary.hook_out
    return config | {"metadata": metadata}, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _normalisation(dictionary: Dictionary) -> str:
    names = {"none": "none", "centre": "none", "layer_norm": "layer_norm", "unit_norm": "constant_norm_rescale"}
    if dictionary.normalisation != "none" and dictionary.hook_in != dictionary.hook_out:
        raise UserError(f"dictionary {dictionary.address}: SAELens's transcoders do not normalise rows")
    return names[dictionary.normalisation]


def _model_name(address: str) -> str:
    """Return what SAELens calls a subject: the name without our scheme, as far as that is a model it can load."""
    scheme, colon, name = address.partition(":")
    return name if colon and scheme in ("tl", "hf") else address
