"""Makes the golden files of test_huggingface.py with transformers: python tests/interop/make_golden.py"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("test_huggingface", HERE / "test_huggingface.py")
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

CHOSEN = {
    "vivit": ("vivit", tests.VIVIT[0]),
    "timesformer_divided": ("timesformer", tests.TIMESFORMER[0]),
    "timesformer_joint": ("timesformer", tests.TIMESFORMER[3]),
    "timesformer_space": ("timesformer", tests.TIMESFORMER[4]),
}
for name, (kind, config) in CHOSEN.items():
    shutil.rmtree(HERE / "golden" / name, ignore_errors=True)
    logits, gradients, video, labels = tests.peer(kind, config, HERE / "golden" / name)
    gradients = {f"gradient:{key}": value for key, value in gradients.items()}
    np.savez_compressed(HERE / "golden" / f"{name}.npz", logits=logits, video=video, labels=labels, **gradients)
