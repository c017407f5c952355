"""The page for people who come from other libraries: ours runs here, theirs where a model hub can be reached."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
THEIRS = [block for block in BLOCKS if "from transformer_lens" in block or "from sae_lens" in block]


@pytest.mark.slow
def test_what_is_done_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = tmp_path / "ours.py"
    ours.write_text("\n".join(block for block in BLOCKS if block not in THEIRS), encoding="utf-8")
    names = runpy.run_path(str(ours))
    assert names["resid"].shape[2] == names["subject"].d_model
    assert (names["hidden"][:, -1] == 0).all()
    assert (tmp_path / "for-saelens" / "cfg.json").is_file()


@pytest.mark.network
@pytest.mark.parametrize("block", THEIRS)
def test_what_is_done_there(block, tmp_path):
    theirs = tmp_path / "theirs.py"
    theirs.write_text(block, encoding="utf-8")
    runpy.run_path(str(theirs))
