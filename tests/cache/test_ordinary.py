"""Which rows count when special tokens are left out."""

import numpy as np
import pytest

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter, open_store


@pytest.mark.parametrize(
    ("special", "ordinary"),
    [
        ([True, False, False], [False, True, True]),
        ([False, False, False], [True, True, True]),
        ([True, True, True], [True, True, True]),  # class tokens alone: they are what was captured
    ],
)
def test_special_rows_are_left_out_unless_there_are_no_others(special, ordinary, tmp_path):
    builder = ExamplesBuilder()
    document = builder.document("a", {})
    builder.sequence(document, np.arange(3), special=np.array(special))
    with StoreWriter(
        tmp_path / "acts", {"x": ActivationSpec(("d_model",), (1,), "float32")}, builder.build(), {}
    ) as writer:
        writer.append({"x": np.arange(3, dtype=np.float32)[:, None]})
    store = open_store(tmp_path / "acts")
    assert store.ordinary.tolist() == ordinary
    delivered = [float(row) for batch in store.shuffled("x", batch_rows=2, seed=0) for row in batch.flatten()]
    assert sorted(delivered) == np.flatnonzero(ordinary).tolist()
