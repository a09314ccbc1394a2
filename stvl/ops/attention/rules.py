"""Which backend ``impl=None`` takes: one table, with the measurement that each line rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from stvl.core.axes import AXES
from stvl.ops.attention.backends import Case
from stvl.ops.attention.sharded import local_case

#: Bytes of f32 scores of one device above which keeping them costs more than recomputing them, on a CPU; below, the
#: difference is milliseconds and the dense program compiles faster.
SCORES_LIMIT = 4 * 2**20

#: The same on other devices: not measured.
DEVICE_SCORES_LIMIT = 256 * 2**20

#: Tokens below which a TPU kernel works on padding for the most part.
TILE = 128


class Choice(NamedTuple):
    """One line of the table.

    Attributes:
        platform: where it holds.
        impl: the backend.
        passes_over: the reason not to take this line for a case, or None.
        evidence: what was measured, where and with what.
    """

    platform: str
    impl: str
    passes_over: Callable[[Case], str | None]
    evidence: str


def score_bytes(case: Case) -> int:
    """Bytes of the scores of a case in f32 on one device; a mesh splits samples, heads and queries."""
    batch, queries, heads, _ = local_case(case).q.shape
    if case.mesh is not None:
        mesh, rules = case.mesh
        queries = -(-queries // math.prod(mesh.shape[axis] for axis in rules.get(AXES["n"], ())))
    return 4 * batch * heads * queries * case.k.shape[1]


def _always(case: Case) -> str | None:
    return None


def _limit(case: Case) -> int:
    return SCORES_LIMIT if case.platform == "cpu" else DEVICE_SCORES_LIMIT


def _small(case: Case) -> str | None:
    needed, limit = score_bytes(case), _limit(case)
    return None if needed <= limit else f"the scores take {needed} bytes, the limit is {limit}"


def _tokens_split(case: Case) -> str | None:
    axis = case.options.ring_axis
    if case.mesh is not None and case.mesh[0].shape.get(axis, 1) > 1:
        return f"mesh axis {axis!r} splits the tokens, over which this kernel would repeat its work"
    return None


def _below_a_tile(case: Case) -> str | None:
    if min(case.q.shape[1], case.k.shape[1]) < TILE:
        return (
            f"a tile has {TILE} tokens, and there are {case.q.shape[1]} queries and {case.k.shape[1]} sources"
        )
    return _tokens_split(case)


def _tokens_whole(case: Case) -> str | None:
    axis = case.options.ring_axis
    if case.mesh is None or case.mesh[0].shape.get(axis, 1) == 1:
        return f"no mesh axis {axis!r} splits the tokens"
    needed, limit = score_bytes(case), _limit(case)
    return (
        None
        if needed > limit
        else f"the scores of a device take {needed} bytes, no ring is needed up to {limit}"
    )


_CPU_XLA = (
    "forward and gradient, f32, default tiles, CPU ms of xla and chunked: text-77 with 16 samples (3 MiB of scores) 24, "
    "15; 1 x 4 heads x 512 tokens 27, 30, compiled in 0.7 and 1.0 s. jax 0.10.2, 2 cores of a Xeon with AVX-512"
)
_CPU_RING = (
    "1 x 4 heads x 2,048 tokens, full mask, forward and gradient, wall ms of xla, chunked and ring: 708, 262, 167 on 2 "
    "fake devices, 273, 721, 129 on 8; 8,192 tokens on 8: chunked 11,034, ring 1,925 (XLA gathers the whole tokens on "
    "every device for chunked). jax 0.10.2, 2 cores of a Xeon with AVX-512"
)
_CPU_CHUNKED = (
    "forward and gradient, f32, CPU ms and MiB of temporaries of xla and chunked: b16-4f x 16 3,413 and 1,843, 2,547 and "
    "360; l14-4f x 8 3,981 and 2,085, 2,509 and 297; b16-16f x 1 4,241 and 1,820, 1,562 and 77; l14-16f x 1 10,331 and "
    "4,130, 3,478 and 134; window-8x7x7 x 64 1,177 and 919, 1,106 and 435; space-only x 64 1,014 and 492, 818 and 606. "
    "jax 0.10.2, 2 cores of a Xeon with AVX-512"
)
#: The ring sees no whole sequence on any device; there was no machine with several accelerators to time it on.
_RING = (
    "not timed on several devices. 65,536 tokens, 16 heads of 64, bf16, causal, compiled for 8 v5e chips: every "
    "transfer of a step starts before its kernels and ends after them. jax 0.10.2, libtpu ahead of time"
)
#: Bundles (`stvl bench attention --aot v5e --dtype bf16 --direction both`) and bytes (XLA's cost analysis of the same
#: programs) are the compiler's; a chip with 1.5 GHz and 819 GB/s needs at least the larger of both times.
_TPU = (
    "forward and gradient, bf16, compiled ahead of time for v5e, ms of xla and tpu by bundles (tpu with planned waits) and "
    "by bytes: text-77 0.1 and 0.4, 0.4 and 0.3; time-only 6.4 and 36, 8.4 and 3.4; space-only 0.6 and 1.1, 2.9 and 1.1; "
    "b16-4f 1.4 and 2.0, 6.4 and 1.1; window-8x7x7 2.8 and 5.3, 13.9 and 2.8. Not timed on a TPU. jax 0.10.2, libtpu 0.0.51"
)
_GPU = (
    "not measured: no GPU was at hand. The vendor's kernel first; the Pallas kernel (gpu) is for those who ask for it "
    "until it has been timed"
)


#: Asked from the top; the first line of the platform that neither passes over nor is declined by its backend wins.
CHOICES: tuple[Choice, ...] = (
    Choice("cpu", "xla", _small, _CPU_XLA),
    Choice("cpu", "ring", _tokens_whole, _CPU_RING),
    Choice("cpu", "chunked", _always, _CPU_CHUNKED),
    Choice("gpu", "ring", _tokens_whole, _RING),
    Choice("gpu", "cudnn", _tokens_split, _GPU),
    Choice("gpu", "xla", _small, _GPU),
    Choice("gpu", "chunked", _always, _GPU),
    Choice("tpu", "ring", _tokens_whole, _RING),
    Choice("tpu", "tpu", _below_a_tile, _TPU),
    Choice("tpu", "xla", _small, _TPU),
    Choice("tpu", "chunked", _always, _TPU),
)
