"""The README's words are true: its code runs, its files are there."""

import re

import pytest

from vitx.data.encoding import encode_video
from vitx.data.moving_digits import ClipConfig, render_clip
from vitx.run import train


@pytest.fixture
def readme(pytestconfig) -> str:
    return (pytestconfig.rootpath / "README.md").read_text()


@pytest.mark.smoke
def test_the_first_two_commands_stand_as_promised(readme):
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    assert commands[:2] == [
        "pip install -e . && vitx train experiments/quickstart.py --workdir runs/quickstart",
        "pip install -e '.[test]' && pytest",
    ]


def test_links_and_the_map_of_the_house(readme, pytestconfig):
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert (pytestconfig.rootpath / target).exists(), target
    house = readme.split("## The house")[1].split("##")[0]
    for name in re.findall(r"^      (\S+)", house, re.MULTILINE):
        assert (pytestconfig.rootpath / "vitx" / name).exists(), name


def test_a_stream_as_the_readme_shows_it(readme):
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "init_state" in block)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (1, 8) and names["state"][1].frames == 12


def test_a_dataset_of_ones_own_as_the_readme_shows_it(readme, small, tmp_path):
    """The README's classes, with the body that it leaves to the reader."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "class Clips" in block)
    code = re.sub(r"^        \.\.\. .*$", "        return Clips(FILES, LABELS)", code, flags=re.MULTILINE)
    files = []
    for index in range(8):
        files.append(str(tmp_path / f"{index}.mp4"))
        frames, _, _ = render_clip(ClipConfig(num_frames=6, side=24, size=(8.0, 14.0)), "train", index)
        (tmp_path / f"{index}.mp4").write_bytes(encode_video(frames))
    names = {"FILES": tuple(files), "LABELS": (0, 1) * 4, "__name__": __name__}
    exec(code, names)
    changes = {"data.dataset": names["Falls"](), "model.num_classes": 2, "training.steps": 2}
    train(small.override(changes), tmp_path / "run")
    assert (tmp_path / "run" / "report.md").exists()
