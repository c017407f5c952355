"""Images: patches or class tokens of a small vision subject, a label of each image, the projection applied live."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.capturing import capture
from workbench.context import Context, Inputs
from workbench.datasets.images import ImageFolder
from workbench.plugins.nullspace import LiveConfig, Nullspace, NullspaceConfig
from workbench.subjects.architecture import Architecture
from workbench.subjects.images import ImageProcessor
from workbench.subjects.vit import VisionArchitecture, VisionTransformer
from workbench.subjects.vit_subject import VisionSubject

pytestmark = pytest.mark.slow

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def subject():
    stack = Architecture(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=16)
    network = VisionTransformer(VisionArchitecture(stack, image_size=(8, 8), patch_size=(4, 4), n_output=5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    processor = ImageProcessor(3, (8, 8), 2, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    return VisionSubject("hf:tiny#vision", network, lambda: processor)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two hundred images; those of day are brighter."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = ["file,day"]
    for number in range(200):
        day = number % 2
        image = rng.integers(0, 156, (8, 8, 3)) + 90 * day
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'yes' if day else 'no'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("positions", ["all", "class"])
def test_a_label_of_images_is_erased_and_the_output_changes(subject, photos, tmp_path, positions):
    store = capture(subject, data=ImageFolder(photos), hooks=HOOK, out=tmp_path / "acts", positions=positions)
    config = NullspaceConfig(
        label="day",
        method="leace",
        others=(),
        nonlinear=False,
        controls=1,
        permutations=1,
        draws=50,
        live=LiveConfig(tokens=100),
    )
    inputs = Inputs(store=store, model=subject)
    result = Nullspace().run(Context(config, inputs, "cpu", 0, tmp_path, logging.getLogger("workbench.test")))
    scores = result.tables["scores"]
    even = scores[(scores["metric"] == "balanced_accuracy") & (scores["probe"] == "logistic")].drop_duplicates("method")
    values = even.set_index("method")["value"]
    assert values["none"] > 0.8
    assert values["leace"] < 0.65 + 0.1 * (positions == "class")
    live = result.tables["live"].set_index(["method", "where"])
    assert set(live["measure"]) == {"output error"}
    assert live.loc[("leace", "everywhere"), "rise"] > 0
    assert live.loc[("none", "everywhere"), "rise"] == 0
