"""Capture on a tiny random decoder: against plain forward passes, stopped and continued, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench import capture_passes
from workbench.cache import StoreError, open_store, schema
from workbench.capturing import capture
from workbench.datasets.jsonl import JsonLines
from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

RESID, PATTERN = "blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern"
TEXTS = ["a longer text, which is cut into windows", "short", "of middling length", "", "wörds"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}", device="cpu")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = [
        {
            "text": text,
            "name": f"d{i}",
            "n": i,
            "labels": {"vowel": [[k, k + 1] for k, c in enumerate(text) if c in "aeiou"], "n": i},
        }
        for i, text in enumerate(TEXTS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(schema, "MIN_SHARD_BYTES", 300)
    monkeypatch.setattr(schema, "CHUNK_BYTES", 256)


def contents(folder):
    """Every file of a store, byte for byte, but for locks and the derived index."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_rows_are_what_each_sequence_gives_alone(subject, corpus, tmp_path):
    store = capture(subject, data=corpus, hooks=["blocks.*.hook_resid_post", PATTERN], out=tmp_path / "acts")
    assert list(store.hook_points) == [PATTERN, "blocks.0.hook_resid_post", RESID]
    windows = [(f"d{i}", w) for i, text in enumerate(TEXTS) for w in subject.windows(text)]
    assert store.n_rows == sum(len(window.tokens) for _, window in windows)
    rows, origins = store.read(RESID), store.origins
    pattern = store.read(PATTERN)
    for name, window in windows:
        found = [
            s
            for s in range(store.examples.n_sequences)
            if store.documents[store.examples.sequence_document[s]] == name
            and (store.examples.ids[slice(*store.examples.bounds[s : s + 2])].tolist() == window.tokens.tolist())
        ]
        mine = np.flatnonzero(np.isin(origins["sequence"], found[:1]))
        assert origins["token"][mine].tolist() == window.tokens.tolist()
        assert origins["special"][mine].tolist() == window.special.tolist()
        alone = subject.capture(subject.batch([window]), [RESID, PATTERN])
        np.testing.assert_allclose(rows[mine], alone[RESID][0], atol=1e-5)
        n = len(window.tokens)
        np.testing.assert_allclose(pattern[mine][:, :, :n], alone[PATTERN][0].transpose(0, 1), atol=1e-5)
        assert np.isnan(pattern[mine][:, :, n:]).all()


def test_documents_keep_their_order_fields_and_labels(subject, corpus, tmp_path):
    store = capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts")
    assert store.documents == ["d0", "d1", "d2", "d3", "d4"]
    assert [fields["n"] for fields in store.document_fields] == [0, 1, 2, 3, 4]
    number, defined = store.label("n")
    assert defined.all()
    assert (number == store.origins["document"]).all()
    vowel, defined = store.label("vowel")
    assert (defined == ~store.origins["special"]).all()
    letters = np.array(subject.decode(store.origins["token"].tolist()))
    assert (vowel[defined] == np.isin(letters[defined], list("aeiou"))).all()


def test_the_manifest_says_what_was_captured(subject, corpus, tmp_path):
    manifest = capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts", seed=3).manifest
    assert manifest["model"]["address"] == subject.address
    assert manifest["fingerprints"]["model"] == manifest["model"]["fingerprint"] == subject.fingerprint()
    assert manifest["fingerprints"]["dataset"] == manifest["dataset"]["fingerprint"] == JsonLines(corpus).fingerprint()
    assert manifest["fingerprints"]["tokenizer"] == subject.tokenizer_fingerprint()
    assert manifest["capture"] == {
        "hooks": [RESID],
        "positions": "all",
        "rows": None,
        "context_length": None,
        "seed": 3,
        "device": "cpu",
        "batch_size": 256,
    }
    assert manifest["software"]["torch"] == torch.__version__
    assert (tmp_path / "acts" / "tokenizer" / "tokenizer.json").is_file()


def test_texts_in_memory_without_labels(subject, tmp_path):
    store = capture(subject, data=["one", "two"], hooks=RESID, out=tmp_path / "acts")
    assert (store.documents, store.labels, store.finished) == (["0", "1"], {}, True)


@pytest.mark.parametrize("batches_left", ["all", "the last"])
@pytest.mark.parametrize(
    "options",
    [
        {"hooks": [RESID, PATTERN]},
        {"hooks": [RESID, PATTERN], "compression": "zstd"},
        {"hooks": "blocks.*.hook_resid_post", "store_dtype": "int8", "compression": "lz4"},
    ],
)
def test_a_stopped_capture_ends_with_the_same_bytes(
    subject, corpus, tmp_path, monkeypatch, small_shards, batches_left, options
):
    def run(out):
        return capture(subject, data=corpus, out=out, batch_size=1, **options)

    run(tmp_path / "whole")
    whole = open_store(tmp_path / "whole")
    assert len(whole.manifest["shards"]) > 2
    batches_until_stop = 0 if batches_left == "all" else whole.examples.n_sequences - 1
    done = []
    forward = type(subject).run

    def stopping(self, *args, **kwargs):
        if len(done) == batches_until_stop:
            raise KeyboardInterrupt
        done.append(1)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(subject), "run", stopping)
        patch.setattr(capture_passes, "WAITING_BYTES", 0)  # an interruption drops what waits to be written
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    unfinished = open_store(tmp_path / "stopped")
    assert not unfinished.finished
    assert (unfinished.n_rows > 0) == (batches_until_stop > 0)
    assert run(tmp_path / "stopped").finished
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_alone(subject, corpus, tmp_path, monkeypatch):
    capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts")
    before = contents(tmp_path / "acts")
    monkeypatch.setattr(type(subject), "run", lambda *args, **kwargs: pytest.fail("a forward pass"))
    assert capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts").finished
    assert contents(tmp_path / "acts") == before


def test_labels_left_out_at_first_are_added_by_the_same_call(subject, corpus, tmp_path):
    assert capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts", labels=False).labels == {}
    assert set(capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts").labels) == {"vowel", "n"}


def test_another_capture_is_refused(subject, corpus, tmp_path):
    out = tmp_path / "acts"
    capture(subject, data=corpus, hooks=RESID, out=out)
    with pytest.raises(StoreError, match="another dataset"):
        capture(subject, data=["another"], hooks=RESID, out=out)
    with pytest.raises(StoreError, match="other examples or rows"):
        capture(subject, data=corpus, hooks=RESID, out=out, rows=5)
    with pytest.raises(StoreError, match="other hook points"):
        capture(subject, data=corpus, hooks=PATTERN, out=out)
    other = load_subject(f"zoo:{save_tiny_decoder(tmp_path / 'other', seed=1)}", device="cpu")
    with pytest.raises(StoreError, match="another model"):
        capture(other, data=corpus, hooks=RESID, out=out)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_keep_the_dtype_of_the_subject_unless_told_otherwise(subject, tmp_path, dtype):
    address = subject.address
    kept = capture(address, data=["text"], hooks=RESID, out=tmp_path / "kept", device="cpu", dtype=dtype)
    assert kept.hook_points[RESID].dtype == dtype
    told = capture(subject, data=["text"], hooks=RESID, out=tmp_path / "told", store_dtype=dtype)
    exact = capture(subject, data=["text"], hooks=RESID, out=tmp_path / "exact")
    want = exact.read_tensor(RESID).to(getattr(torch, dtype))
    assert torch.equal(told.read_tensor(RESID), want)


def test_int8_moves_no_value_by_more_than_half_a_step(subject, corpus, tmp_path):
    exact = capture(subject, data=corpus, hooks=RESID, out=tmp_path / "exact").read(RESID)
    store = capture(subject, data=corpus, hooks=RESID, out=tmp_path / "acts", store_dtype="int8")
    steps = store.read_stored(RESID)[f"scales/{RESID}"][:, None] * store.int8_factors[RESID]
    assert store.read_tensor(RESID).dtype == torch.float32
    assert (np.abs(store.read(RESID) - exact) <= 0.501 * steps).all()
    assert np.abs(exact).max() > 50 * steps.max()


def test_float16_that_overflows_names_hook_point_and_row(tmp_path):
    subject = load_subject(f"zoo:{save_tiny_decoder(tmp_path / 'm')}", device="cpu")
    with torch.no_grad():
        subject.network.embed.weight[ord("x") - ord("!")] = 1e6
    with pytest.raises(UserError, match=r"hook_embed, row 3: 1e\+06 is beyond float16's largest"):
        capture(subject, data=["abx"], hooks="hook_embed", out=tmp_path / "acts", store_dtype="float16")
    subject.network.half()
    subject.dtype = torch.float16
    with pytest.raises(UserError, match="hook_embed, row 3: overflow, the subject runs in float16"):
        capture(subject, data=["abx"], hooks="hook_embed", out=tmp_path / "half")


BAD_INPUT = [
    pytest.param({"hooks": "blocks.1.hook_resid_pots"}, "nearest: blocks.1.hook_resid_post", id="hook point"),
    pytest.param({"hooks": []}, "no hook point given", id="no hook point"),
    pytest.param({"positions": "lst"}, "positions 'lst': must be one of all, last, class", id="positions"),
    pytest.param({"positions": "label:vwel"}, "no label 'vwel'; nearest: vowel", id="label"),
    pytest.param({"positions": "share:2"}, "a number above 0, up to 1", id="share"),
    pytest.param({"positions": "class"}, "has no class token", id="class"),
    pytest.param({"rows": 0}, "rows 0: must be at least 1", id="rows"),
    pytest.param({"seed": -1}, "seed -1: must be 0 to 2**63 - 1", id="negative seed"),
    pytest.param({"seed": 2**63}, "seed 9223372036854775808: must be 0 to", id="large seed"),
    pytest.param({"batch_size": 0}, "batch size 0: must be at least 1", id="batch size"),
    pytest.param({"context_length": 17}, "takes 1 to 16 tokens", id="context length"),
    pytest.param({"store_dtype": "int4"}, "int4 cannot be stored: choose a store dtype", id="store dtype"),
    pytest.param({"compression": "gzip"}, "compression 'gzip': must be one of lz4, zstd", id="compression"),
    pytest.param({"store_dtype": "int8", "hooks": PATTERN}, "no NaN for keys past the end", id="patterns as int8"),
    pytest.param({"data": "nowhere.txt"}, "no dataset 'nowhere.txt'", id="data"),
]


@pytest.mark.parametrize(("options", "says"), BAD_INPUT)
def test_bad_input_is_explained(subject, corpus, tmp_path, options, says):
    out = tmp_path / "acts"
    with pytest.raises(UserError) as error:
        capture(subject, **{"data": corpus, "hooks": RESID, "out": out, **options})
    assert says in str(error.value)
    assert not out.exists()  # nothing half-written
