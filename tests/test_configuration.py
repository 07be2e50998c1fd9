"""Settings: overridden by dotted path, written to JSON and read back."""

import dataclasses
from typing import Literal

import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from vitx import configuration
from vitx.cli_settings import parse_settings
from vitx.configuration import (
    Words,
    differences,
    from_dict,
    is_mutable_on_resume,
    mutable_on_resume,
    names_marked,
    override,
    read_words,
    register,
    setting,
    to_dict,
)
from vitx.errors import UserError

pytestmark = pytest.mark.smoke


@register
@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    flag: bool = False
    name: str = "x"

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; expected at least 0")


@register
class Module(nn.Module):
    width: int = 4
    heads: int = 2

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        super().__post_init__()


@register
@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    module: nn.Module = Module()
    workers: int = mutable_on_resume(0)


def test_a_value_is_given_as_such_or_as_words_of_a_command_line():
    typed = override(Outer(), {"inner.rate": 2, "inner.sizes": [3], "inner.limit": 7, "module.width": 8})
    words = ["--inner.rate", "2", "--inner.sizes", "(3,)", "--inner.limit=7", "--module.width", "8"]
    assert (
        typed
        == override(Outer(), parse_settings(words))
        == Outer(Inner(rate=2.0, sizes=(3,), limit=7), Module(width=8))
    )
    assert isinstance(typed.inner.rate, float)
    words = ["--inner.flag", "True", "--inner.limit", "None", "--inner.name", "4"]
    assert override(Outer(), parse_settings(words)).inner == Inner(flag=True, limit=None, name="4")


def test_changes_of_one_part_are_checked_together():
    assert override(Outer(), {"module.heads": 3, "module.width": 9}).module == Module(9, 3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inner.ratte", 1, "no setting inner.ratte; did you mean inner.rate?"),
        ("iner.rate", 1, "did you mean inner.rate?"),
        ("inner.rate.x", 1, "no setting inner.rate.x"),
        ("rate", 1, "did you mean inner.rate?"),
        ("outer.flag", 1, "did you mean inner.flag?"),
        ("size", (1,), "no setting size"),
        ("inner.rate", "fast", "inner.rate is 'fast'; expected float"),
        ("inner.rate", "2", "inner.rate is '2'; expected float"),
        ("inner.sizes", (1, 2.5), "inner.sizes is (1, 2.5); expected tuple[int, ...]"),
        ("inner.kind", "c", "inner.kind is 'c'; expected one of 'a', 'b'"),
        ("inner.limit", True, "inner.limit is True; expected int or None"),
        ("inner.flag", 1, "inner.flag is 1; expected bool"),
        ("inner.rate", -1.0, "inner: rate is -1.0; expected at least 0"),
        ("module.width", 3, "module: width 3 is not divisible by heads 2"),
        ("module", 3, "module is 3; expected Module"),
    ],
)
def test_a_mistake_is_reported_in_one_message(path, value, message):
    with pytest.raises(UserError) as error:
        override(Outer(), {path: value})
    assert message in str(error.value)


@given(
    st.builds(
        Outer,
        st.builds(
            Inner,
            st.floats(0, 1e9),
            st.lists(st.integers(), max_size=4).map(tuple),
            st.sampled_from("ab"),
            st.none() | st.integers(),
            st.booleans(),
            st.text(),
        ),
        st.builds(Module, st.integers(1, 99).map(lambda n: 2 * n)),
        st.integers(),
    )
)
def test_a_json_round_trip_returns_an_equal_part(part):
    assert from_dict(to_dict(part)) == part


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "os.system"}, "no part of type 'os.system' is registered"),
        ({"type": "Iner"}, "did you mean Inner?"),
        ({"type": "Unlike"}, "no part of type 'Unlike' is registered. If it is your own"),
        ({"type": "Inner", "ratte": 1}, "Inner has no setting 'ratte'; did you mean rate?"),
        ({"type": "Inner", "rate": "fast"}, "Inner.rate is 'fast'; expected float"),
        ({"type": "Inner", "rate": -1}, "rate is -1.0; expected at least 0"),
    ],
)
def test_a_config_of_unknown_parts_is_refused(data, message):
    with pytest.raises(UserError) as error:
        from_dict(data)
    assert message in str(error.value)


def test_differences_are_listed_by_path_and_marked_settings_are_mutable_on_resume():
    assert differences(Outer(), override(Outer(), {"workers": 3, "inner.rate": 1})) == {
        "workers": (0, 3),
        "inner.rate": (0.1, 1.0),
    }
    assert (
        is_mutable_on_resume(Outer(), "workers")
        and not is_mutable_on_resume(Outer(), "inner.rate")
        and not is_mutable_on_resume(Outer(), "nothing.there")
    )
    assert configuration.settings(Module()) == {"width": 4, "heads": 2}


def test_marks_of_a_field_are_inherited_until_a_subclass_sets_its_own():
    class Base(nn.Module):
        heads: int = setting(2, changes_function=True)
        frames: int = setting(8, chosen_by_user=True)
        device: str = mutable_on_resume("auto")
        width: int = 4

    class Other(Base):
        heads: int = 3
        frames: int = setting(16, changes_function=True)

    assert names_marked(Base, "changes_function") == {"heads"}
    assert names_marked(Base, "chosen_by_user") == {"frames", "device"}
    assert names_marked(Base, "mutable_on_resume") == {"device"}
    assert names_marked(Other, "changes_function") == {"heads", "frames"} and Other().heads == 3
    assert names_marked(Other, "chosen_by_user") == {"device"}


@pytest.mark.parametrize(
    ("words", "annotation", "value"),
    [
        ("joint", tuple[str, ...], ("joint",)),
        ("time space", tuple[str, ...], ("time", "space")),
        ("(time,space)", tuple[str, ...], ("time", "space")),
        ("('joint',)", tuple[str, ...], ("joint",)),
        ("24 32", tuple[int, int], (24, 32)),
        ("24", int | tuple[int, int], 24),
        ("24", tuple[int, ...], (24,)),
        ("None", str | None, None),
        ("None", str, "None"),
        ("1e-3", float, 1e-3),
        ("3", float | None, 3.0),
        ("(('verb',97),('noun',300))", int | tuple[tuple[str, int], ...], (("verb", 97), ("noun", 300))),
    ],
)
def test_words_are_read_as_the_type_of_the_setting(words, annotation, value):
    found = read_words(annotation, Words(words.split()), "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "annotation", "message"),
    [("fast", float, "'fast'; expected float"), ("1 2.5", tuple[int, ...], "(1, 2.5)"), ("1", bool, "expected bool")],
)
def test_words_of_another_type_are_refused(words, annotation, message):
    with pytest.raises(UserError) as error:
        read_words(annotation, Words(words.split()), "x")
    assert message in str(error.value)


@pytest.mark.parametrize("words", [["1", "--rate", "2"], ["--rate"], ["--rate", "--flag", "True"]])
def test_words_without_a_setting_and_settings_without_words_are_refused(words):
    with pytest.raises(UserError, match="expected --"):
        parse_settings(words)


def test_a_suggestion_knows_abbreviations_and_names_without_their_part():
    from vitx.training.loop import Training
    from vitx.training.optimizers import AdamW

    @dataclasses.dataclass(frozen=True)
    class Parts:
        optimizer: AdamW = AdamW()
        training: Training = Training()

    for path, meant in (("optimizer.lr", "optimizer.peak_lr"), ("seed", "training.seed")):
        with pytest.raises(UserError, match=rf"{path}; did you mean {meant}\?"):
            override(Parts(), {path: 1})
