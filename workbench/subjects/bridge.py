"""Language models of Hugging Face, hooked under TransformerLens's names."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.bridge_attention import CURRENT, Pass, tap_attention
from workbench.subjects.bridge_map import ModelParts, map_parts
from workbench.subjects.bridge_survey import survey
from workbench.subjects.bridge_weights import BLOCK_ROLES, block_weight
from workbench.subjects.bridge_weights import outer_weights as weights_of_model
from workbench.subjects.bridge_wiring import wire
from workbench.subjects.protocol import Batch, TokenWindow
from workbench.subjects.tape import Tape
from workbench.subjects.taped import TapedSubject, hash_of_tensors
from workbench.subjects.tokenization import HuggingFaceText, pad_windows

# Fields of a Hugging Face configuration that decide nothing about the numbers of a forward pass.
INCIDENTAL = {"architectures", "dtype", "id2label", "label2id", "return_dict", "torch_dtype", "use_cache"}


class BridgeSubject(TapedSubject):
    """A causal language model of Hugging Face, its parts named by TransformerLens's TransformerBridge.

    The forward pass is the library's own, with its own weights: logits are the plain library's bit for bit. The hook
    points are those that are seen in a first pass over a few tokens; an architecture whose parts do not sum to its
    residual stream there is refused.

    Hook points after a norm (``ln1.hook_normalized``) show what the norm gives, weight and bias included.
    ``attn.hook_q`` and ``attn.hook_k`` come before a norm of queries and keys and before rotation,
    ``attn.hook_rot_q`` and ``attn.hook_rot_k`` after both. ``hook_embed`` is the embedding's output; Gemma multiplies
    it before block 0.

    Parameters
    ----------
    address : str
        Recorded in stores and runs.
    model : transformers.PreTrainedModel
        In evaluation mode, on its devices, in its dtype. Its weights are frozen and its attention function replaced by
        one that does the same and can be looked into.
    tokenizer : transformers.PreTrainedTokenizerFast, optional
        Without one the subject takes token ids only.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        The library's model; it may be called, and then does what it did before.
    device_map : dict of str to device
        Where accelerate has put which module; all under the name ``""`` where the model is on one device.
    parts : ModelParts
        Its modules by their parts.

    Raises
    ------
    UserError
        If the architecture is not supported, or weights are kept off the devices (on disk).
    """

    modality = "text"
    causal = True
    layer_roles = BLOCK_ROLES

    def __init__(self, address: str, model: Any, tokenizer: Any | None = None) -> None:
        self.address = address
        self.model = model.eval().requires_grad_(False)
        self.config_record = _config_record(model.config)  # before the attention function is replaced
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UserError(f"{address} does not fit: some of its weights stay off the devices; give it more devices")
        self.parts: ModelParts = map_parts(model, address)
        blocks = wire(self.parts)
        tapped = tap_attention(model, {block.parts.attn: block.tap for block in blocks})
        if not tapped:
            raise UserError(f"{address} is a {type(model).__name__}, whose attention cannot be looked into")
        weight: Any = self.parts.embed.weight
        self.device, self.dtype, self.n_vocab = weight.device, weight.dtype, int(weight.shape[0])
        self.device_map: dict[str, Any] = getattr(model, "hf_device_map", {"": self.device})
        self.n_layers, self.d_model = len(self.parts.blocks), self.parts.d_model
        self.n_heads, self.d_head = self.parts.n_heads, self.parts.d_head
        self.n_key_value_heads = self.parts.n_key_value_heads
        self.n_context = _n_context(model.config)
        self.hook_points = survey(self)
        widths = [point.shape[-1] for name, point in self.hook_points.items() if name.endswith("mlp.hook_post")]
        self.d_mlp = widths[0] or 0 if widths else 0
        self.text = None if tokenizer is None else HuggingFaceText(tokenizer, self.n_context)
        self.tokenizer = tokenizer

    # --- copies -----------------------------------------------------------------------------------------------------
    def rebuilt(self, config: Any, fit: Callable[[Tensor, torch.Size], Tensor]) -> BridgeSubject:
        """Return a subject of the same class with another configuration, or with other weights.

        Parameters
        ----------
        config : transformers.PretrainedConfig
            Of the new model; kept by it.
        fit : function
            ``fit(weight, shape)`` gives the new model's weight from this one's, for every parameter and buffer.

        Raises
        ------
        UserError
            If the model is spread over devices.
        """
        from accelerate import init_empty_weights

        if len(self.device_map) > 1:
            raise UserError(f"{self.address} is spread over devices, and cannot be copied from there")
        with init_empty_weights(include_buffers=False):
            model = type(self.model)(config)
        held = self.model.state_dict()
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        model.load_state_dict({name: fit(held[name], shape) for name, shape in wanted.items()}, assign=True)
        model.tie_weights()
        return BridgeSubject(self.address, model.to(self.device), self.tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> BridgeSubject:
        """Copy the weights. Hooks are made anew: copied ones would go on reading the weights of this model."""
        return self.rebuilt(copy.deepcopy(self.model.config), lambda weight, _: weight.clone())

    # --- identity -------------------------------------------------------------------------------------------------
    def fingerprint(self) -> str:
        """See `Subject.fingerprint`: the configuration, and names, dtypes, shapes and bytes of all parameters."""
        return hash_of_tensors(self.config_record, self.model.named_parameters())

    def tokenizer_fingerprint(self) -> str:
        """See `Subject.tokenizer_fingerprint`."""
        return "none" if self.text is None else self.text.fingerprint()

    # --- input ----------------------------------------------------------------------------------------------------
    def _text(self) -> HuggingFaceText:
        if self.text is None:
            raise UserError(
                f"{self.address} has no tokenizer: give token ids, or put tokenizer.json beside the weights"
            )
        return self.text

    def batch(self, examples: Sequence[Any]) -> Batch:
        """See `Subject.batch`; without a tokenizer, token ids or `TokenWindow`s only."""
        if self.text is None and not any(isinstance(example, str) for example in examples):
            windows = [example if isinstance(example, TokenWindow) else _bare(example) for example in examples]
            batch = pad_windows(windows, 0, self.n_context)
        else:
            batch = self._text().batch(examples)
        low, high = int(batch.inputs.min()), int(batch.inputs.max())
        if low < 0 or high >= self.n_vocab:
            raise UserError(f"token id {low if low < 0 else high}: {self.address} has ids 0 to {self.n_vocab - 1}")
        return batch.to(self.device)  # only now: to look at what is on a device is to wait for it

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """See `Subject.windows`."""
        return self._text().windows(text, n_context)

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """See `Subject.decode`."""
        return self._text().decode(tokens)

    def save_tokenizer(self, folder: Any) -> None:
        """See `Subject.save_tokenizer`."""
        self._text().save(folder)

    # --- forward --------------------------------------------------------------------------------------------------
    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Run the library's forward pass past a tape; returns logits [batch, pos, vocab].

        No mask is handed on: padding is on the right, so no real position sees it, and positions count from the left.
        """
        token = CURRENT.set(Pass(tape))
        try:
            logits: Tensor = self.model(input_ids=batch.inputs, use_cache=False, return_dict=True).logits
        finally:
            CURRENT.reset(token)
        return tape("hook_output", logits)

    # --- weights --------------------------------------------------------------------------------------------------
    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `TapedSubject`."""
        return weights_of_model(self.parts)

    def layer_weight(self, role: str, layer: int) -> Tensor | None:
        """See `TapedSubject`.

        Beyond the common roles there are ``ln1_post.w`` and ``ln2_post.w`` (norms behind attention and MLP),
        ``q_norm.w`` and ``k_norm.w``. Gemma's norms multiply by one plus their weight; the weight is given as the
        checkpoint has it.
        """
        return block_weight(self.parts, self.parts.blocks[layer], role)


def _bare(tokens: Sequence[int]) -> TokenWindow:
    ids = np.asarray(tokens, dtype=np.int64)
    return TokenWindow(ids, np.zeros(len(ids), dtype=bool), np.full((len(ids), 2), -1, dtype=np.int64))


def _n_context(config: Any) -> int:
    """Longest sequence; models that know no limit (ALiBi) are given 2048."""
    for name in ("n_positions", "max_position_embeddings", "max_seq_len", "seq_length"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return 2048


def _config_record(config: Any) -> str:
    fields = config.to_dict()
    kept = {name: value for name, value in fields.items() if name not in INCIDENTAL and not name.startswith("_")}
    kept.pop("transformers_version", None)
    return json.dumps(kept, sort_keys=True, default=str)
