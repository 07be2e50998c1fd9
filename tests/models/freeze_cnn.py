"""Writes the paths and shapes that test_cnn.py holds fast: python tests/models/freeze_cnn.py"""

import importlib.util
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("test_cnn", HERE / "test_cnn.py")
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

text = json.dumps(tests.frozen_variants(), indent=1)
text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)
(HERE / "cnn_parameters.json").write_text(text + "\n")
