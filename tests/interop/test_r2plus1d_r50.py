"""PyTorchVideo's R(2+1)D of bottlenecks, live, by the measures of test_cnn.py."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("test_cnn", Path(__file__).parent / "test_cnn.py")
cnn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cnn)

THERE = cnn.NARROW_THERE | {"head_activation": None}  # theirs ends in a softmax


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorchVideo is older than the torch that it runs with
@pytest.mark.filterwarnings("ignore::FutureWarning")  # likewise: it scripts functions
@pytest.mark.parametrize("shape", [(16, 64, 64), (11, 70, 97)])
def test_results_statistics_and_gradients_are_those_of_the_original(shape, tmp_path):
    case = cnn.Case("r2plus1d_r50", "r2plus1d_r50", shape, (2, 2, 2), cnn.NARROW, THERE)
    cnn.test_results_statistics_and_gradients_are_those_of_the_original(case, tmp_path)
