"""CLIP's ids."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from stvl.core.config import from_dict, to_dict
from stvl.core.errors import ConfigError
from stvl.data.text import ClipTokenizer


def test_known_ids_between_start_and_end():
    ids = ClipTokenizer()(["A person taking the"])
    assert ids.shape == (1, 77) and ids.dtype == np.int32
    assert ids[0, :7].tolist() == [49406, 320, 2533, 2019, 518, 49407, 0]
    assert not ids[0, 6:].any()


def test_the_end_id_is_the_largest_of_each_row():
    tokenizer = ClipTokenizer(context_length=8)
    ids = tokenizer(["", "a", "a person taking the bread out of the oven and onto the table"])
    assert ids.argmax(1).tolist() == [1, 2, 7]
    assert (ids.max(1) == tokenizer.end_id).all() and tokenizer.vocab_size == tokenizer.end_id + 1


def test_a_long_text_is_cut_and_still_ends():
    ids = ClipTokenizer(context_length=4)(["A person taking the"])
    assert ids.tolist() == [[49406, 320, 2533, 49407]]


def test_case_space_and_entities_do_not_matter():
    ids = ClipTokenizer()(["bread & butter's", "  Bread \n &amp;amp;  BUTTER&#39;s "])
    assert np.array_equal(ids[0], ids[1])


def test_no_text_is_an_empty_batch():
    assert ClipTokenizer(context_length=5)([]).shape == (0, 5)


def test_one_string_is_refused():
    with pytest.raises(ConfigError, match=r"write \['cut onion'\]"):
        ClipTokenizer()("cut onion")


def test_too_little_room():
    with pytest.raises(ConfigError, match="found 1"):
        ClipTokenizer(context_length=1)


def test_it_travels_after_use():
    tokenizer = ClipTokenizer(context_length=9)
    before = tokenizer(["wash the pan"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert np.array_equal(again(["wash the pan"]), before)
    assert from_dict(to_dict(tokenizer)) == tokenizer
