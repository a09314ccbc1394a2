"""Errors: the classes that callers catch, and the hint at the nearest name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvl.core.errors import ConfigError, DataError, NotSupported, StvlError, TrainingError, nearest


def test_nearest_names_the_closest_option():
    assert nearest("learnig_rate", ["batch", "learning_rate", "steps"]) == " (did you mean 'learning_rate'?)"


def test_nearest_lists_the_options_in_order_when_none_is_close():
    assert nearest("zzz", ["b16", "tiny", "b16", "l14"]) == " (there are: b16, l14, tiny)"


def test_nearest_shows_a_dozen_at_most():
    options = [f"option-{index:02d}" for index in range(13)]
    hint = nearest("zzz", options)
    assert hint.endswith("option-11, ...)")
    assert "option-12" not in hint
    assert not nearest("zzz", options[:12]).endswith("...)")


def test_nearest_of_nothing_is_empty():
    assert nearest("anything", []) == ""


@given(st.lists(st.text("abcdef", min_size=1, max_size=8), min_size=1, max_size=20))
def test_nearest_finds_every_exact_name(names):
    assert nearest(names[0], names) == f" (did you mean {names[0]!r}?)"


@pytest.mark.parametrize(
    ("error", "builtin"), [(ConfigError, ValueError), (DataError, ValueError), (TrainingError, RuntimeError)]
)
def test_errors_are_caught_as_stvl_errors_and_as_the_builtin(error, builtin):
    assert issubclass(error, StvlError)
    assert issubclass(error, builtin)


def test_a_declined_case_is_not_an_error_of_the_user():
    assert not issubclass(NotSupported, StvlError)
