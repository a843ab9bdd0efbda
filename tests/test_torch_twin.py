"""The PyTorch twin of the benchmarks computes what the Keras network computes."""

import pytest

from benchmarks import torch_twin
from benchmarks.step_worker import TensorFlowProgram, TorchProgram
from benchmarks.variants import Variant

SIZE = (64, 128)
BACKBONES = ["small", pytest.param("resnet101", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_weights_give_equal_outputs(backbone, set_policy):
    differences = torch_twin.compare(backbone, SIZE, "float32")
    outputs = {what: d for what, d in differences.items() if "gradient" not in what}
    if backbone == "resnet101":  # batch normalization of so deep a stack amplifies
        outputs = {what: d for what, d in outputs.items() if "training" not in what}
    assert len(outputs) >= 4
    assert max(outputs.values()) < 1e-4, outputs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_weights_give_equal_gradients(backbone, set_policy):
    differences = torch_twin.compare(backbone, SIZE, "float64")
    assert any("gradient" in what for what in differences)
    assert max(differences.values()) < 1e-5, differences


def test_both_do_the_same_arithmetic(set_policy):
    variant = Variant(backbone="small", image_size=(32, 64), batch_size=2)
    counts = [P(variant).count_passes() for P in (TensorFlowProgram, TorchProgram)]
    assert counts[0] == counts[1]
