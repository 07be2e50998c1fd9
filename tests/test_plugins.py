"""Plug-ins: parts of installed packages are found by name, and a broken package breaks nothing else."""

import re
import subprocess
import sys

import pytest

from vitx import plugins
from vitx.plugins import Registry


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs packages of one module each, given its source, and forgets them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
            about = tmp_path / f"{name}-1.5.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (about / "entry_points.txt").write_text(f"[vitx.plugins]\n{name} = {name}\n")
        plugins._pending.cache_clear()

    yield install
    plugins._pending.cache_clear()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.fixture
def colours(monkeypatch):
    """A registry that plug-ins reach as an attribute of `vitx.plugins`."""
    registry = Registry("colour", {"red": 1})
    monkeypatch.setattr(plugins, "colours", registry, raising=False)
    return registry


def test_a_plugin_is_imported_when_a_name_is_missing_and_once(install, colours):
    install(paint="from vitx import plugins\nplugins.colours.add('green', 2)\nprint('imported')\n")
    assert colours["red"] == 1 and "paint" not in sys.modules
    assert colours["green"] == 2 and "paint" in sys.modules
    assert "blue" not in colours and colours.get("blue") is None


def test_a_listing_includes_the_parts_of_plugins(install, colours):
    install(paint="from vitx import plugins\nplugins.colours.add('green', 2)\n")
    assert dict(colours) == {"red": 1, "green": 2}


def test_a_broken_plugin_is_reported_once_and_the_others_work(install, colours, capsys):
    install(
        a_broken="raise RuntimeError('no battery')\n",
        paint="from vitx import plugins\nplugins.colours.add('green', 2)\n",
        red="from vitx import plugins\nplugins.colours.add('red', 3)\n",
    )
    assert sorted(colours) == ["green", "red"] and colours["red"] == 1 and "blue" not in colours
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(word in lines[0] for word in ("a_broken 1.5", "RuntimeError", "no battery"))
    assert all(word in lines[1] for word in ("red 1.5", "two colours", "red: 1 and 3"))


def test_a_plugin_may_look_up_a_missing_name_while_it_is_imported(install, colours):
    install(paint="from vitx import plugins\nassert 'green' not in plugins.colours\nplugins.colours.add('green', 2)\n")
    assert colours["green"] == 2


def test_models_layouts_and_parts_of_config_are_open(install):
    install(
        openly="""
from flax import linen as nn
from vitx.configuration import register
from vitx.layers.layouts import LAYOUTS
from vitx.models import VARIANTS

@register
class Openly(nn.Module):
    num_classes: int = 400
    width: int = 4

VARIANTS.add("openly_small", Openly())
LAYOUTS.add("openly", LAYOUTS["joint"])
"""
    )
    import vitx
    from vitx.configuration import from_dict, to_dict
    from vitx.layers.layouts import LAYOUTS
    from vitx.models import VARIANTS

    try:
        assert "openly_small" in vitx.list_models("open*")
        model = vitx.create_model("openly_small", num_classes=3)
        assert from_dict(to_dict(model)) == model and model.width == 4
        assert "openly" in LAYOUTS
    finally:
        del VARIANTS._parts["openly_small"], LAYOUTS._parts["openly"]


def test_every_part_of_ours_is_found_by_name_alone(pytestconfig):
    """In a process of its own: here other tests have imported the modules that define them."""
    sources = (path.read_text() for path in (pytestconfig.rootpath / "vitx").rglob("*.py"))
    defined = {name for source in sources for name in re.findall(r"(?ms)^@register$.*?^class (\w+)", source)}
    code = "from vitx.configuration import _PARTS; print(*_PARTS)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(defined) > 40 and defined <= set(found.split())
