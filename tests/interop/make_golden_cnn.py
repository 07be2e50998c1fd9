"""Creates the golden files of test_cnn.py with torchvision and PyTorchVideo: python tests/interop/make_golden_cnn.py"""

import importlib.util
import json
from pathlib import Path

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("test_cnn", HERE / "test_cnn.py")
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

tests.GOLDEN.mkdir(exist_ok=True)
for case in tests.KEPT:
    shapes, evaluated, changed = tests.summarise(case.original(), case.shape)
    projections = {name: tests.project_gradient(x).tolist() for name, x in changed.items()}
    golden = {"shapes": shapes, "evaluated": evaluated.tolist(), "changed": projections}
    (tests.GOLDEN / f"{case.name}.json").write_text(json.dumps(golden, indent=0))
