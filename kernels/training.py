"""Training without dense gradients: matrices that keep their gradient as factors, and Adam that uses these at once.

The gradient of a matrix with a row per latent is a sum of outer products, codes times rows: k numbers and one row of
`width` for each row of the batch, where the matrix has latents × width. A `LatentMatrix` keeps the factors that the
backward pass brings; `FactoredAdam` sorts them by latent, and for each latent sums its gradient in the cache, moves the
moments and the weights, and forgets it. The numbers are those of `torch.optim.Adam` on dense gradients (rows without
an active latent included: their moments decay), up to the order of sums, which is fixed.

>>> import torch
>>> from workbench.kernels.training import FactoredAdam, LatentMatrix
>>> x, b_dec = torch.randn(256, 16), torch.zeros(16, requires_grad=True)
>>> encoder, decoder = LatentMatrix(torch.randn(64, 16), torch.zeros(64)), LatentMatrix(torch.randn(64, 16))
>>> adam = FactoredAdam({"encoder": encoder, "decoder": decoder}, {"b_dec": b_dec}, lr=1e-3)
>>> for _ in range(3):
...     values, indices = encoder.encode(x, 4, centre=b_dec)
...     error, left = decoder.decode_error(values.relu(), indices, b_dec, x)
...     error.mean().backward()
...     adam.step()
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import topk
from workbench.kernels.errors import KernelError
from workbench.kernels.updating import Factor, Moments, Settings, adam, move


class LatentMatrix:
    """A float32 matrix with a row per latent, trained from the factors of its gradient.

    Parameters
    ----------
    rows : Tensor [latents, width]
        Contiguous; trained in place.
    bias : Tensor [latents], optional
        A number per latent that is added to its score; trained in place.
    unit_rows : bool
        Keep rows at length 1: the part of the gradient along a row is taken away, and rows are rescaled after a step.

    Attributes
    ----------
    factors : list of Factor
        What backward passes have brought since the last step.

    Raises
    ------
    KernelError
        If shape, dtype or layout do not fit.
    """

    def __init__(self, rows: Tensor, bias: Tensor | None = None, *, unit_rows: bool = False) -> None:
        for name, tensor in {"rows": rows, "bias": rows[:, 0].clone() if bias is None else bias}.items():
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise KernelError(f"LatentMatrix: {name} is {tensor.dtype}, must be torch.float32 and contiguous")
        if rows.ndim != 2 or (bias is not None and bias.shape != rows.shape[:1]):
            shapes = f"rows {tuple(rows.shape)}" + ("" if bias is None else f" and bias {tuple(bias.shape)}")
            raise KernelError(f"LatentMatrix: {shapes}; must be [latents, width] and [latents]")
        self.rows, self.bias, self.unit_rows = rows.detach(), None if bias is None else bias.detach(), unit_rows
        self.factors: list[Factor] = []
        # Makes autograd call our backward functions also where no other input needs a gradient.
        self._handle = torch.zeros((), device=rows.device, requires_grad=True)

    def encode(
        self, x: Tensor, k: int, *, centre: Tensor | None = None, among: Tensor | None = None, taken: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Choose the k best latents of each row by x · rows + bias; see `workbench.kernels.topk.topk_encode`.

        Parameters
        ----------
        x : Tensor [rows, width]
            Differentiable.
        k : int
            Latents of a row.
        centre : Tensor [width], optional
            Taken from every row first; differentiable, at the price of one product of a vector with the matrix.
        among : int64 Tensor [n], optional
            Choose among these latents only.
        taken : bool
            The centre has been taken from `x` already, outside the graph.

        Returns
        -------
        values : Tensor [rows, k]
            Scores, before any ReLU.
        indices : int64 Tensor [rows, k]
            Latents, numbered in the whole matrix.
        """
        centred = x if centre is None or taken else x - centre.detach()
        values, indices = _Encode.apply(  # type: ignore[no-untyped-call]
            self._handle, x, centre, centred, self, k, among
        )
        return values, indices

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Sum rows of active latents; see `workbench.kernels.topk.sparse_decode`. Differentiable in `values`."""
        out: Tensor = _Decode.apply(self._handle, values, indices, self)  # type: ignore[no-untyped-call]
        return out

    def decode_error(self, values: Tensor, indices: Tensor, bias: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compare with a target; see `workbench.kernels.topk.decode_error`. Differentiable in all but `indices`."""
        error, left = _DecodeError.apply(  # type: ignore[no-untyped-call]
            self._handle, values, indices, bias, target, self
        )
        return error, left

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradient as it stands, dense: of the rows [latents, width] and of the bias [latents]."""
        rows, bias = torch.zeros_like(self.rows), self.rows.new_zeros(len(self.rows))
        for factor in self.factors:
            rows += topk.scatter_outer(factor.values, factor.indices, factor.rows, len(rows))
            bias += _per_latent(factor.values, factor.indices, len(rows))
        return rows, bias


def _per_latent(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """Sum values by latent, in row order."""
    return topk.scatter_outer(values, indices, values.new_ones(len(values), 1), n_latents).squeeze(1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, x: Tensor, centre: Tensor | None, centred: Tensor,
        matrix: LatentMatrix, k: int, among: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        bias = matrix.rows.new_zeros(len(matrix.rows)) if matrix.bias is None else matrix.bias
        if among is None:
            values, indices = topk.topk_encode(centred, matrix.rows, bias, k)
        else:
            values, places = topk.topk_encode(centred, matrix.rows[among], bias[among], k)
            indices = among[places]
        ctx.matrix = matrix
        ctx.save_for_backward(centred, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        centred, indices = ctx.saved_tensors
        matrix: LatentMatrix = ctx.matrix
        matrix.factors.append(Factor(grad, indices, centred))
        grad_x = topk.sparse_decode(grad, indices, matrix.rows) if ctx.needs_input_grad[1] else None
        grad_centre = None
        if ctx.needs_input_grad[2]:
            grad_centre = -(_per_latent(grad, indices, len(matrix.rows)) @ matrix.rows)
        return None, grad_x, grad_centre, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, values: Tensor, indices: Tensor, matrix: LatentMatrix) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(values, indices)
        return topk.sparse_decode(values, indices, matrix.rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices = ctx.saved_tensors
        matrix: LatentMatrix = ctx.matrix
        matrix.factors.append(Factor(values, indices, grad))
        grad_values = topk.gathered_dot(grad, indices, matrix.rows) if ctx.needs_input_grad[1] else None
        return None, grad_values, None, None


class _DecodeError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, handle: Tensor, values: Tensor, indices: Tensor, bias: Tensor, target: Tensor, matrix: LatentMatrix
    ) -> tuple[Tensor, Tensor]:
        error, left, dots = torch.ops.workbench.decode_error(values, indices, matrix.rows, bias, target)
        ctx.matrix = matrix
        ctx.save_for_backward(values, indices, left, dots)
        ctx.mark_non_differentiable(left)
        return error, left

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        values, indices, left, dots = ctx.saved_tensors
        twice = 2 * grad[:, None]
        ctx.matrix.factors.append(Factor(-twice * values, indices, left))
        wants_bias, wants_target = ctx.needs_input_grad[3:5]
        # A row vector times a matrix: the rows are not scaled one by one first.
        grad_bias = -(twice.squeeze(1) @ left) if wants_bias else None
        return None, -twice * dots, None, grad_bias, twice * left if wants_target else None, None


class FactoredAdam:
    """Adam (Kingma & Ba 2015), with the numbers of `torch.optim.Adam`, for matrices that keep factored gradients.

    Parameters
    ----------
    matrices : mapping of str to LatentMatrix
        By name; their factors are used up by `step`.
    others : mapping of str to Tensor
        Leaves with ordinary gradients in ``.grad``, which `step` uses and sets to None.
    lr, betas, eps : float, pair of float, float
        As for `torch.optim.Adam`.
    """

    def __init__(
        self,
        matrices: Mapping[str, LatentMatrix],
        others: Mapping[str, Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if both := sorted(set(matrices) & set(others)):
            raise KernelError(f"FactoredAdam: {both[0]!r} names a matrix and another tensor")
        self.matrices, self.others = dict(matrices), dict(others)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.steps = 0
        self._moments = {name: Moments.of(m.rows, m.bias) for name, m in self.matrices.items()}
        self._first = {name: torch.zeros_like(tensor) for name, tensor in self.others.items()}
        self._second = {name: torch.zeros_like(tensor) for name, tensor in self.others.items()}

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Move everything against its gradient.

        Parameters
        ----------
        lr : float, optional
            Learning rate of this step and those that follow.
        """
        self.lr = self.lr if lr is None else lr
        self.steps += 1
        settings = Settings(self.lr, *self.betas, self.eps, self.steps)
        for name, matrix in self.matrices.items():
            move(matrix.rows, matrix.bias, self._moments[name], matrix.factors, settings, unit_rows=matrix.unit_rows)
            matrix.factors = []
        for name, tensor in self.others.items():
            if tensor.grad is not None:
                adam(tensor, tensor.grad, self._first[name], self._second[name], settings)
                tensor.grad = None

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents, int64 [n], to zero in every matrix."""
        for moments in self._moments.values():
            for tensor in moments.named().values():
                tensor[latents] = 0

    def state(self) -> dict[str, Tensor]:
        """Return moments and number of steps by name: references, to be saved or overwritten."""
        found = {"steps": torch.tensor(self.steps)}
        for name, moments in self._moments.items():
            found |= {f"{part}.{name}": tensor for part, tensor in moments.named().items()}
        for name in self.others:
            found |= {f"first.{name}": self._first[name], f"second.{name}": self._second[name]}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave.

        Raises
        ------
        KernelError
            If something is missing or has another shape.
        """
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                got = tuple(state[name].shape) if name in state else "missing"
                raise KernelError(f"FactoredAdam: state {name!r} is {got}, must be {tuple(tensor.shape)}")
            tensor.copy_(state[name])
        self.steps = int(state["steps"])
