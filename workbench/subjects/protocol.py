"""What every subject model offers: hook points, batches, one forward pass, weights by role."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workbench.generation import Generation

Modality = Literal["text", "vision"]


@dataclass(frozen=True)
class HookPoint:
    """A named activation of a subject model, spelled as in TransformerLens.

    Attributes
    ----------
    name : str
        For example ``blocks.3.hook_resid_post``.
    axes : tuple of str
        One word per axis: ``batch``, ``pos``, ``head``, ``query``, ``key``, ``d_model``, ``d_head``, ``d_mlp``,
        ``vocab``, ...
    shape : tuple of (int or None)
        Size of each axis; None where the batch decides (batch, pos, query, key).
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class TokenWindow:
    """One sequence: a window of a document, short enough for the subject.

    Attributes
    ----------
    tokens : int64 array [pos]
        Token ids, special tokens included, never padding.
    special : bool array [pos]
        True at tokens that the tokenizer adds by itself (beginning of sequence, CLS, SEP, ...).
    offsets : int64 array [pos, 2]
        Start and end character of each token in the document's text; -1, -1 at special tokens.
    """

    tokens: np.ndarray
    special: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Model input, padded on the right.

    Attributes
    ----------
    inputs : Tensor
        Token ids [batch, pos] int64, or pixels [batch, channel, height, width] in the subject's dtype.
    mask : bool Tensor [batch, pos]
        False at padding. For images every position (class token, registers, patches) is True.
    special : bool Tensor [batch, pos]
        True at special tokens: beginning of sequence, CLS and SEP, or a class token and registers.
    extra : mapping of str to Tensor
        What else the model takes (token types), each [batch, ...].
    """

    inputs: Tensor
    mask: Tensor
    special: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return int(self.inputs.shape[0])

    def to(self, device: Any) -> Batch:
        """Return the batch with every tensor on `device`; on the way there the host does not wait."""
        from workbench.transfer import to_device

        inputs, mask, special = (to_device(each, device) for each in (self.inputs, self.mask, self.special))
        extra = {name: to_device(value, device) for name, value in self.extra.items()}
        return replace(self, inputs=inputs, mask=mask, special=special, extra=extra)


@dataclass(frozen=True)
class At:
    """Where an edit is applied: the hook point and the batch that is running."""

    hook_point: HookPoint
    batch: Batch


Edit = Callable[["Tensor", At], "Tensor"]
Edits = Mapping[str, "Edit | Sequence[Edit]"]


@dataclass(frozen=True)
class Output:
    """What a forward pass gave.

    Attributes
    ----------
    value : Tensor or None
        Logits [batch, pos, vocab] of a language model, hidden states, embedding or class scores of the others
        (``hook_output``). None if the pass was stopped before its end.
    captured : dict of str to Tensor
        Each captured hook point, edits applied.
    """

    value: Tensor | None
    captured: dict[str, Tensor]


class Subject(ABC):
    """A network under study.

    Attributes
    ----------
    address : str
        Where it was loaded from: ``zoo:pycode``, ``tl:gpt2``, ``hf:folder#vision``.
    modality : "text" or "vision"
        What `batch` takes.
    causal : bool
        True where position i sees positions up to i only, and `value` are next-token logits.
    n_layers, d_model, n_heads, n_key_value_heads, d_head, d_mlp : int
        Sizes. `d_mlp` is 0 for an attention-only model.
    n_context : int
        Longest sequence, special tokens included.
    hook_points : dict of str to HookPoint
        All hook points, in the order in which a forward pass reaches them.
    device, dtype : torch.device, torch.dtype
        Where inputs go, and what activations come out as.
    tokenizer : object or None
        Text subjects: the tokenizer (`encode`/`decode` through `windows` and `decode`).
    """

    address: str
    modality: Modality
    causal: bool
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    n_context: int
    hook_points: dict[str, HookPoint]
    device: Any
    dtype: Any
    tokenizer: Any = None

    # --- identity -------------------------------------------------------------------------------------------------
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of architecture and weights (as the checkpoint has them, whatever device they are on)."""

    @abstractmethod
    def tokenizer_fingerprint(self) -> str:
        """Return a hash of the tokenizer or the image processor."""

    # --- input ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def batch(self, examples: Sequence[Any]) -> Batch:
        """Pad examples into one batch on the subject's device.

        Parameters
        ----------
        examples : sequence
            Text subjects: strings (tokenized as the tokenizer starts a text), or each a `TokenWindow` or a sequence of
            token ids (taken as they are). Vision subjects: PIL images, paths, or float tensors [channel, height, width]
            already processed.
        """

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """Cut a text into sequences of at most `n_context` tokens, each starting as the tokenizer starts a text."""
        raise UserError(f"{self.address} is a {self.modality} model and has no tokenizer")

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token id, one by one, as a person would read it (spaces kept)."""
        raise UserError(f"{self.address} is a {self.modality} model and has no tokenizer")

    def save_tokenizer(self, folder: Any) -> None:
        """Write into `folder` what is needed to show a token without the model (``tokenizer.json`` or alike)."""
        raise UserError(f"{self.address} is a {self.modality} model and has no tokenizer")

    def patch_index(self, n_positions: int | None = None) -> np.ndarray:
        """Return where each position lies in the image, int64 [pos].

        Patches count from 0 in reading order; -1 is the class token, -2 and below are registers.

        Parameters
        ----------
        n_positions : int, optional
            Length of the sequence, for images of another size; by default `n_context`.
        """
        raise UserError(f"{self.address} is a {self.modality} model and has no patches")

    # --- forward --------------------------------------------------------------------------------------------------
    @abstractmethod
    def run(
        self,
        batch: Batch,
        capture: Sequence[str] = (),
        edits: Edits | None = None,
        grad: bool = False,
        stop_after: str | None = None,
    ) -> Output:
        """Run one forward pass.

        Parameters
        ----------
        batch : Batch
            From `batch`.
        capture : sequence of str
            Hook points (or patterns with ``*``) whose activations are returned.
        edits : mapping of hook point, or pattern, to function, or to a list of functions
            ``fn(activation, at)`` returns a tensor of the same shape; applied in the order given.
        grad : bool
            Keep the graph, so that captured values can be differentiated.
        stop_after : str, optional
            Stop once this hook point has been reached; `value` is None then.

        Raises
        ------
        UserError
            For an unknown hook point, or an edit that returns None or another shape.
        """

    def capture(self, batch: Batch, hook_points: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations at some hook points; runs no more of the model than that needs."""
        names = self.expand(hook_points)
        order = {name: i for i, name in enumerate(self.hook_points)}
        return self.run(batch, capture=names, stop_after=max(names, key=order.__getitem__)).captured

    def intervene(self, batch: Batch, edits: Edits) -> Tensor:
        """Return the output under edits."""
        value = self.run(batch, edits=edits).value
        assert value is not None
        return value

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        stop: str | None = None,
        edits: Edits | None = None,
        seed: int = 0,
    ) -> Generation | list[Generation]:
        """Let a causal language model go on from a prompt, or from each of several.

        ``subject.generate("four days after Monday it is", max_new_tokens=1, edits=dictionary.steer(12, by=8.0))``;
        see `workbench.generation.generate`.
        """
        from workbench.generation import generate

        return generate(
            self, prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop, edits=edits, seed=seed
        )

    def expand(self, hook_points: Iterable[str]) -> list[str]:
        """Resolve names and ``*`` patterns to hook points, in forward order, without repeats.

        Raises
        ------
        UserError
            If a name or pattern matches nothing; the message names the three nearest.
        """
        wanted: set[str] = set()
        for pattern in hook_points:
            found = {pattern} if pattern in self.hook_points else set(fnmatch.filter(self.hook_points, pattern))
            if not found:
                near = nearest(pattern, self.hook_points)
                all_of_them = f"all: workbench models {self.address}"
                raise UserError(f"{self.address} has no hook point {pattern!r}; nearest: {near} ({all_of_them})")
            wanted |= found
        if not wanted:
            raise UserError("no hook point given; for example --hook 'blocks.*.hook_resid_post'")
        return [name for name in self.hook_points if name in wanted]

    # --- weights --------------------------------------------------------------------------------------------------
    @abstractmethod
    def weights(self, role: str, layer: int | None = None, expand: bool = False) -> Tensor:
        """Return a weight by its role, as the checkpoint has it (a view where possible: editing it edits the model).

        Parameters
        ----------
        role : str
            Per layer: ``W_Q`` [head, d_model, d_head], ``W_K``, ``W_V`` [kv_head, d_model, d_head],
            ``W_O`` [head, d_head, d_model], ``b_Q`` [head, d_head], ``b_K``, ``b_V`` [kv_head, d_head],
            ``b_O`` [d_model], ``W_in``, ``W_gate`` [d_model, d_mlp], ``b_in`` [d_mlp], ``W_out`` [d_mlp, d_model],
            ``b_out``, ``ln1.w``, ``ln1.b``, ``ln2.w``, ``ln2.b`` [d_model], ``ls1``, ``ls2`` [d_model] (layer scale).
            Of the whole model: ``W_E`` [vocab, d_model], ``W_pos`` [pos, d_model], ``W_U`` [d_model, vocab],
            ``b_U`` [vocab], ``ln_pre.w``, ``ln_final.w`` (likewise ``.b``), ``W_proj`` [d_model, embedding] (CLIP),
            ``W_head`` [d_pooled, class], ``W_pool`` [d_model, d_pooled] (with ``b_head``, ``b_pool``); of images,
            ``W_E`` [channel * height * width of a patch, d_model], ``class_token``, ``registers`` [pos, d_model], ...
        layer : int, optional
            For the roles of one layer.
        expand : bool
            Repeat the key and value heads of grouped-query attention, so that each head has its own.

        Raises
        ------
        UserError
            For a role that the model does not have; the message lists those it has.
        """

    def weight_or_none(self, role: str, layer: int | None = None) -> Tensor | None:
        """Return a weight by its role, see `weights`; None where the model has none."""
        try:
            return self.weights(role, layer)
        except UserError:
            return None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.address!r}, {self.n_layers} layers, width {self.d_model}, "
            f"{self.n_heads} heads, {len(self.hook_points)} hook points)"
        )
