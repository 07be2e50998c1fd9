"""Writes what a seed draws for test_augmentation.py: python tests/data/make_golden_augmentation.py"""

import importlib.util
from pathlib import Path

import numpy as np

spec = importlib.util.spec_from_file_location("test_augmentation", Path(__file__).with_name("test_augmentation.py"))
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

arrays = {
    f"{name}/{what}": x
    for name, augmentation in tests.ALONE.items()
    for what, x in tests.draw_changes(augmentation).items()
}
np.savez_compressed(tests.GOLDEN, **arrays)
