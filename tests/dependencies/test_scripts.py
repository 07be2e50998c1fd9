"""The scripts of continuous integration find every other Python, and shellcheck finds nothing in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent


@pytest.mark.parametrize(
    "path", [SCRIPTS.parents[1] / ".ci" / "run", *sorted(SCRIPTS.glob("*.sh"))], ids=lambda p: p.name
)
def test_shellcheck_finds_nothing(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is in the extra `test`")
    checked = subprocess.run(["shellcheck", "--severity=style", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def other_pythons(tmp_path):
    """Returns what other_pythons.sh prints where pyenv and the PATH have these fake interpreters."""
    commands, versions = tmp_path / "bin", tmp_path / "pyenv" / "versions"
    commands.mkdir()

    def script(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(in_pyenv: dict[str, str], on_path: dict[str, str]) -> list[str]:
        script(commands / "python3", f'exec "{sys.executable}" "$@"')
        script(commands / "pyenv", f"echo {tmp_path / 'pyenv'}")
        for name, text in in_pyenv.items():
            script(versions / name / "bin" / "python3", text)
        for name, text in on_path.items():
            script(commands / name, text)
        environment = os.environ | {"PATH": f"{commands}:/usr/bin:/bin"}
        done = subprocess.run([SCRIPTS / "other_pythons.sh"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if str(tmp_path) in line]

    run.folder = tmp_path
    return run


def test_one_interpreter_of_each_other_minor_version_is_found(other_pythons):
    folder = other_pythons.folder
    default = ".".join(map(str, sys.version_info[:2]))
    found = other_pythons(
        {
            "3.91.2": f"echo 3.91 {folder}/a",
            "3.91.4": f"echo 3.91 {folder}/b",
            "3.9.1": "true",  # too old: prints nothing
            "default": f"echo {default} {folder}/c",
        },
        {"python3.90": f"echo 3.90 {folder}/d", "python3.92": "exit 127", "python3.90-config": f"echo 3.93 {folder}/e"},
    )
    assert [line.split()[0] for line in found] == ["3.90", "3.91"]


def test_no_other_interpreter_is_no_error(other_pythons):
    assert other_pythons({}, {}) == []
