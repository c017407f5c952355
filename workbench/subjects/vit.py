"""The vision transformer behind CLIP's vision tower, ViT, DeiT and DINO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.subjects.architecture import ACTIVATIONS, Activation, Architecture
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.stacked import HookedNetwork
from workbench.subjects.tape import Tape
from workbench.subjects.transformer import HookedLayerNorm, Rotary, Stack

Grid = tuple[int, int]

OUTPUT_ROLES = {"embedding": "W_proj", "class": "W_head", "pooled": "W_pool"}


@dataclass(frozen=True)
class VisionArchitecture:
    """A pre-norm stack over a class token, registers and patches.

    Attributes
    ----------
    stack : Architecture
        Of the blocks; with a `rotary_base`, patches are rotated by their place in the image (DINOv3).
    image_size, patch_size : (int, int)
        Height and width in pixels; what is left over at the right and bottom edge is not seen.
    n_channels : int
        Of a pixel.
    n_registers : int
        Extra tokens between class token and patches; DeiT's distillation token is one.
    placed_registers : bool
        Registers have learned positions, as the class token does.
    learned_positions : bool
        There is a learned embedding of the position.
    interpolation : "plain", "float32" or "antialias"
        How learned positions are stretched to another image size: bicubic in the model's dtype, bicubic in float32, or
        that with antialiasing.
    patch_bias, norm_before : bool
        The patch embedding has a bias; there is a norm before the blocks (CLIP).
    pooling : "class", "class+patches" or "class+register"
        What the head reads: the class token, it and the mean of the patches (DINOv2's classifier), or it and the first
        register, through a head each, averaged (DeiT's distilled classifier).
    output : "embedding", "class" or "pooled"
        What the head gives.
    n_output : int, optional
        Size of what it gives; None for no head: the output is the class token after the last norm.
    head_bias : bool
        The head has a bias.
    head_activation : str, optional
        Applied after the head (ViT's pooler).
    """

    stack: Architecture
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    n_channels: int = 3
    n_registers: int = 0
    placed_registers: bool = False
    learned_positions: bool = True
    interpolation: Literal["plain", "float32", "antialias"] = "plain"
    patch_bias: bool = True
    norm_before: bool = False
    pooling: Literal["class", "class+patches", "class+register"] = "class"
    output: Literal["embedding", "class", "pooled"] = "pooled"
    n_output: int | None = None
    head_bias: bool = True
    head_activation: Activation | None = None

    @property
    def n_prefix(self) -> int:
        """Number of positions before the first patch."""
        return 1 + self.n_registers

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches from top to bottom and from left to right, at the size of `image_size`."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def n_placed(self) -> int:
        """Number of positions before the first patch that have a learned embedding."""
        return self.n_prefix if self.placed_registers else 1


class Front(nn.Module):
    """Class token, registers, patches, and learned positions where there are any."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.arch = arch
        d = arch.stack.d_model
        self.class_token = nn.Parameter(torch.zeros(d))
        if arch.n_registers:
            self.registers = nn.Parameter(torch.zeros(arch.n_registers, d))
        self.patch_embed = nn.Conv2d(arch.n_channels, d, arch.patch_size, arch.patch_size, bias=arch.patch_bias)
        if arch.learned_positions:
            self.pos_embed = nn.Parameter(torch.zeros(arch.n_placed + math.prod(arch.grid), d))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Grid]:
        """pixels [batch, channel, height, width] -> embedding [batch, pos, d_model], positions alike, and the grid."""
        patches: Tensor = self.patch_embed(pixels.to(self.class_token.dtype))
        grid = patches.shape[2], patches.shape[3]
        tokens = [self.class_token[None], *([self.registers] if self.arch.n_registers else [])]
        prefix = [token.expand(len(pixels), -1, -1) for token in tokens]
        x = torch.cat([*prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        return x, self.positions(grid).expand_as(x) if self.arch.learned_positions else None, grid

    def positions(self, grid: Grid) -> Tensor:
        """Learned positions [pos, d_model], stretched to a grid of patches; zero for registers without one."""
        arch = self.arch
        placed, patches = self.pos_embed[: arch.n_placed], self.pos_embed[arch.n_placed :]
        if grid != arch.grid:
            image = patches.T.reshape(1, -1, *arch.grid)
            if arch.interpolation != "plain":
                image = image.float()
            smooth = arch.interpolation == "antialias"
            image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False, antialias=smooth)
            patches = image.to(patches.dtype).flatten(2)[0].T
        unplaced = placed.new_zeros(arch.n_prefix - arch.n_placed, arch.stack.d_model)
        return torch.cat([placed, unplaced, patches])


class VisionTransformer(HookedNetwork):
    """Class token, registers and patches through a stack; gives an embedding, class scores or the pooled token."""

    def __init__(self, arch: VisionArchitecture) -> None:
        super().__init__()
        self.arch = arch
        d, epsilon = arch.stack.d_model, arch.stack.norm_epsilon
        self.front = Front(arch)
        if arch.norm_before:
            self.ln_pre = HookedLayerNorm(d, eps=epsilon)
        self.stack = Stack(arch.stack)
        self.ln_final = HookedLayerNorm(d, eps=epsilon)
        if arch.n_output:
            self.head = nn.Linear(2 * d if arch.pooling == "class+patches" else d, arch.n_output, bias=arch.head_bias)
            if arch.pooling == "class+register":
                self.register_head = nn.Linear(d, arch.n_output, bias=arch.head_bias)

    def front_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        norm = [self.scale("ln_pre"), self.stream("ln_pre.hook_normalized")]
        names = ["hook_embed"] + ["hook_pos_embed"] * self.arch.learned_positions
        return [*(self.stream(name) for name in names), *(norm if self.arch.norm_before else [])]

    def back_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        arch, d = self.arch, self.arch.stack.d_model
        pooled = HookPoint("hook_pooled", ("batch", "d_pooled"), (None, d if arch.pooling == "class" else 2 * d))
        axis = {"pooled": "d_pooled"}.get(arch.output, arch.output) if arch.n_output else "d_model"
        output = HookPoint("hook_output", ("batch", axis), (None, arch.n_output or d))
        norm = [self.scale("ln_final"), self.stream("ln_final.hook_normalized")]
        return [*norm, *[pooled] * bool(arch.n_output), output]

    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Return an embedding, class scores or the pooled token, [batch, n_output]."""
        arch = self.arch
        x, positions, grid = self.front(batch.inputs)
        x = tape("hook_embed", x)
        if positions is not None:
            x = x + tape("hook_pos_embed", positions)
        if arch.norm_before:
            x = self.ln_pre.hooked(x, tape, "ln_pre.hook_scale", "ln_pre.hook_normalized")
        x = self.stack(x, batch.mask, tape, rotary=self.rotary(grid, x) if arch.stack.rotary_base else None)
        x = self.ln_final.hooked(x, tape, "ln_final.hook_scale", "ln_final.hook_normalized")
        return tape("hook_output", self.read_out(x, tape))

    def read_out(self, x: Tensor, tape: Tape) -> Tensor:
        """Pool x [batch, pos, d_model] and apply the head."""
        arch = self.arch
        token = x[:, 0].contiguous()  # as a copy of it would be: the head rounds by the layout of what it reads
        if not arch.n_output:
            return token
        if arch.pooling == "class+register":
            token, register = tape("hook_pooled", torch.cat([token, x[:, 1]], dim=1)).chunk(2, dim=1)
            scores: Tensor = (self.head(token) + self.register_head(register)) / 2
            return scores
        if arch.pooling == "class+patches":
            token = torch.cat([token, x[:, arch.n_prefix :].mean(1)], dim=1)
        out: Tensor = self.head(tape("hook_pooled", token))
        return ACTIVATIONS[arch.head_activation](out) if arch.head_activation else out

    def rotary(self, grid: Grid, like: Tensor) -> Rotary:
        """Angles of DINOv3: half of the pairs turn with the height, half with the width; prefix tokens do not turn.

        Coordinates are those of the patches' centres, from -1 to 1. Computed in float32, as the library does in every
        dtype (Siméoni et al., 2025).
        """
        assert self.arch.stack.rotary_base is not None
        device, kind = like.device, torch.float32
        axes = [2.0 * (torch.arange(0.5, n, device=device, dtype=kind) / n) - 1.0 for n in grid]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        share = torch.arange(0, 1, 4 / self.arch.stack.d_head, device=device, dtype=kind)
        angle = 2 * math.pi * place[:, :, None] * (1 / self.arch.stack.rotary_base**share)
        angle = torch.cat([angle.new_zeros(self.arch.n_prefix, angle.shape[1] * angle.shape[2]), angle.flatten(1)])
        return angle.cos(), angle.sin()

    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `HookedNetwork`."""
        arch, front = self.arch, self.front
        head, role = getattr(self, "head", None), OUTPUT_ROLES[arch.output]
        second = getattr(self, "register_head", None)
        return {
            "W_E": front.patch_embed.weight.flatten(1).T,
            "b_E": front.patch_embed.bias,
            "class_token": front.class_token,
            "registers": front.registers if arch.n_registers else None,
            "W_pos": front.pos_embed if arch.learned_positions else None,
            "ln_pre.w": self.ln_pre.weight if arch.norm_before else None,
            "ln_pre.b": self.ln_pre.bias if arch.norm_before else None,
            "ln_final.w": self.ln_final.weight,
            "ln_final.b": self.ln_final.bias,
            role: None if head is None else head.weight.T,
            role.replace("W", "b"): None if head is None else head.bias,
            "W_register_head": None if second is None else second.weight.T,
            "b_register_head": None if second is None else second.bias,
        }


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width where a configuration gives one number for both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
