"""The axis alphabet: one letter, one meaning."""

from __future__ import annotations

import jaxtyping
import pytest

from stvl.core.axes import AXES, logical


def test_letters_are_single_and_meanings_are_unique():
    assert all(len(letter) == 1 for letter in AXES)
    assert len(set(AXES.values())) == len(AXES)


def test_video_tokens_and_heads_spell_out():
    assert logical("b t y x c") == ("batch", "frame", "row", "column", "channel")
    assert logical("b n d") == ("batch", "token", "width")
    assert logical("b q h e") == ("batch", "query_token", "query_head", "head_width")
    assert logical("") == ()


def test_unknown_letter_is_named():
    with pytest.raises(KeyError, match="z"):
        logical("b z")


def test_the_alphabet_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        AXES["z"] = "zone"  # type: ignore[index]


def test_the_type_checker_of_the_tests_is_on():
    with pytest.raises(jaxtyping.TypeCheckError, match="letters"):
        logical(3)  # type: ignore[arg-type]
