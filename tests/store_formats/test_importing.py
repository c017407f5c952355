"""Foreign arrays become stores: which array is what, every number type, and what is refused."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.cache import StoreError, StoreWriter, open_store
from workbench.errors import UserError
from workbench.store_formats import importing
from workbench.store_formats.importing import import_store

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((30, 4), np.float32)


# --- where arrays are ------------------------------------------------------------------------------------------------
def save(folder, kind, name, array):
    """Save an array as a file of its own; returns the path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.{kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "pt":
        torch.save(torch.from_numpy(array), path)
    else:
        save_file({name: torch.from_numpy(array)}, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_one_file_is_one_hook_point(tmp_path, x, kind, small_batches):
    path = save(tmp_path, kind, "acts", x)
    store = import_store(path, out=tmp_path / "out", hooks=HOOK)
    assert store.read(HOOK).tobytes() == x.tobytes()
    assert store.hook_points[HOOK].axes == ("width",)
    assert store.documents == ["acts"]
    assert list(import_store(path, out=tmp_path / "unnamed").hook_points) == ["acts"]


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_files_of_a_folder_are_hook_points(tmp_path, x, kind, small_batches):
    save(tmp_path / "in", kind, "blocks.0.mlp", x)
    save(tmp_path / "in", kind, "blocks.1.mlp", 2 * x)
    store = import_store(tmp_path / "in", out=tmp_path / "out")
    assert store.read("blocks.0.mlp").tobytes() == x.tobytes()
    assert store.read("blocks.1.mlp").tobytes() == (2 * x).tobytes()


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_files_of_batches_are_joined_in_the_order_of_their_numbers(tmp_path, x, kind, small_batches):
    for number in range(12):  # batch_10 comes after batch_9
        save(tmp_path / "in", kind, f"batch_{number}", x[number : number + 1 + number % 3])
    want = np.concatenate([x[number : number + 1 + number % 3] for number in range(12)])
    store = import_store(tmp_path / "in", out=tmp_path / "out", hooks=f"{HOOK}=batch_*")
    assert store.read(HOOK).tobytes() == want.tobytes()
    with pytest.raises(
        UserError, match=r"parts of one hook point, or a hook point each\? --hook 'NAME=batch_\*' joins"
    ):
        import_store(tmp_path / "in", out=tmp_path / "other")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_tensors_of_one_name_in_many_files_are_joined(tmp_path, x, kind, small_batches):
    (tmp_path / "in").mkdir()
    for number in range(3):
        part = {"resid": torch.from_numpy(x[10 * number :][:10]), "tokens": torch.arange(10) + 10 * number}
        path = tmp_path / "in" / f"{number}.{kind}"
        torch.save(part, path) if kind == "pt" else save_file(part, path)
    store = import_store(tmp_path / "in", out=tmp_path / "out")
    assert store.read("resid").tobytes() == x.tobytes()
    assert store.origins["token"].tolist() == list(range(30))


def test_tensors_in_dicts_and_lists_are_found(tmp_path, x):
    part = torch.from_numpy(x)
    torch.save({"layers": [{"resid": part}, {"resid": 2 * part}], "seed": 3, "note": "mine"}, tmp_path / "a.pt")
    store = import_store(tmp_path / "a.pt", out=tmp_path / "out")
    assert store.read("layers.1.resid").tobytes() == (2 * x).tobytes()


def test_tensors_that_are_views_are_read_in_their_own_order(tmp_path, x):
    torch.save({"turned": torch.from_numpy(x.T.copy()).T, "cut": torch.from_numpy(x)[:, 1:3]}, tmp_path / "a.pt")
    store = import_store(tmp_path / "a.pt", out=tmp_path / "out")
    assert store.read("turned").tobytes() == x.tobytes()
    assert store.read("cut").tobytes() == x[:, 1:3].tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_any_order_of_axes_and_bytes_is_read(tmp_path, x, order, byte_order, small_batches):
    x = x.reshape(10, 3, 4)
    np.save(tmp_path / "a.npy", np.array(x, dtype=f"{byte_order}f4", order=order))
    assert import_store(tmp_path / "a.npy", out=tmp_path / "out").read("a").tobytes() == x.tobytes()


def test_rows_of_any_shape(tmp_path):
    pattern = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float16)
    np.save(tmp_path / "a.npy", pattern)
    np.save(tmp_path / "b.npy", pattern[:, 0, 0, 0])
    store = import_store(tmp_path, out=tmp_path / "out")
    assert store.hook_points["a"].axes == ("axis_1", "axis_2", "axis_3")
    assert store.read("a").tobytes() == pattern.tobytes()
    assert store.hook_points["b"].shape == ()


# --- number types ----------------------------------------------------------------------------------------------------
EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 8)


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_bit_pattern_comes_through(tmp_path, kind, dtype):
    tensor = torch.from_numpy(EVERY_16_BITS.view(np.int16)).view(getattr(torch, dtype))
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, EVERY_16_BITS.view(np.float16) if dtype == "float16" else EVERY_16_BITS)
    else:
        torch.save(tensor, path) if kind == "pt" else save_file({"a": tensor}, path)
    store = import_store(path, out=tmp_path / "out", store_dtype=dtype)
    found = store.read_tensor("a").view(torch.int16).numpy()
    assert found.tobytes() == EVERY_16_BITS.tobytes()
    assert store.hook_points["a"].dtype == dtype


def test_float32_bits_come_through(tmp_path):
    bits = np.frombuffer(np.random.default_rng(0).bytes(1 << 16), np.uint32).reshape(-1, 8).copy()
    bits[0] = [0x7F800001, 0xFFC00001, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x007FFFFF, 0x7FFFFFFF]
    np.save(tmp_path / "a.npy", bits.view(np.float32))
    assert import_store(tmp_path / "a.npy", out=tmp_path / "out").read("a").tobytes() == bits.tobytes()


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_float64_is_rounded_only_when_asked(tmp_path, kind):
    wide = np.random.default_rng(0).standard_normal((10, 3))
    path = save(tmp_path, kind, "a", wide)
    with pytest.raises(UserError, match="a is float64, which a store does not hold: give --store-dtype float32"):
        import_store(path, out=tmp_path / "out")
    store = import_store(path, out=tmp_path / "out", store_dtype="float32")
    assert store.read("a").tobytes() == wide.astype(np.float32).tobytes()


@pytest.mark.parametrize(("value", "dtype", "says"), [
    (1e39, "float32", r"a, row 7: 1e\+39 is beyond float32's largest"),
    (1e6, "float16", r"a, row 7: 1e\+06 is beyond float16's largest"),
])  # fmt: skip
def test_an_overflow_names_hook_point_and_row(tmp_path, value, dtype, says):
    wide = np.zeros((10, 3))
    wide[7, 1] = value
    np.save(tmp_path / "a.npy", wide)
    with pytest.raises((UserError, StoreError), match=says):
        import_store(tmp_path / "a.npy", out=tmp_path / "out", store_dtype=dtype)


# --- documents, sequences, tokens ------------------------------------------------------------------------------------
def test_documents_and_tokens_are_told_by_arrays(tmp_path, x):
    np.save(tmp_path / "acts.npy", x)
    names = np.array(["poem"] * 10 + ["prose"] * 15 + ["poem"] * 5)
    np.save(tmp_path / "documents.npy", names)
    np.save(tmp_path / "tokens.npy", np.arange(30) % 7)
    store = import_store(tmp_path, out=tmp_path / "out", special_tokens=[0])
    assert store.documents == ["poem", "prose"]
    assert [store.documents[i] for i in store.origins["document"]] == names.tolist()
    assert store.origins["sequence"].tolist() == [0] * 10 + [1] * 15 + [2] * 5
    assert store.origins["position"].tolist() == [*range(10), *range(15), *range(5)]
    assert store.examples.sequence_window.tolist() == [0, 0, 1]
    assert store.origins["token"].tolist() == (np.arange(30) % 7).tolist()
    assert (store.origins["special"] == (np.arange(30) % 7 == 0)).all()
    assert store.read("acts").tobytes() == x.tobytes()


def test_rows_of_which_nothing_is_known_are_one_document(tmp_path, monkeypatch, x):
    monkeypatch.setattr("workbench.store_formats.import_plan.SEQUENCE_ROWS", 12)
    np.save(tmp_path / "acts.npy", x)
    store = import_store(tmp_path / "acts.npy", out=tmp_path / "out")
    assert store.documents == ["acts"]
    assert store.origins["position"].tolist() == [*range(12), *range(12), *range(6)]
    assert (store.origins["token"] == -1).all()


def test_each_row_is_a_document_when_asked(tmp_path, x):
    np.save(tmp_path / "acts.npy", x)
    store = import_store(tmp_path / "acts.npy", out=tmp_path / "out", documents="rows")
    assert store.documents[:2] == ["row 0", "row 1"]
    assert store.origins["document"].tolist() == list(range(30))


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_whole_sequences(tmp_path, kind, small_batches):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, length, 3), np.float32) for n, length in ((2, 5), (3, 4), (1, 7))]
    for number, part in enumerate(parts):
        save(tmp_path / "in", kind, f"batch_{number}", part)
        save(
            tmp_path / "in", kind, f"ids_{number}", np.arange(part[..., 0].size).reshape(part.shape[:2]) + 100 * number
        )
    store = import_store(
        tmp_path / "in", out=tmp_path / "out", hooks=f"{HOOK}=batch_*", tokens="ids_*", layout="sequences"
    )
    assert store.read(HOOK).tobytes() == b"".join(part.tobytes() for part in parts)
    assert np.diff(store.examples.bounds).tolist() == [5, 5, 4, 4, 4, 7]
    assert store.documents == [f"sequence {i}" for i in range(6)]
    assert store.origins["token"].tolist() == [*range(10), *range(100, 112), *range(200, 207)]


def test_documents_of_sequences(tmp_path):
    np.save(tmp_path / "acts.npy", np.zeros((3, 2, 4), np.float16))
    np.save(tmp_path / "documents.npy", np.array([7, 7, 5]))
    store = import_store(tmp_path, out=tmp_path / "out", layout="sequences")
    assert store.documents == ["7", "5"]
    assert store.origins["document"].tolist() == [0, 0, 0, 0, 1, 1]
    assert store.examples.sequence_window.tolist() == [0, 1, 0]


# --- interruption ----------------------------------------------------------------------------------------------------
def test_an_interrupted_import_goes_on_and_a_finished_one_does_nothing(tmp_path, small_batches, monkeypatch):
    x = np.random.default_rng(0).standard_normal((400, 4), np.float32)
    np.save(tmp_path / "a.npy", x)
    plan = StoreWriter.__init__
    monkeypatch.setattr(StoreWriter, "__init__", lambda self, *args: plan(self, *args, rows_per_shard=64))
    monkeypatch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 16)
    append = StoreWriter.append

    def pressed(self, batch):
        append(self, batch)
        if self.next_row > 200:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", pressed)
        with pytest.raises(KeyboardInterrupt):
            import_store(tmp_path / "a.npy", out=tmp_path / "out")
    assert open_store(tmp_path / "out").n_rows == 192
    read = []
    spied = importing.Source.read
    monkeypatch.setattr(
        importing.Source, "read", lambda self, first, end: (read.append(first), spied(self, first, end))[1]
    )
    store = import_store(tmp_path / "a.npy", out=tmp_path / "out")
    assert read[0] == 192
    assert store.read("a").tobytes() == x.tobytes()
    whole = import_store(tmp_path / "a.npy", out=tmp_path / "whole")
    assert whole.fingerprint() == store.fingerprint()
    read.clear()
    import_store(tmp_path / "a.npy", out=tmp_path / "out")
    assert read == []


def test_a_source_that_has_changed_is_refused(tmp_path, x):
    np.save(tmp_path / "a.npy", x)
    import_store(tmp_path / "a.npy", out=tmp_path / "out")
    x[3, 1] += 1
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(StoreError, match="out was captured with another source"):
        import_store(tmp_path / "a.npy", out=tmp_path / "out")
    np.save(tmp_path / "b.npy", x)  # the same bytes under another name are the same source
    import_store(tmp_path / "b.npy", out=tmp_path / "other", hooks="a")
    (tmp_path / "b.npy").rename(tmp_path / "c.npy")
    with pytest.raises(StoreError, match="other examples"):  # but a document is called after the file
        import_store(tmp_path / "c.npy", out=tmp_path / "other", hooks="a")


# --- wrong input -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """Things that cannot be imported as they are."""
    folder = tmp_path_factory.mktemp("wrong")

    def place(*parts):
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    x = np.zeros((6, 2), np.float32)
    np.save(place("good.npy"), x)
    np.save(place("objects.npy"), np.array([{"a": 1}, 3], object), allow_pickle=True)
    np.save(place("int.npy"), np.arange(6))
    np.save(place("bits.npy"), np.zeros((3, 2), np.uint16))
    np.save(place("number.npy"), np.float32(3))
    np.save(place("none.npy"), np.zeros((0, 4), np.float32))
    np.savez(place("zip.npz"), a=x)
    place("cut.npy").write_bytes(place("good.npy").read_bytes()[:-5])
    place("text.npy").write_text("hello")
    place("text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(6, 2)}, place("good.safetensors"))
    place("cut.safetensors").write_bytes(place("good.safetensors").read_bytes()[:-5])
    save_file({"a": torch.zeros(6, 2, dtype=torch.float8_e4m3fn)}, place("eight.safetensors"))
    torch.save({"a": torch.nn.Linear(2, 2)}, place("module.pt"))
    torch.save({"a": 3}, place("nothing.pt"))
    torch.save(torch.zeros(6, 2, dtype=torch.complex64), place("complex.pt"))
    torch.save(torch.zeros(6, 2), place("old.pt"), _use_new_zipfile_serialization=False)
    torch.save(torch.zeros(6, 2), place("slash", "a.pt"))
    torch.save({"a/b": torch.zeros(6, 2)}, place("slash.pt"))
    place("text.pt").write_text("hello")
    place("cut.pt").write_bytes(place("slash", "a.pt").read_bytes()[:-300])
    np.save(place("mixed", "a.npy"), x)
    torch.save(torch.zeros(6, 2), place("mixed", "b.pt"))
    np.save(place("unequal", "a.npy"), x)
    np.save(place("unequal", "b.npy"), x[:5])
    np.save(place("widths", "a0.npy"), x)
    np.save(place("widths", "a1.npy"), x[:, :1])
    np.save(place("labelled", "a.npy"), x)
    np.save(place("labelled", "mood.npy"), np.arange(6))
    np.save(place("labelled", "halves.npy"), np.arange(6) / 2)
    np.save(place("labelled", "five.npy"), np.arange(5))
    np.save(place("labelled", "large.npy"), np.arange(6) + 2**40)
    np.save(place("labelled", "named.npy"), np.array(["a", "b", "c\ud800", "a", "b", "a"]))
    place("empty").mkdir()
    place("letters", "a.txt").write_text("a")
    place("parquet", "train.parquet").write_text("a")
    return folder


ONE = {"hooks": "a"}
BAD_INPUT = [
    pytest.param("nowhere", {}, "there is no ", id="no source"),
    pytest.param("good.npy", {"kind": "numpy"}, "imported from saelens, npy, safetensors, pt", id="format"),
    pytest.param("objects.npy", {}, "Python objects, which are never loaded", id="objects"),
    pytest.param("int.npy", {}, "int is int64: activations are floats", id="integers"),
    pytest.param("bits.npy", {}, "if these are the bits of bfloat16, give --store-dtype bfloat16", id="bits"),
    pytest.param("bits.npy", {"store_dtype": "float16"}, "if these are the bits of bfloat16", id="bits as float16"),
    pytest.param("number.npy", {}, "is no array [rows, ...]", id="a number"),
    pytest.param("none.npy", {}, "hook point 'none' has no rows", id="no rows"),
    pytest.param("zip.npz", {}, "zip.npz", id="zip"),
    pytest.param("zip.npz", {"kind": "npy"}, "python -m zipfile -e", id="zip as npy"),
    pytest.param("cut.npy", {}, "cut.npy cannot be read as .npy", id="cut npy"),
    pytest.param("text.npy", {}, "text.npy cannot be read as .npy", id="no npy"),
    pytest.param("text.safetensors", {}, "text.safetensors cannot be read as safetensors", id="no safetensors"),
    pytest.param("cut.safetensors", {}, "tensor 'a' ends at byte", id="cut safetensors"),
    pytest.param("eight.safetensors", {}, "a is F8_E4M3: activations are floats", id="8 bits"),
    pytest.param("module.pt", {}, "holds Python objects other than tensors, which are never loaded", id="module"),
    pytest.param("nothing.pt", {}, "holds no tensor with rows", id="no tensor"),
    pytest.param("complex.pt", {}, "complex64", id="complex"),
    pytest.param("old.pt", {}, "format before torch 1.6: load and save it again", id="old"),
    pytest.param("text.pt", {}, "text.pt cannot be read as .pt", id="no pt"),
    pytest.param("cut.pt", {}, "cut.pt cannot be read as .pt", id="cut pt"),
    pytest.param("slash.pt", {}, "'a/b' cannot be a hook point's name: give it another, --hook 'NAME=a/b'", id="name"),
    pytest.param("mixed", {}, "a.npy and b.pt: say which to import with --from npy|pt", id="mixed"),
    pytest.param("unequal", {}, "different numbers of rows: {'a': 6, 'b': 5}", id="rows"),
    pytest.param("widths", {"hooks": "a=a*"}, "rows must be alike to lie in one hook point", id="widths"),
    pytest.param("labelled", {"hooks": "b"}, "--hook 'b': no array matches; nearest: ", id="hook point"),
    pytest.param("labelled", {"hooks": "b=b*"}, "--hook 'b=b*': no array matches", id="pattern"),
    pytest.param("labelled", {"hooks": ["a", "a=a"]}, "hook point 'a' is named twice", id="twice"),
    pytest.param("labelled", {}, "is int64: activations are floats; name the hook points", id="labels"),
    pytest.param("labelled", {**ONE, "tokens": "none"}, "--tokens 'none': no array matches", id="tokens"),
    pytest.param("labelled", {**ONE, "tokens": "halves"}, "tokens are float64: token ids are whole", id="token type"),
    pytest.param("labelled", {**ONE, "tokens": "five"}, "tokens have shape [5]; [6] is wanted", id="token count"),
    pytest.param("labelled", {**ONE, "tokens": "large"}, "is no token id: they have 32 bits", id="large tokens"),
    pytest.param("labelled", {**ONE, "documents": "five"}, "documents have shape [5]", id="document count"),
    pytest.param("labelled", {**ONE, "documents": "halves"}, "documents are float64", id="document type"),
    pytest.param("labelled", {**ONE, "documents": "named"}, "names must be UTF-8 without NUL", id="document name"),
    pytest.param("labelled", {**ONE, "special_tokens": [0]}, "the source has no tokens", id="special without tokens"),
    pytest.param("good.npy", {"layout": "sequence"}, "layout 'sequence': must be one of rows, sequences", id="layout"),
    pytest.param("int.npy", {"layout": "sequences"}, "[sequences, positions, ...] is wanted", id="too few axes"),
    pytest.param(
        "good.npy", {"layout": "sequences", "documents": "rows"}, "are for the layout rows", id="rows of sequences"
    ),
    pytest.param("good.npy", {"store_dtype": "float31"}, "dtype 'float31': must be one of", id="dtype"),
    pytest.param("empty", {}, "is nothing that can be imported", id="empty"),
    pytest.param("letters", {}, "is nothing that can be imported, such as a.txt", id="other files"),
    pytest.param("empty", {"kind": "npy"}, "has no file that ends in .npy", id="no files"),
    pytest.param("empty", {"kind": "saelens"}, "dataset_info.json cannot be read", id="no dataset"),
]


@pytest.mark.parametrize(("source", "given", "says"), BAD_INPUT)
def test_bad_input_is_explained(wrong, tmp_path, source, given, says):
    with pytest.raises((UserError, StoreError), match=re.escape(says)):
        import_store(wrong / source, out=tmp_path / "out", **given)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_store_is_not_imported(make_store, tmp_path):
    make_store(tmp_path / "acts")
    with pytest.raises(UserError, match="acts is an activation store already"):
        import_store(tmp_path / "acts", out=tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, x):
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(StoreError, match="neither empty nor an activation store"):
        import_store(tmp_path / "a.npy", out=tmp_path)
