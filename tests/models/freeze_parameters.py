"""Writes the parameter counts and digests that test_parameters.py freezes: python tests/models/freeze_parameters.py"""

import csv
import importlib.util
from pathlib import Path

from vitx.models import VARIANTS

spec = importlib.util.spec_from_file_location("test_parameters", Path(__file__).with_name("test_parameters.py"))
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

with tests.FROZEN.open("w", newline="") as file:
    writer = csv.DictWriter(file, ["model", "parameters", "digest"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(tests.row_of, VARIANTS))
