"""The vendors' attention as backends: splash attention of JAX on TPUs, cuDNN on GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from stvl.core.errors import NotSupported
from stvl.ops.attention import (
    AttentionOptions,
    BlockCausal,
    Causal,
    Full,
    Lengths,
    Mask,
    Prefix,
    Segments,
    Window,
    api,
    attention,
    cudnn,
    explain,
    splash,
)
from tests.contracts.attention import (
    SHAPES,
    TOLERANCE,
    AttentionContract,
    Blind,
    Shape,
    close,
    draw,
    draw_rotary,
    plain,
    run,
)


@pytest.mark.slow
class TestSplash(AttentionContract):
    backend = "splash"
    options = AttentionOptions(block_q=128, block_kv=128)


SEVERAL_BLOCKS = Shape(2, 300, 300, 1, 1, 32)
IDS = np.array([[0] * 100 + [1] * 140 + [-1] * 60, [2] * 300], np.int32)
LONG_MASKS: dict[str, Mask] = {
    "causal, 20 sources before": Causal(offset=20),
    "no block of the first queries is seen": Causal(offset=-140),
    "window & segments": Window(150, 10) & Segments(IDS),
    "frames & lengths": BlockCausal(50) & Lengths(np.array([130, 0]), np.array([300, 200])),
}


@pytest.mark.slow
@pytest.mark.parametrize("mask", LONG_MASKS)
def test_splash_over_several_blocks(mask):
    arrays, rotary = draw(SEVERAL_BLOCKS, seed=8), draw_rotary(SEVERAL_BLOCKS, batched=True)
    options = AttentionOptions(block_q=128, block_kv=256, block_q_backward=384, block_kv_backward=128)
    found, slopes = run("splash", arrays, LONG_MASKS[mask], rotary, options)
    expected, others = plain(*arrays, LONG_MASKS[mask], rotary)
    for one, other in zip((found, *slopes), (expected, *others), strict=True):
        close(one, other, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("count", "wanted", "block", "padded"),
    [
        (1, 1024, 128, 128),
        (785, 1024, 896, 896),
        (1025, 1024, 640, 1280),
        (4097, 1024, 896, 4480),
        (300, 1, 128, 384),
    ],
)
def test_splash_pads_to_few_blocks(count, wanted, block, padded):
    assert splash._block(count, wanted) == (block, padded)
    assert splash._divisor(padded, block) == block


def test_splash_takes_a_smaller_divisor_where_a_backward_block_does_not_divide():
    assert splash._divisor(4480, 1024) == 896
    assert splash._divisor(896, 512) == 128
    assert splash._divisor(128, 1) == 128


def kind(mask: Mask, queries: int, sources: int) -> tuple[str, bool]:
    plan = splash._plan(queries, sources, mask, AttentionOptions())
    return type(plan.mask).__name__, plan.hides_padding


def test_splash_computes_masks_where_it_can():
    assert kind(Full(), 256, 256) == ("FullMask", False)
    assert kind(Full(), 256, 200) == ("FullMask", True)
    assert kind(Causal(), 200, 200) == ("CausalMask", False)
    assert kind(Causal(5), 200, 200) == ("CausalMask", True)
    assert kind(Window(4, 2), 200, 200) == ("LocalMask", True)
    # Blind rows need a mask by its array, in which they see one source.
    assert kind(Causal(-6), 200, 200) == ("NumpyMask", False)
    assert kind(Window(4, 2), 200, 100) == ("NumpyMask", False)
    assert kind(Prefix(11), 200, 200) == ("NumpyMask", False)


def on(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(api, "target_platform", lambda: platform)


class Traced(Mask):
    """A mask whose array is made by JAX."""

    def as_array(self, queries: int, sources: int) -> Any:
        return jnp.ones((queries, sources), bool)


SPLASH_DECLINES = [
    ("gpu", "bfloat16", 8, Full(), "splash attention is for TPUs, the program runs on gpu"),
    ("tpu", "float32", 8, Full(), "multiplies float32 heads in bfloat16 on TPUs"),
    ("cpu", "float16", 8, Full(), "takes float32 and bfloat16, the heads are float16"),
    ("cpu", "bfloat16", 8200, Prefix(4), "an array of 8200 x 8200, the limit is 67108864 pairs"),
    ("cpu", "bfloat16", 8, Traced(), "the array of Traced is not known when the program is traced"),
]


@pytest.mark.parametrize(("platform", "dtype", "tokens", "mask", "reason"), SPLASH_DECLINES)
def test_splash_says_why_it_declines(monkeypatch, platform, dtype, tokens, mask, reason):
    on(monkeypatch, platform)
    x = jnp.zeros((1, tokens, 1, 8), dtype)
    with pytest.raises(NotSupported, match=f"attention backend 'splash': .*{reason}"):
        attention(x, x, x, mask=mask, impl="splash")


SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stvl.core.sharding import activation_sharding
from stvl.ops.attention import Causal, Full, Lengths, Prefix, attention

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = Mesh(np.array(devices[:1]), ("one",))
cases = [(785, 4, 4, 64, Full()), (200, 4, 2, 72, Causal()), (300, 2, 1, 128, Prefix(20) & Lengths(np.array([99])))]
for n, h, g, e, mask in cases:
    q, k = (
        jax.ShapeDtypeStruct((1, n, heads, e), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
        for heads in (h, g)
    )
    def total(q, k, v):
        with activation_sharding(mesh, {}):
            return attention(q, k, v, mask=mask, impl="splash").astype(jnp.float32).sum()
    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).compile().as_text()
    print(text.count("tpu_custom_call"))
"""


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_splash_compiles_for_tpus_without_one(topology):
    pytest.importorskip("libtpu", reason="the libtpu wheel is an optional package")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    command = [sys.executable, "-c", SCRIPT, topology]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    # Forward, gradient of keys and values, gradient of queries.
    assert [int(line) >= 3 for line in done.stdout.split()[-3:]] == [True] * 3


# cuDNN.

CUDNN_DECLINES = [
    ("cpu", "bfloat16", (8, 8, 64), Full(), "cuDNN is for NVIDIA GPUs, the program runs on cpu"),
    ("tpu", "bfloat16", (8, 8, 64), Full(), "cuDNN is for NVIDIA GPUs, the program runs on tpu"),
    ("gpu", "float32", (8, 8, 64), Full(), "takes bfloat16 and float16, the heads are float32 and float32"),
    ("gpu", "bfloat16", (8, 8, 12), Full(), "multiples of 8 up to 128, found 12"),
    ("gpu", "bfloat16", (8, 8, 136), Full(), "multiples of 8 up to 128, found 136"),
    ("gpu", "bfloat16", (8, 8, 64), Blind(), "Blind is neither a band nor a mask by segment ids"),
    ("gpu", "bfloat16", (8, 8, 64), Segments(np.zeros((1, 8), np.int32)), "knows lengths, not segments"),
    ("gpu", "bfloat16", (8, 8, 64), Causal(2), "causal masks and windows that end at the query"),
    ("gpu", "bfloat16", (8, 9, 64), Causal(), "over equal lengths"),
    ("gpu", "bfloat16", (8, 8, 64), Window(2, 1), "causal masks and windows that end at the query"),
    ("gpu", "bfloat16", (8, 8, 64), Prefix(3), "causal masks and windows that end at the query"),
    ("gpu", "bfloat16", (8, 8, 64), Window(2, 0) & Lengths(np.array([3])), "not joined with lengths"),
]


@pytest.mark.parametrize(("platform", "dtype", "sizes", "mask", "reason"), CUDNN_DECLINES)
def test_cudnn_says_why_it_declines(monkeypatch, platform, dtype, sizes, mask, reason):
    on(monkeypatch, platform)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    q, k = (jnp.zeros((1, tokens, 2, sizes[2]), dtype) for tokens in sizes[:2])
    with pytest.raises(NotSupported, match=f"attention backend 'cudnn': .*{reason}"):
        attention(q, k, k, mask=mask, impl="cudnn")


def test_cudnn_is_not_asked_for_gpus_that_are_not_here(monkeypatch):
    on(monkeypatch, "gpu")
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    with pytest.raises(NotSupported, match="there is no GPU here"):
        attention(q, q, q, impl="cudnn")
    assert explain(q, q, q)[0] != "cudnn"


FORMS = [
    (Full(), (5, 9), (False, None)),
    (Causal(20), (5, 9), (False, None)),
    (Window(9, 9), (9, 9), (False, None)),
    (Causal(), (9, 9), (True, None)),
    (Window(8, 0), (9, 9), (True, None)),
    (Window(3, 0), (9, 9), (True, 3)),
    (Causal() & Window(3, 4), (9, 9), (True, 3)),
    (BlockCausal(1), (9, 9), (True, None)),
]


@pytest.mark.parametrize(("mask", "sizes", "form"), FORMS)
def test_masks_in_the_words_of_cudnn(mask, sizes, form):
    assert cudnn._form(cudnn.parts(mask)[0], *sizes) == form


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Full(), ("NO_MASK", 0)),
        (Causal(), ("CAUSAL", 0)),
        (Window(3, 0), ("CAUSAL", 4)),
        (Lengths(np.array([3, 0])), ("PADDING", 0)),
        (Causal() & Lengths(np.array([3, 8]), np.array([8, 0])), ("PADDING_CAUSAL", 0)),
    ],
)
def test_cudnn_call_lowers_for_cuda(monkeypatch, mask, words):
    # JAX asks the cuDNN and the GPU at hand what they are; a machine without them says here that all is well.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: False
    )
    on(monkeypatch, "gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k = (jnp.zeros((2, 8, heads, 64), jnp.bfloat16) for heads in (4, 2))

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, mask=mask, impl="cudnn").astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    text = text.replace("\\22", '"')
    assert set(re.findall(r'"mask_type": "(\w+)"', text)) == {words[0]}
    assert set(re.findall(r'"sliding_window_length": (\d+)', text)) == {str(words[1])}


CUDNN_SHAPES = {
    name: SHAPES[name]
    for name in (
        "odd length",
        "grouped heads",
        "more queries than sources",
        "odd heads, head width 64",
        "wide heads",
    )
}
CUDNN_MASKS: dict[str, Mask] = {
    "full": Full(),
    "causal": Causal(),
    "window": Window(9, 0),
    "lengths": Lengths(np.array([23])),
    "lengths of both": Lengths(np.array([29]), np.array([17])),
    "no source": Lengths(np.array([0])),
    "causal & lengths": Causal() & Lengths(np.array([29]), np.array([17])),
}


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
class TestCudnn:
    """cuDNN takes no f32, so it joins no contract; these are the contract's cases in bf16."""

    def agrees(self, shape: Shape, mask: Mask, turn: bool = False) -> None:
        arrays = draw(shape, "bfloat16")
        rotary = draw_rotary(shape) if turn else None
        found, slopes = run("cudnn", arrays, mask, rotary)
        expected, others = plain(*arrays, mask, rotary)
        for one, other in zip((found, *slopes), (expected, *others), strict=True):
            close(one, other, TOLERANCE["bfloat16"])

    @pytest.mark.parametrize("shape", CUDNN_SHAPES)
    def test_agrees_with_numpy(self, shape: str) -> None:
        self.agrees(CUDNN_SHAPES[shape], Full())

    @pytest.mark.parametrize("mask", CUDNN_MASKS)
    def test_masks_agree_with_numpy(self, mask: str) -> None:
        self.agrees(SHAPES["grouped heads"], CUDNN_MASKS[mask])

    def test_turned_heads_agree_with_numpy(self) -> None:
        self.agrees(SHAPES["odd heads, head width 64"], Causal(), turn=True)
