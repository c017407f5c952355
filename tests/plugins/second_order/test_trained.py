"""On `zoo:shapes-clip`: texts name what neurons are selective for, controls name nothing, maps find single classes."""

import pytest

import workbench as wb

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bars(tmp_path, seed):
    """At least half of the most selective neurons named; second order above attention and above first order."""
    options = {"indirect": False, "shown": 0, "segmentation.data": f"shapes:four?seed={seed}"}
    result = wb.run("second-order", out=tmp_path / "run", seed=seed, set=options)
    rows = result.tables["agreement"].set_index(["what", "selective_by"])
    neurons = rows.loc[("neurons", "effects")]
    assert neurons["share"] >= 0.5
    assert neurons["p"] < 0.001
    for control in ("random weights", "random directions", "permuted labels"):
        held = rows.loc[(control, "effects")]
        assert held["p"] > 0.01
        assert held["share"] < 0.25
    for method in ("class-attention", "first-order"):
        assert result.metrics[f"class.gain.{method}"].lo > 0
