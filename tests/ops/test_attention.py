"""The attention op: every backend through the contract, and the dispatcher's errors."""

from __future__ import annotations

import importlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.core.errors import NotSupported
from stvl.ops.attention import BACKENDS, AttentionOptions, Causal, Full, attention, explain, rules
from stvl.ops.attention.masks import Both
from stvl.ops.rotary import Rotary, rotate
from tests.contracts.attention import SHAPES, AttentionContract, Blind, First, Shape, close, draw, plain


class TestXla(AttentionContract):
    backend = "xla"


class TestReference(AttentionContract):
    backend = "reference"


class TestChunked(AttentionContract):
    backend = "chunked"
    options = AttentionOptions(block_q=16, block_kv=8)
    declines: ClassVar = {"custom": "neither a band nor a mask by segment ids"}


def test_every_backend_joins_the_contract():
    """Classes of all files; cuDNN has a contract of its own, in half precision and on GPUs only."""
    for name in ("tpu", "gpu", "ring", "vendor"):
        importlib.import_module(f"tests.ops.test_attention_{name}")
    joined = {item.backend for item in AttentionContract.__subclasses__()}
    assert joined == set(BACKENDS) - {"cudnn"}


def test_no_backend_named_asks_the_next_one_and_keeps_the_reason(monkeypatch):
    q, k, v, ct = draw(SHAPES["odd length"])
    assert explain(q, k, v) == ("xla", {})
    monkeypatch.setattr(rules, "SCORES_LIMIT", 100)
    chosen, reasons = explain(q, k, v)
    assert chosen == "chunked" and reasons == {
        "xla": "the scores take 1568 bytes, the limit is 100",
        "ring": "no mesh axis 'context' splits the tokens",
    }
    out = attention(q, k, v, mask=Causal())
    close(out, plain(q, k, v, ct, Causal())[0], 2e-5)


def test_all_backends_decline_with_all_reasons(monkeypatch):
    monkeypatch.setattr(rules, "SCORES_LIMIT", 100)
    q, k, v, _ = draw(SHAPES["odd length"])
    with pytest.raises(NotSupported, match=r"xla: the scores take .*; chunked: Blind is neither a band"):
        attention(q, k, v, mask=Blind())
    assert explain(q, k, v, mask=Blind())[0] is None


def test_unknown_backend_shows_the_nearest():
    q, k, v, _ = draw(SHAPES["one token"])
    with pytest.raises(
        ValueError, match=r"unknown attention backend 'referense' \(did you mean 'reference'\?\)"
    ):
        attention(q, k, v, impl="referense")


def heads(*shape: int) -> jnp.ndarray:
    return jnp.zeros(shape)


ROTARY = Rotary(jnp.zeros((5, 2)), jnp.zeros((2, 4)))
WRONG = [
    ((heads(2, 5, 4, 8), heads(2, 5, 4, 8), heads(2, 6, 4, 8)), {}, "keys and values must have one shape"),
    ((heads(2, 5, 4, 8), heads(3, 5, 4, 8), heads(3, 5, 4, 8)), {}, "must share batch and head width"),
    ((heads(2, 5, 4, 8), heads(2, 5, 4, 6), heads(2, 5, 4, 6)), {}, "must share batch and head width"),
    ((heads(2, 5, 4, 8), heads(2, 5, 3, 8), heads(2, 5, 3, 8)), {}, "4 query heads cannot share 3 key heads"),
    (
        (heads(2, 5, 4, 8), heads(2, 6, 4, 8), heads(2, 6, 4, 8)),
        {"rotary": ROTARY},
        "as many queries as sources, found 5 and 6",
    ),
]


@pytest.mark.parametrize(("arrays", "options", "message"), WRONG)
@pytest.mark.parametrize("impl", [None, *BACKENDS])
@pytest.mark.usefixtures("as_installed")
def test_shapes_that_do_not_fit_are_the_callers_fault(arrays, options, message, impl):
    with pytest.raises(ValueError, match=message):
        attention(*arrays, **options, impl=impl)


@pytest.mark.parametrize("impl", [None, *BACKENDS])
def test_sequences_of_no_tokens_give_zeros_and_no_gradient(impl):
    q, k, v, ct = draw(Shape(2, 5, 5, 4, 2, 8))
    nothing = jax.grad(lambda q, k, v: (attention(q, k, v, impl=impl) * ct).sum(), argnums=(0, 1, 2))
    assert attention(q[:, :0], k, v, impl=impl).shape == (2, 0, 4, 8)
    assert (np.asarray(attention(q, k[:, :0], v[:, :0], impl=impl)) == np.zeros((2, 5, 4, 8))).all()
    dq, dk, dv = nothing(q, k[:, :0], v[:, :0])
    assert (np.asarray(dq) == 0).all() and dk.shape == dv.shape == (2, 0, 2, 8)


@pytest.mark.parametrize("impl", ["reference", "xla", "chunked"])
def test_rotary_turns_queries_and_keys(impl):
    q, k, v, _ = draw(SHAPES["odd length"])
    rng = np.random.default_rng(0)
    rotary = Rotary(
        jnp.asarray(rng.standard_normal((7, 3)), jnp.float32), jnp.asarray(rng.random((3, 4)), jnp.float32)
    )
    turned = attention(rotate(q, rotary), rotate(k, rotary), v, impl=impl)
    assert np.array_equal(attention(q, k, v, rotary=rotary, impl=impl), turned)
    assert not np.allclose(attention(q, k, v, impl=impl), turned, atol=1e-3)


def test_masks_combine():
    assert Full() & Causal() == Causal()
    assert Causal() & Full() == Causal()
    assert Causal() & Causal() == Causal()
    assert Causal() & First(2) == Both(Causal(), First(2))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (Causal() & First(2)).as_array(3, 4).tolist() == np.array(expected, bool).tolist()
    assert Full().as_array(1, 2).tolist() == [[True, True]]
    assert len({Causal(), Causal(), First(1), First(2)}) == 3
