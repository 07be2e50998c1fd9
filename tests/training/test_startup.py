"""The profile of a start: what it counts, and that it leaves nothing behind."""

import builtins
import re

import jax
import jax.numpy as jnp
import pytest

from vitx.training.startup import StartupProfile, seconds_since_start


def test_imports_phases_and_compilation_are_counted_until_the_first_step_ends(tmp_path, monkeypatch, capsys):
    (tmp_path / "slow_package.py").write_text("import time, quick_package\ntime.sleep(0.1)")
    (tmp_path / "quick_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    original = builtins.__import__
    with StartupProfile() as profile:
        with profile("build"):
            import slow_package  # noqa: F401
        with profile("compile"):
            jax.jit(lambda x: x + 41).lower(jnp.zeros(3)).compile()
        assert 0.1 <= profile.imports["slow_package"] < 10 and profile.imports["quick_package"] < 0.1
        assert profile.seconds["build"] < 0.1  # an import is counted as such
        with profile("train"):
            pass
        assert builtins.__import__ is original
        table = capsys.readouterr().err
        with profile("train"):
            pass
    rows = {name.strip(): float(seconds) for name, seconds in re.findall(r"^ +(.*?) +(\d+\.\d\d)$", table, re.M)}
    assert rows["slow_package"] >= 0.1 and "quick_package" not in rows
    assert rows["in all of this, lowering"] >= 0 and rows["until the first step ended"] >= 0.1
    assert capsys.readouterr().err == "" and str(profile).startswith("build")


def test_a_command_that_fails_prints_no_profile(capsys):
    original = builtins.__import__
    with pytest.raises(ValueError), StartupProfile():
        raise ValueError
    assert builtins.__import__ is original and capsys.readouterr().err == ""


def test_the_start_of_the_process_was_before_now():
    assert 0 <= seconds_since_start() < 1e6
