"""Creates the golden files of test_huggingface.py and test_videomae.py with transformers.

python tests/interop/make_golden.py             # all of them
python tests/interop/make_golden.py videomae    # those that are named
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


classifiers, autoencoders = load("test_huggingface"), load("test_videomae")


def classifier(kind, config, directory):
    logits, gradients, video, labels = classifiers.peer(kind, config, directory)
    gradients = {f"gradient:{key}": value for key, value in gradients.items()}
    return {"logits": logits, "video": video, "labels": labels, **gradients}


CHOSEN = {
    "vivit": lambda directory: classifier("vivit", classifiers.VIVIT[0], directory),
    "timesformer_divided": lambda directory: classifier("timesformer", classifiers.TIMESFORMER[0], directory),
    "timesformer_joint": lambda directory: classifier("timesformer", classifiers.TIMESFORMER[3], directory),
    "timesformer_space": lambda directory: classifier("timesformer", classifiers.TIMESFORMER[4], directory),
    "videomae": lambda directory: classifier("videomae", classifiers.VIDEOMAE[0], directory),
    "videomae_pretraining": lambda directory: autoencoders.peer(autoencoders.CONFIGS[0], directory),
}
for name in sys.argv[1:] or CHOSEN:
    shutil.rmtree(HERE / "golden" / name, ignore_errors=True)
    arrays = CHOSEN[name](HERE / "golden" / name)
    np.savez_compressed(HERE / "golden" / f"{name}.npz", **arrays)
