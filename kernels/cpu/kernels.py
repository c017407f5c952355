"""The operators, computed by a compiled unit. Arguments are checked, on the processor, and of a dtype it knows."""

import torch
from torch import Tensor

from workbench.kernels.cpu.interface import Codes, Encode
from workbench.kernels.cpu.library import COUNTS, DTYPES, Library
from workbench.kernels.errors import KernelError

SCREENS = {"auto": -1, "exact": 0, "float32": 1, "int8": 2, "bfloat16": 3}


def topk_encode(library: Library, x: Tensor, W: Tensor, b: Tensor, k: int, screen: str) -> tuple[Tensor, Tensor]:
    """Encode; see `workbench.kernels.topk.topk_encode`."""
    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    rows, width = x.shape
    values = torch.empty(rows, k, dtype=torch.float32)
    indices = torch.empty(rows, k, dtype=torch.int64)
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    call = Encode(
        x=x.data_ptr(), W=W.data_ptr(), b=b.data_ptr(), rows=rows, width=width, latents=len(W), k=k,
        dtype=DTYPES[x.dtype], screen=SCREENS[screen], values=values.data_ptr(), indices=indices.data_ptr(),
        counts=counts.data_ptr(),
    )  # fmt: skip
    if rows:
        library.run("encode", call)
    library.counts = dict(zip(COUNTS, counts.tolist(), strict=True))
    return values.to(x.dtype), indices


def screen_for(library: Library, rows: int, width: int, latents: int, k: int, screen: str = "auto") -> str:
    """Return how latents of a batch of these sizes are chosen at first; rows that it cannot settle go to finer ones."""
    call = Encode(rows=rows, width=width, latents=latents, k=k, screen=SCREENS[screen])
    return next(name for name, number in SCREENS.items() if number == library.screen(call))


def sparse_decode(library: Library, values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Decode; see `workbench.kernels.topk.sparse_decode`, without bias."""
    W, values, indices = W.contiguous(), values.float().contiguous(), indices.contiguous()
    out = torch.empty(len(values), W.shape[1], dtype=torch.float32)
    call = _codes(library, "sparse_decode", indices, W)
    call.values, call.out = values.data_ptr(), out.data_ptr()
    library.run("decode", call)
    return out.to(W.dtype)


def gathered_dot(library: Library, x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Multiply rows with gathered rows; see `workbench.kernels.topk.gathered_dot`."""
    W, x32, indices = W.contiguous(), x.float().contiguous(), indices.contiguous()
    out = torch.empty(indices.shape, dtype=torch.float32)
    call = _codes(library, "gathered_dot", indices, W)
    call.x, call.out = x32.data_ptr(), out.data_ptr()
    library.run("dots", call)
    return out.to(x.dtype)


def scatter_outer(library: Library, values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    """Sum rows into latents; see `workbench.kernels.topk.scatter_outer`."""
    x32, values, indices = x.float().contiguous(), values.float().contiguous(), indices.contiguous()
    out = torch.empty(n_latents, x.shape[1], dtype=torch.float32)
    call = Codes(
        values=values.data_ptr(), indices=indices.data_ptr(), x=x32.data_ptr(), out=out.data_ptr(),
        rows=len(x), k=indices.shape[1], width=x.shape[1], latents=n_latents,
    )  # fmt: skip
    _check(library, "scatter_outer", indices, call)
    library.run("scatter", call)
    return out.to(x.dtype)


def decode_error(
    library: Library, values: Tensor, indices: Tensor, W: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode and compare; see `workbench.kernels.topk.decode_error`. Also returns what is left times rows of W."""
    W, indices = W.contiguous(), indices.contiguous()
    values32, bias32, target32 = (t.float().contiguous() for t in (values, bias, target))
    errors = torch.empty(len(target), dtype=torch.float32)
    left = torch.empty(target.shape, dtype=torch.float32)
    dots = torch.empty(indices.shape, dtype=torch.float32)
    call = _codes(library, "decode_error", indices, W)
    call.values, call.bias, call.x = values32.data_ptr(), bias32.data_ptr(), target32.data_ptr()
    call.out, call.dots, call.errors = left.data_ptr(), dots.data_ptr(), errors.data_ptr()
    library.run("decode_error", call)
    return errors.to(W.dtype), left.to(W.dtype), dots.to(W.dtype)


def _codes(library: Library, name: str, indices: Tensor, W: Tensor) -> Codes:
    rows, k = indices.shape
    call = Codes(
        indices=indices.data_ptr(), W=W.data_ptr(), rows=rows, k=k, width=W.shape[1], latents=len(W),
        dtype=DTYPES[W.dtype],
    )  # fmt: skip
    _check(library, name, indices, call)
    return call


def _check(library: Library, name: str, indices: Tensor, call: Codes) -> None:
    """Refuse an index that names no latent: the kernels would read or write anywhere."""
    bad = library.first_bad(call)
    if bad >= 0:
        row, place = divmod(bad, indices.shape[1])
        raise KernelError(
            f"{name}: indices[{row}, {place}] is {int(indices[row, place])}; there are latents 0 to {call.latents - 1}"
        )
