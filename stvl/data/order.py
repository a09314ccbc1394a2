"""The order of the data as a function of (seed, epoch, position): the same on every host, with any number of workers."""

from __future__ import annotations

import numpy as np

from stvl.core.errors import DataError

_MASK = (1 << 64) - 1
_ROUNDS = 6


def sample_index(position: int, size: int, seed: int, shuffle: bool = True) -> int:
    """Row of the table at global `position`: epoch ``e = position // size``, row ``P_{seed,e}(position % size)``.

    ``P`` is a keyed permutation of ``range(size)`` (the identity without `shuffle`), computed for one position at a
    time, so that it needs no memory and no state: a six-round Feistel network over the next even number of bits,
    walked until it falls inside the range.

    Raises:
        DataError: an empty table or a negative position.

    Source: Luby and Rackoff (1988); cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """
    if size < 1:
        raise DataError("there is no order over an empty table")
    if position < 0:
        raise DataError(f"a position counts from 0, found {position}")
    epoch, place = divmod(position, size)
    if not shuffle or size == 1:
        return place
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    while True:
        place = _feistel(place, half, keys)
        if place < size:
            return place


def sample_rng(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """Random numbers of one sample, keyed by (seed, epoch, index): independent of what was drawn before and where."""
    entropy = [seed & _MASK, epoch, index, stream]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def substitute_index(position: int, size: int, seed: int, attempt: int) -> int:
    """Row that stands in for the damaged clip drawn at `position`, keyed by (seed, epoch, position, attempt)."""
    key = _mix(_mix(_mix(seed & _MASK) ^ position) ^ (attempt + 0x5151))
    return key % size


def host_rows(batch: int, index: int, count: int) -> range:
    """Rows of a global batch that host `index` of `count` loads: consecutive, so that joining the hosts is the batch.

    Raises:
        DataError: a batch that does not divide among the hosts, or a host that does not exist.
    """
    if not 0 <= index < count:
        raise DataError(f"host index {index} is not in 0 .. {count - 1}")
    if batch % count:
        raise DataError(
            f"a global batch of {batch} does not divide among {count} hosts; use a multiple of {count}"
        )
    share = batch // count
    return range(index * share, (index + 1) * share)


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): every output bit depends on every input bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    key = _mix(_mix(seed & _MASK) ^ epoch)
    return tuple(_mix(key ^ (turn + 1)) for turn in range(_ROUNDS))


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half | right
