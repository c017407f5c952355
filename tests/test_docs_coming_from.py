"""The page for people who come from other libraries: ours runs here, theirs where a model hub can be reached.

nnsight's block runs here too, in an environment that has it, on a small model of GPT-2's shape in place of the hub's.
"""

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
THEIRS = [block for block in BLOCKS if "from transformer_lens" in block or "from sae_lens" in block]
(NNSIGHT,) = (block for block in BLOCKS if "from nnsight" in block)


@pytest.mark.slow
def test_what_is_done_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = tmp_path / "ours.py"
    ours.write_text("\n".join(block for block in BLOCKS if block not in [*THEIRS, NNSIGHT]), encoding="utf-8")
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


@pytest.mark.long
@pytest.mark.skipif(find_spec("nnsight") is None, reason="nnsight is no dependency: pip install nnsight (issue 7)")
def test_what_is_done_in_nnsight(tmp_path):
    import tokenizers
    import transformers

    from workbench.testing.checkpoints import save_random

    saved = tmp_path / "hub" / "models--openai-community--gpt2"  # as the hub's own cache has it
    (saved / "refs").mkdir(parents=True)
    (saved / "refs" / "main").write_text("0", encoding="utf-8")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    sizes = {"n_layer": 6, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": len(letters)}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    save_random(transformers.GPT2LMHeadModel(config), saved / "snapshots" / "0")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=letters[0]).save_pretrained(
        saved / "snapshots" / "0"
    )
    checks = "assert logits.shape[-1] == 256\nassert (hidden[:, -1] == 0).all() and (hidden[:, 0] != 0).all()"
    done = subprocess.run(
        [sys.executable, "-c", f"{NNSIGHT}\n{checks}"],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
