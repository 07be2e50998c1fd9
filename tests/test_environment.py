"""Broken installations: one message that names the package and the command that repairs it.

Each test starts a Python that sees no installed package but the small fakes that the test writes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

IMPORTS_AND_EXPLAINS = """
from vitx.environment import explain_environment
try:
    import {module}
    {statement}
except BaseException as error:
    print(explain_environment(error))
"""


def install(folder: Path, name: str, version: str, requires: tuple[str, ...] = (), **files: str) -> None:
    """Writes a distribution of one package, with the text of its modules by their names."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for module, text in files.items():
        (folder / name / f"{module}.py").write_text(text)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    lines = [f"Requires-Dist: {requirement}" for requirement in requires]
    (metadata / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    )
    (metadata / "RECORD").write_text("".join(f"{name}/{module}.py,,\n" for module in files))


@pytest.fixture
def site(tmp_path) -> Path:
    """A whole installation: vitx needs numpy, av and jax; jax needs jaxlib."""
    folder = tmp_path / "site"
    install(folder, "numpy", "2.3.0", __init__="")
    install(folder, "av", "18.1.0", __init__="from av import core", core="")
    install(folder, "jax", "0.10.2", ("jaxlib<=0.10.2,>=0.10.2", "numpy>=2.0"), __init__="import jaxlib")
    install(folder, "jaxlib", "0.10.2", __init__="")
    needs = ("numpy>=2", "av>=18; python_version >= '3.11'", "jax>=0.10", "torch>=2; extra == 'peers'")
    install(folder, "vitx", "0.1.0", needs)
    (folder / "vitx").rmdir()  # its code is that of this checkout
    return folder


def python(*words: str, path: tuple[Path, ...]) -> subprocess.CompletedProcess:
    checkout = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, checkout)))}
    command = [sys.executable, "-S", *words]
    # elsewhere than in the checkout, whose own metadata would come first
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path[-1].parent)


def explanation(module: str, *path: Path, statement: str = "pass") -> str:
    done = python("-c", IMPORTS_AND_EXPLAINS.format(module=module, statement=statement), path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_intact_installation_is_not_reported(site):
    assert explanation("jax", site, statement="jax.nothing") == "None"
    assert explanation("my_own_module", site) == "None"


def test_a_missing_package_is_named_with_its_bounds(site):
    for path in (site / "jaxlib", site / "jaxlib-0.10.2.dist-info"):
        path.rename(site / f"removed_{path.name}")
    answer = explanation("jax", site)
    assert "jaxlib not found" in answer and answer.endswith("-m pip install 'jaxlib<=0.10.2,>=0.10.2'")


def test_a_jaxlib_of_another_jax_is_named(site):
    (site / "jaxlib-0.10.2.dist-info" / "METADATA").write_text("Name: jaxlib\nVersion: 0.9.1\n")
    answer = explanation("jax", site, statement="raise RuntimeError('incompatible')")
    assert "found jaxlib 0.9.1; jax 0.10.2 needs jaxlib" in answer and "pip install 'jaxlib<=" in answer


@pytest.mark.parametrize(("version", "is_refused"), [("17.2.0", True), ("18", False), ("18.0.0rc1", False)])
def test_a_version_outside_the_bounds_is_named(version, is_refused, site):
    (site / "av-18.1.0.dist-info" / "METADATA").write_text(f"Name: av\nVersion: {version}\n")
    answer = explanation("av", site, statement="av.open(metadata_errors=1)")
    assert (f"found av {version}; vitx 0.1.0 needs av>=18" in answer) == is_refused


def test_two_copies_on_the_path_are_named_with_their_folders(site, tmp_path):
    install(tmp_path / "other", "numpy", "1.26.4", __init__="raise ImportError('of another Python')")
    answer = explanation("numpy", tmp_path / "other", site)
    assert f"numpy 1.26.4 in {tmp_path / 'other'} and numpy 2.3.0 in {site}" in answer
    assert f"take {tmp_path / 'other'} off it" in answer


def test_a_library_that_cannot_be_loaded_is_reinstalled_as_a_wheel(site):
    text = "raise ImportError('libavformat.so.62: cannot open shared object file', name='core', path=__file__)"
    (site / "av" / "core.py").write_text(text)
    answer = explanation("av", site)
    assert "av 18.1.0" in answer and "libavformat.so.62" in answer and "FFmpeg" in answer
    assert "--force-reinstall" in answer and answer.endswith("--only-binary :all: av==18.1.0")


def test_a_package_that_lost_files_is_incomplete(site):
    (site / "av" / "core.py").unlink()
    answer = explanation("av", site)
    assert "av 18.1.0" in answer and "1 of its files are missing" in answer and answer.endswith("av==18.1.0")


def test_a_file_that_hides_a_package_is_named(site, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "av.py").write_text("")
    answer = explanation("av.container", tmp_path / "mine", site)
    assert f"{tmp_path / 'mine' / 'av.py'} hides av 18.1.0" in answer


@pytest.mark.parametrize("words", [("models",), ("data", "check", "videos"), ("train", "file.py", "--workdir", "run")])
def test_any_command_ends_with_one_message(words, site):
    (site / "numpy" / "__init__.py").unlink()
    (site / "numpy" / "__init__.py").write_text("from numpy import gone")
    done = python("-m", "vitx.cli", *words, path=(site,))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("vitx: numpy 2.3.0 in ") and line.endswith("numpy==2.3.0")
