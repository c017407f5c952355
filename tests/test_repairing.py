"""Repair of captured stores: each kind of damage, and afterwards every file has the bytes that it had."""

import errno
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from workbench.cache import open_store, schema
from workbench.cache.open_shard import OpenShard
from workbench.cache.repair import INTENT
from workbench.capturing import capture
from workbench.cli import main
from workbench.errors import UserError
from workbench.repairing import repair_store
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

RESID, PATTERN = "blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern"
SHARD = "shards/000001.h5"
FORMS = {
    "plain": {},
    "float16": {"store_dtype": "float16"},
    "int8": {"store_dtype": "int8"},
    "compressed": {"compression": "zstd", "store_dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A subject, a dataset with labels, and a store of each form: some shards of a few chunks."""
    root = tmp_path_factory.mktemp("made")
    save_tiny_decoder(root / "tiny")
    lines = [
        {"text": "so many words " * (1 + i % 3), "name": f"d{i}", "labels": {"vowel": [[1, 2], [4, 5]], "n": i}}
        for i in range(20)
    ]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        for form, options in FORMS.items():
            hooks = [RESID] if form == "int8" else [RESID, PATTERN]
            patch.setattr(schema, "MIN_SHARD_BYTES", 1200 if form == "int8" else 12000)
            patch.setattr(schema, "CHUNK_BYTES", 256 if form == "int8" else 1024)
            capture(
                f"zoo:{root / 'tiny'}",
                data=root / "corpus.jsonl",
                hooks=hooks,
                out=root / form,
                batch_size=3,
                device="cpu",
                **options,
            )
    return root


@pytest.fixture
def store_of(made, tmp_path):
    """A copy of one of the stores."""

    def copy(form):
        shutil.copytree(made / form, tmp_path / "acts")
        return tmp_path / "acts"

    return copy


def contents(folder):
    """Every file, byte for byte, but for locks and the derived index, which has times in it."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name not in {".lock", "index.h5"})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def place_in(path, dataset, share=0.5):
    """A byte of a dataset, by plain h5py; of a compressed one, of the chunk in which it would be."""
    with h5py.File(path) as file:
        found = file[dataset]
        if found.chunks is None:
            return found.id.get_offset() + int(share * found.nbytes)
        chunk = found.id.get_chunk_info(int(share * found.id.get_num_chunks()))
        return chunk.byte_offset + chunk.size // 2


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip_in(dataset, share=0.5):
    return lambda path: flip(path, place_in(path, dataset, share))


def all_of(*harms):
    def harm(path):
        places = [place_in(path, dataset, share) for dataset, share in harms]
        for place in places:
            flip(path, place)

    return harm


HARMS = {
    "a value": flip_in(f"activations/{RESID}"),
    "values of two hook points": all_of((f"activations/{RESID}", 0.1), (f"activations/{PATTERN}", 0.9)),
    "origins": flip_in("rows"),
    "a checksum": flip_in(f"checksums/{RESID}"),
    "a checksum of origins": flip_in("checksums/rows"),
    "a value, and the checksum of another": all_of((f"activations/{RESID}", 0), (f"checksums/{RESID}", 0.99)),
    "special counts": flip_in("special/counts"),
    "superblock": lambda path: flip(path, 12),
    "superblock and a value": lambda path: (flip_in(f"activations/{RESID}")(path), flip(path, 12)),
    "cut off early": lambda path: truncate(path, 0.4),
    "cut off late": lambda path: truncate(path, 0.95),
    "nothing in it": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_has_the_bytes_that_it_had(store_of, form, harm):
    if form == "int8" and harm == "values of two hook points":
        pytest.skip("patterns cannot be int8; its scales are a case of their own")
    folder = store_of(form)
    want = contents(folder)
    HARMS[harm](folder / SHARD)
    assert open_store(folder).verify()
    (done,) = repair_store(folder)
    assert (done.file, done.repaired) == (SHARD, True)
    assert contents(folder) == want
    assert open_store(folder).verify() == []
    assert repair_store(folder) == []


def test_scales_of_int8(store_of):
    folder = store_of("int8")
    want = contents(folder)
    flip_in(f"scales/{RESID}")(folder / SHARD)
    assert all(done.repaired for done in repair_store(folder))
    assert contents(folder) == want


def test_only_the_batches_that_hold_lost_rows_are_run(store_of, monkeypatch):
    from workbench import recapturing

    folder, ran = store_of("plain"), []
    run = recapturing.run_batch
    monkeypatch.setattr(recapturing, "run_batch", lambda *args: ran.append(args[3]) or run(*args))
    flip_in(f"activations/{RESID}")(folder / SHARD)
    (damage,) = open_store(folder).verify()
    (done,) = repair_store(folder)
    assert done.repaired
    assert f"chunk {damage.chunk}" in done.what
    examples = open_store(folder).examples
    batches = [range(first, min(first + 3, examples.n_sequences)) for first in range(0, examples.n_sequences, 3)]
    first, end = damage.rows
    wanted = [
        each for each in batches if examples.first_rows[each.stop] > first and examples.first_rows[each.start] < end
    ]
    assert ran == wanted
    assert len(wanted) < len(batches)


@pytest.mark.parametrize("harm", ["superblock", "a checksum", "special counts", "origins"])
def test_what_needs_no_model_is_done_without(store_of, harm, monkeypatch):
    folder = store_of("plain")
    want = contents(folder)
    monkeypatch.setattr("workbench.recapturing.load_subject", None)
    HARMS[harm](folder / SHARD)
    assert [done.repaired for done in repair_store(folder)] == [True]
    assert contents(folder) == want


def test_other_files(store_of):
    folder = store_of("plain")
    want = contents(folder)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    harmed = [name for name in files if name.split("/")[0] in {"examples.h5", "labels", "tokenizer", "index.h5"}]
    assert len(harmed) >= 5
    for name in harmed:
        if not name.endswith(".lock"):
            truncate(files[name], 0.5)
    truncate(folder / SHARD, 0.5)
    damage = open_store(folder).verify()
    assert {each.file.split("/")[0] for each in damage} == {"examples.h5", "labels", "tokenizer", "index.h5", "shards"}
    done = repair_store(folder)
    assert all(each.repaired for each in done), done
    assert contents(folder) == want
    assert open_store(folder).verify() == []


def test_labels_of_a_file_are_lost_and_said_to_be(store_of, tmp_path, capsys):
    folder = store_of("plain")
    (tmp_path / "mood.csv").write_text("document,mood\nd0,good\nd1,bad\n")
    assert main(["store", "label", str(folder), str(tmp_path / "mood.csv")]) == 0
    want = contents(folder)
    (folder / "labels/mood.h5").write_bytes(b"gone")
    capsys.readouterr()
    assert main(["store", "repair", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "labels/mood.h5: NOT REPAIRED: they came from a file" in said
    assert "workbench store label" in said
    assert main(["store", "label", str(folder), str(tmp_path / "mood.csv")]) == 0
    assert contents(folder) == want


def test_a_damaged_plan_without_its_dataset_costs_nothing_else(store_of, made, tmp_path):
    """Origins are in the shards; only what is in the plan alone is lost, and the message says what is missing."""
    folder = store_of("plain")
    want = contents(folder)
    elsewhere = tmp_path / "moved" / "corpus.jsonl"
    elsewhere.parent.mkdir()
    (made / "corpus.jsonl").rename(elsewhere)
    try:
        (folder / "examples.h5").write_bytes(b"gone")
        flip(folder / SHARD, 12)
        done = {each.file: each for each in repair_store(folder)}
        assert [done["examples.h5"].repaired, done[SHARD].repaired] == [False, True]
        assert "give --data" in done["examples.h5"].what
        assert all(each.repaired for each in repair_store(folder, data=elsewhere))
        with h5py.File(folder / "examples.h5") as file:
            place = file["sequences/first_row"].id.get_offset()
        flip(folder / "examples.h5", place)  # derived from the rest
        assert [str(each) for each in repair_store(folder)] == [
            "examples.h5: repaired: written anew out of what it held"
        ]
    finally:
        elsewhere.rename(made / "corpus.jsonl")
    assert contents(folder) == want


def test_a_damaged_manifest_is_explained(store_of, capsys):
    folder = store_of("plain")
    truncate(folder / "manifest.json", 0.5)
    before = contents(folder)
    assert main(["store", "repair", str(folder), "--json"]) == 1
    (said,) = json.loads(capsys.readouterr().out)["repairs"]
    assert said["file"] == "manifest.json"
    assert "workbench capture" in said["what"]
    assert contents(folder) == before


def another_machine(monkeypatch, change=1e-3):
    """Rows come out a little different, as they might with other threads."""
    from workbench import recapturing

    run = recapturing.Recapture.rows

    def rows(self, first, end):
        return {name: array + np.float32(change) for name, array in run(self, first, end).items()}

    monkeypatch.setattr(recapturing.Recapture, "rows", rows)


def test_other_bits_are_refused_and_told_and_accepted_when_asked(store_of, monkeypatch, capsys):
    folder = store_of("plain")
    store = open_store(folder)
    sound, fingerprint = store.read(RESID), store.fingerprint()
    flip_in(f"activations/{RESID}")(folder / SHARD)
    (damage,) = open_store(folder).verify()
    before = contents(folder)
    another_machine(monkeypatch)
    assert main(["store", "repair", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "other bits than were stored" in said
    assert "differ by up to 0.001" in said
    assert "--accept-different" in said
    assert contents(folder) == before
    assert main(["store", "repair", str(folder), "--accept-different"]) == 0
    assert open_store(folder).verify() == []
    store = open_store(folder)
    lost = slice(*damage.rows)
    expected = sound.copy()
    expected[lost] += np.float32(1e-3)
    assert store.read(RESID).tobytes() == expected.tobytes()  # sound rows are what they were
    assert store.fingerprint() != fingerprint
    assert not (folder / INTENT).exists()


def test_other_bits_of_a_missing_shard_are_compared_with_a_neighbour(store_of, monkeypatch):
    folder = store_of("int8")
    (folder / SHARD).unlink()
    another_machine(monkeypatch, 0.5)
    (done,) = repair_store(folder)
    assert not done.repaired
    assert "differ by up to" in done.what
    assert not (folder / SHARD).exists()
    assert not list(folder.rglob("*.part"))


def test_the_batch_size_is_in_the_manifest(store_of):
    assert open_store(store_of("plain")).manifest["capture"]["batch_size"] == 3


def test_a_shard_of_another_capture_is_replaced(store_of, made):
    """Right in itself, in the wrong place."""
    folder = store_of("plain")
    want = contents(folder)
    shutil.copy(folder / "shards/000000.h5", folder / SHARD)
    assert all(done.repaired for done in repair_store(folder))
    assert contents(folder) == want


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param("--model zoo:{}/other", "has another model fingerprint", id="another model"),
        pytest.param("--model zoo:{}/none", "give --model", id="no model"),
        pytest.param("--data {}/other.jsonl", "has another dataset fingerprint", id="another dataset"),
        pytest.param("--data {}/none.jsonl", "give --data", id="no dataset"),
        pytest.param("--device gpu0", "must be auto, cpu or cuda:N", id="device"),
        pytest.param("--batch-size 0", "batch size 0: must be at least 1", id="batch size"),
    ],
)
def test_wrong_input_changes_nothing(store_of, tmp_path, capsys, words, says):
    folder = store_of("plain")
    flip(folder / SHARD, 12)
    save_tiny_decoder(tmp_path / "other", seed=1)
    (tmp_path / "other.jsonl").write_text('{"text": "x"}')
    before = contents(folder)
    assert main(["store", "repair", str(folder), *words.format(tmp_path).split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert contents(folder) == before


def test_no_store_and_a_store_that_is_written(store_of, tmp_path, capsys):
    from workbench.cache.lock import WriterLock

    assert main(["store", "repair", str(tmp_path / "none")]) == 2
    folder = store_of("plain")
    lock = WriterLock(folder / ".lock")
    assert main(["store", "repair", str(folder)]) == 2
    assert "is being written by another process" in capsys.readouterr().err
    lock.release()


def test_an_imported_store_without_a_model(tmp_path):
    from workbench.store_formats.importing import import_store

    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((50, 4), np.float32))
    folder = import_store(tmp_path / "x.npy", out=tmp_path / "acts").folder
    want = contents(folder)
    shard = folder / "shards/000000.h5"
    sound = shard.read_bytes()
    flip(shard, 12)
    assert [done.repaired for done in repair_store(folder)] == [True]
    assert contents(folder) == want
    flip_in("activations/x")(shard)
    (done,) = repair_store(folder)
    assert not done.repaired
    assert "the store was imported" in done.what
    assert shard.read_bytes() != sound


def test_a_model_that_is_not_at_hand_is_named(store_of, monkeypatch):
    def gone(address, **options):
        raise UserError("there is no folder")

    folder = store_of("plain")
    flip_in(f"activations/{RESID}")(folder / SHARD)
    monkeypatch.setattr("workbench.recapturing.load_subject", gone)
    (done,) = repair_store(folder)
    assert not done.repaired
    assert "is not at hand (there is no folder): give --model" in done.what


def test_a_subject_may_be_given(store_of, made):
    folder = store_of("plain")
    want = contents(folder)
    (folder / SHARD).unlink()
    subject = load_subject(f"zoo:{made / 'tiny'}", device="cpu")
    assert all(done.repaired for done in repair_store(folder, model=subject))
    assert contents(folder) == want


def test_a_full_disk_leaves_what_was_there(store_of, monkeypatch, capsys):
    folder = store_of("plain")
    want = contents(folder)
    flip_in(f"activations/{RESID}")(folder / SHARD)
    before = contents(folder)

    def full(shard, place, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(OpenShard, "_write", full)
        assert main(["store", "repair", str(folder)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(folder) == before
    assert main(["store", "repair", str(folder)]) == 0
    assert contents(folder) == want
