import contextlib
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cache import DamageError, Examples, ExamplesBuilder, StoreError

masks = st.lists(st.lists(st.booleans(), max_size=6), max_size=6)


@given(masks=masks)
def test_origins_are_those_of_a_plain_loop(masks):
    builder = ExamplesBuilder()
    want = []
    for number, mask in enumerate(masks):
        document = builder.document(f"d{number}")
        tokens = np.arange(len(mask)) * 7 + number
        builder.sequence(document, tokens, special=tokens % 2 == 0, rows=mask)
        want += [(document, number, i, int(t), bool(t % 2 == 0)) for i, t in enumerate(tokens) if mask[i]]
    examples = builder.build()
    assert examples.n_rows == builder.n_rows == len(want)
    assert examples.origins(0, examples.n_rows).tolist() == want
    for row, origin in enumerate(want):
        assert examples.sequence_of(row) == origin[1]
        assert row in range(examples.n_rows)[examples.rows_of(origin[1])]
        assert origin[2] in examples.positions_of(origin[1])


def test_images_have_patches_and_paths(tmp_path):
    builder = ExamplesBuilder("vision")
    builder.image(builder.document("cat"), "images/cat.png", (64, 48), [-1, -2, 0, 1, 2], rows=[0, 0, 1, 1, 0])
    examples = builder.build()
    assert examples.origins(0, 2).tolist() == [(0, 0, 2, 0, False), (0, 0, 3, 1, False)]
    assert examples.origins(0, 2).dtype.names[3] == "patch"
    assert examples.special.tolist() == [True, True, False, False, False]
    examples.write(tmp_path)
    back = Examples.read(tmp_path, examples.digest())
    assert (back.paths, back.sizes.tolist()) == (("images/cat.png",), [[64, 48]])


def test_written_and_read_again(tmp_path, make_plan):
    examples = make_plan([3, 0, 5, 1])
    examples.write(tmp_path)
    back = Examples.read(tmp_path, examples.digest())
    assert back.digest() == examples.digest()
    assert back.documents == ("doc0.py", "doc1.py")
    assert back.document_fields == ({"held_out": True}, {"held_out": False})
    with h5py.File(tmp_path / "examples.h5") as file:  # what a reader without us needs is there
        assert file["documents/name"].asstr()[1] == "doc1.py"
        assert file["sequences/first_row"][()].tolist() == [0, 3, 3, 8]
        assert file["sequences/n_rows"][()].tolist() == [3, 0, 5, 1]
        assert file["positions/id"].dtype == np.int32
        assert file["positions/selected"].dtype == np.bool_


def test_writing_a_plan_takes_no_memory_for_its_positions(tmp_path, make_plan):
    examples = make_plan([200_000] * 4)
    examples.first_rows  # noqa: B018 - made once and kept, whether it is written or not
    positions = sum(array.nbytes for array in (examples.ids, examples.special, examples.offsets, examples.selected))
    tracemalloc.start()
    try:
        examples.write(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert positions == 800_000 * 14
    assert peak < positions / 8
    assert Examples.read(tmp_path, examples.digest()).digest() == examples.digest()


def test_an_empty_plan_is_a_plan(tmp_path):
    examples = ExamplesBuilder().build()
    examples.write(tmp_path)
    assert Examples.read(tmp_path, examples.digest()).n_rows == 0


def changed(change):
    builder = ExamplesBuilder()
    document = builder.document("other" if change == "name" else "d", {"held_out": change == "fields"})
    builder.sequence(
        document,
        [1, 2, 4 if change == "tokens" else 3],
        special=[change == "special", False, False],
        offsets=[[0, 1], [1, 2], [2, 4 if change == "offsets" else 3]],
        rows=[True, change != "rows", True],
        window=int(change == "window"),
    )
    return builder.build().digest()


@pytest.mark.parametrize("change", ["name", "fields", "tokens", "special", "offsets", "rows", "window"])
def test_the_digest_covers(change):
    assert changed(change) != changed(None) == changed(None)


BAD = [
    pytest.param(lambda b: b.document("d"), "document 'd' was added twice", id="document twice"),
    pytest.param(lambda b: b.sequence(1, [1]), "document=1: there are 1 documents", id="unknown document"),
    pytest.param(lambda b: b.sequence(0, [1, 2], special=[1]), r"special has shape \(1,\), expected \(2,\)", id="mask"),
    pytest.param(lambda b: b.sequence(0, [1], offsets=[0, 1]), r"offsets has shape", id="offsets"),
    pytest.param(lambda b: b.sequence(0, [1, 2**31]), "whole numbers of 32 bits; got 2147483648", id="wide id"),
    pytest.param(lambda b: b.sequence(0, ["a"]), "whole numbers of 32 bits; got <U1", id="words"),
    pytest.param(lambda b: b.sequence(0, [np.nan]), "whole numbers of 32 bits; got nan", id="NaN"),
    pytest.param(lambda b: b.sequence(0, None), "whole numbers of 32 bits; got object", id="nothing"),
    pytest.param(lambda b: b.sequence(0, [0.5]), "whole numbers of 32 bits; got 0.5", id="fraction"),
    pytest.param(lambda b: b.document("e", {"a": object()}), "'e': its fields must have a JSON form", id="object"),
    pytest.param(lambda b: b.document("caf\udce9.py"), r"'caf\\udce9\.py' cannot be stored: .* UTF-8", id="not UTF-8"),
    pytest.param(lambda b: b.document("a\0b"), "cannot be stored", id="NUL"),
    pytest.param(lambda b: b.image(0, "a.png", (1, 1), [0]), "`image` is for vision", id="image among texts"),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_wrong_plans_are_explained(call, says):
    builder = ExamplesBuilder()
    builder.document("d")
    with pytest.raises(StoreError, match=says):
        call(builder)


def test_a_damaged_plan_is_never_believed(tmp_path, make_plan):
    examples = make_plan([6, 5])
    examples.write(tmp_path)
    path = tmp_path / "examples.h5"
    sound = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(sound), 150).tolist():
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        with contextlib.suppress(DamageError):
            assert Examples.read(tmp_path, examples.digest()).digest() == examples.digest()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(DamageError, match=r"examples\.h5: cannot be read"):
        Examples.read(tmp_path, examples.digest())
    path.unlink()
    with pytest.raises(DamageError, match=r"examples\.h5: cannot be read"):
        Examples.read(tmp_path, examples.digest())
