"""On `zoo:shapes-clip`: texts name what neurons are measurably selective for, and controls name nothing."""

import pytest

import workbench as wb

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_name_what_neurons_are_selective_for(tmp_path, seed):
    result = wb.run("second-order", out=tmp_path / "run", seed=seed, set={"indirect": False, "shown": 0})
    rows = result.tables["agreement"].set_index(["what", "selective_by"])
    neurons = rows.loc[("neurons", "effects")]
    assert neurons["share"] >= 0.5
    assert neurons["p"] < 0.001
    for control in ("random weights", "random directions", "permuted labels"):
        held = rows.loc[(control, "effects")]
        assert held["p"] > 0.01
        assert held["share"] < 0.25
