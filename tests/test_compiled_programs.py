"""The cache of compiled programs: where it is, what it never does, and what it removes."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vitx import cli, compiled_programs
from vitx.compiled_programs import default_folder, host_key, keep_own_programs, keep_programs, prepare, remove_oldest


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No folder is chosen, and the user's cache folder is empty; returns that folder."""
    chosen = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    # the disk of the tests may be nearly full
    monkeypatch.setattr(compiled_programs, "prepare", functools.partial(prepare, min_free=0))
    yield tmp_path / "caches"
    jax.config.update("jax_compilation_cache_dir", chosen)
    compilation_cache.reset_cache()


def test_programs_are_kept_in_the_users_cache_folder_and_read_again(unset):
    keep_programs()
    folder = unset / "vitx" / "compiled" / host_key()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert (unset / "vitx" / "compiled").stat().st_mode & 0o777 == 0o700
    hits = []

    def count(event, **_):
        if "cache_hits" in event:
            hits.append(event)

    jax.monitoring.register_event_listener(count)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        for expected in (0, 1):
            jax.jit(lambda x: jnp.sin(x) * 3).lower(jax.ShapeDtypeStruct((7,), jnp.float32)).compile()
            assert len(hits) == expected and len(list(folder.glob("*-cache"))) == 1
    finally:
        jax.monitoring.unregister_event_listener(count)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_a_folder_that_jax_was_given_stays(unset):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere" and not unset.exists()


def test_the_setting_names_a_folder_or_none(unset, tmp_path):
    keep_programs(str(tmp_path / "mine"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine" / host_key())
    keep_programs("off")
    assert jax.config.jax_compilation_cache_dir is None and not unset.exists()


def test_a_folder_that_a_run_names_is_not_read(unset, tmp_path):
    """It may come with the run, from somebody else."""
    keep_own_programs(str(tmp_path / "theirs"))
    assert jax.config.jax_compilation_cache_dir == str(unset / "vitx" / "compiled" / host_key())
    keep_own_programs("off")
    assert jax.config.jax_compilation_cache_dir is None


def test_processes_that_train_together_keep_none(unset, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("fault", ["not a folder", "full", "others may write", "no home"])
def test_a_folder_that_cannot_be_used_is_one_line_and_no_error(unset, monkeypatch, capsys, fault):
    if fault == "not a folder":
        unset.write_text("")
    elif fault == "full":
        monkeypatch.setattr(compiled_programs, "prepare", lambda folder: prepare(folder, min_free=2**70))
    elif fault == "others may write":
        (unset / "vitx" / "compiled").mkdir(parents=True)
        (unset / "vitx" / "compiled").chmod(0o777)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "JAX_COMPILATION_CACHE_DIR" in error


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vitx" / "compiled"


def test_the_programs_used_longest_ago_are_removed(tmp_path):
    (tmp_path / "host").mkdir()
    for age, name in enumerate("abcd"):
        (tmp_path / "host" / name).write_bytes(b"0" * 100)
        os.utime(tmp_path / "host" / name, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path, 250)
    assert sorted(path.name for path in (tmp_path / "host").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2", "model name\t: Other CPU"])
def test_hosts_with_other_cpus_have_other_folders(tmp_path, line):
    first = "model name\t: A CPU\nflags\t\t: fpu avx2 avx512f\ncpu MHz\t\t: {}\n"
    (tmp_path / "first").write_text(first.format(1000))
    (tmp_path / "same").write_text(first.format(2000))
    name = line.partition("\t")[0]
    (tmp_path / "other").write_text("".join(line + "\n" if x.startswith(name) else x for x in first.splitlines(True)))
    assert host_key(str(tmp_path / "first")) == host_key(str(tmp_path / "same"))
    assert host_key(str(tmp_path / "first")) != host_key(str(tmp_path / "other"))


def test_bench_keeps_programs(unset):
    small = ["--clip", "1", "16", "16", "--width", "4", "--batch", "1", "--repeats", "1"]
    assert cli.main(["bench", "cnn_small", *small]) == 0
    assert jax.config.jax_compilation_cache_dir.startswith(str(unset))
