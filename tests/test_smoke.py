"""One tiny run from the command line: trained, resumed, evaluated, and asked about a video."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vitx.cli import main
from vitx.data.encoding import encode_video

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def constant_file(small_file, tmp_path_factory) -> str:
    """A small experiment whose learning rate does not depend on the number of steps."""
    path = tmp_path_factory.mktemp("experiments") / "constant.py"
    path.write_text(
        "from vitx.experiment import load_experiment\n"
        "from vitx.training.schedules import Constant\n"
        f"experiment = load_experiment({small_file!r}).override(\n"
        "    {'optimizer.schedule': Constant(warmup=0.0), 'training.checkpoint_every': 4}\n"
        ")\n"
    )
    return str(path)


@pytest.mark.usefixtures("pictures")
def test_a_run_trains_resumes_evaluates_and_predicts(constant_file, tmp_path, capsys):
    whole, resumed, clip = tmp_path / "whole", tmp_path / "resumed", tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)))
    for workdir, steps in ((whole, "8"), (resumed, "4"), (resumed, "8")):
        words = ["train", constant_file, "--workdir", str(workdir), "--extend", "--training.steps", steps]
        assert main([*words, "--debug"]) == 0, capsys.readouterr().err
    answers = []
    for workdir in (whole, resumed):
        for words in (["evaluate", str(workdir), "--checkpoint", "last"], ["predict", str(workdir), str(clip)]):
            capsys.readouterr()
            assert main([*words, "--json"]) == 0
            answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["step"] == 8 and list(answers[1]) == [str(clip)]
    # A run that was stopped and resumed ends bit for bit like one that was not.
    assert answers[:2] == answers[2:]


def test_the_command_starts_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "vitx.cli", "models", "vivit_b_*"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vivit_b_16x2_fe" in done.stdout
