"""The pairwise op: every backend through the contract."""

from __future__ import annotations

from typing import ClassVar

from stvl.ops.pairwise import PairwiseOptions
from stvl.ops.pairwise.api import BACKENDS
from tests.contracts.pairwise import PairwiseContract


class TestDense(PairwiseContract):
    backend = "dense"


class TestChunked(PairwiseContract):
    backend = "chunked"
    options: ClassVar = PairwiseOptions(chunk=4)


class TestChunkedInOne(PairwiseContract):
    backend = "chunked"


class TestRingOf2(PairwiseContract):
    backend = "ring"
    devices = 2
    options: ClassVar = PairwiseOptions(chunk=5)


class TestRingOf3(PairwiseContract):
    backend = "ring"
    devices = 3


class TestRingOf4(PairwiseContract):
    backend = "ring"
    devices = 4


class TestRingOf8(PairwiseContract):
    backend = "ring"
    devices = 8
    options: ClassVar = PairwiseOptions(chunk=2)


def test_every_backend_joins_the_contract():
    joined = {item.backend for item in PairwiseContract.__subclasses__()}
    assert joined == set(BACKENDS)
