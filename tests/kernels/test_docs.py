"""The examples of docs/kernels.md run as they stand there, one after another."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_the_examples_run(tmp_path):
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        code = compile(block, f"docs/kernels.md, block {number}", "exec")
        exec(code, names)  # noqa: S102  # our own page
    assert names["x_hat"].shape == (100, 64)
    assert torch.equal(names["indices"], names["topk_encode"](names["x"], names["W_enc"], names["b_enc"], k=8)[1])
