"""Where CLIP's text tower lies in public checkpoints, and the rules that its naming shares with CLIP's image tower.

Names are facts of open_clip's `transformer.py` and `model.py` (which keep those of OpenAI's CLIP) and of transformers'
`modeling_clip.py`.
"""

from __future__ import annotations

from stvl.weights.rules import First, Flat, Ignored, Kernel, Linear, New, Rule, Split, Step

#: The learned temperature; every CLIP-like file has it under this name, as the logarithm of the scale.
TEMPERATURE = Rule("logit_scale", ("log_scale",))

#: For files that hold an image tower and nothing else. Not part of any layout: the caller has to ask for it.
NEW_TEXT = New("text/.*|log_scale", "the file holds no text tower: it starts at random")

#: P_t of a model that starts from images.
NEW_TIME = New(
    "video/positions/time", "P_t: the file is of an image model; zeros, so that every frame is that model"
)

CAUSAL_MASK = Ignored(r"(text\.|textual\.)?attn_mask", "the causal mask, recomputed")


def dense(source: str, target: str, bias: bool = True) -> tuple[Rule, ...]:
    """A torch ``Linear`` from one axis to one axis."""
    kernel = Rule(f"{source}.weight", (f"{target}/kernel",), (Linear(),))
    return (kernel, Rule(f"{source}.bias", (f"{target}/bias",))) if bias else (kernel,)


def norm(source: str, target: str, over_heads: bool = False) -> tuple[Rule, ...]:
    """A torch ``LayerNorm``; `over_heads` where its parameters are kept as (h, e)."""
    steps = (Flat(),) if over_heads else ()
    return (
        Rule(f"{source}.weight", (f"{target}/scale",), steps),
        Rule(f"{source}.bias", (f"{target}/bias",), steps),
    )


def from_heads(source: str, target: str) -> tuple[Rule, ...]:
    """The projection behind attention: (d, h * e) to (h, e, d)."""
    return (
        Rule(f"{source}.weight", (f"{target}/kernel",), (Linear(inputs=2),)),
        Rule(f"{source}.bias", (f"{target}/bias",)),
    )


def fused_heads(weight: str, bias: str, target: str) -> tuple[Rule, ...]:
    """q, k and v in one (3 d, d) matrix and one (3 d) bias."""
    kernels, biases = (
        tuple(f"{target}/{name}/{kind}" for name in ("query", "key", "value")) for kind in ("kernel", "bias")
    )
    return Rule(weight, kernels, (Split(), Linear())), Rule(bias, biases, (Split(), Flat()))


def single_heads(source: str, target: str) -> tuple[Rule, ...]:
    """One of q, k and v: a ``Linear`` from d to h * e."""
    return (
        Rule(f"{source}.weight", (f"{target}/kernel",), (Linear(),)),
        Rule(f"{source}.bias", (f"{target}/bias",), (Flat(),)),
    )


def positions(source: str, tower: str, steps: tuple[Step, ...] = ()) -> Rule:
    """An image model's table: row 0 is the class token's, the others are places, rows first."""
    return Rule(source, (f"{tower}/class_position", f"{tower}/positions/space"), (*steps, First()))


def clip_block(source: str, target: str, flash: bool = False) -> tuple[Rule, ...]:
    """A residual block of CLIP; `flash` with the names of flash_attn's modules, which hold the same tensors."""
    qkv = ("attn.Wqkv.weight", "attn.Wqkv.bias") if flash else ("attn.in_proj_weight", "attn.in_proj_bias")
    up, out = ("mlp.fc1", "mlp.fc2") if flash else ("mlp.c_fc", "mlp.c_proj")
    return (
        *norm(f"{source}.ln_1", f"{target}/attention_norm"),
        *fused_heads(f"{source}.{qkv[0]}", f"{source}.{qkv[1]}", f"{target}/attention"),
        *from_heads(f"{source}.attn.out_proj", f"{target}/attention/out"),
        *norm(f"{source}.ln_2", f"{target}/mlp_norm"),
        *dense(f"{source}.{up}", f"{target}/mlp/up"),
        *dense(f"{source}.{out}", f"{target}/mlp/out"),
    )


def clip_text(prefix: str) -> tuple[Rule, ...]:
    """The text tower in the naming of OpenAI and open_clip: `prefix` is nothing, ``text.`` or ``textual.``."""
    return (
        Rule(f"{prefix}token_embedding.weight", ("text/tokens",)),
        Rule(f"{prefix}positional_embedding", ("text/positions",)),
        *clip_block(f"{prefix}transformer.resblocks.{{i}}", "text/stack/layers"),
        *norm(f"{prefix}ln_final", "text/norm"),
        Rule(f"{prefix}text_projection", ("text/projection/kernel",), (Kernel(),)),
    )


def hf_block(source: str, target: str) -> tuple[Rule, ...]:
    """A layer of transformers' ``CLIPEncoder``."""
    heads = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    split = [
        single_heads(f"{source}.self_attn.{name}", f"{target}/attention/{at}") for at, name in heads.items()
    ]
    return (
        *norm(f"{source}.layer_norm1", f"{target}/attention_norm"),
        *(rule for rules in split for rule in rules),
        *from_heads(f"{source}.self_attn.out_proj", f"{target}/attention/out"),
        *norm(f"{source}.layer_norm2", f"{target}/mlp_norm"),
        *dense(f"{source}.mlp.fc1", f"{target}/mlp/up"),
        *dense(f"{source}.mlp.fc2", f"{target}/mlp/out"),
    )


def hf_text() -> tuple[Rule, ...]:
    """The text tower of transformers' ``CLIPModel``."""
    return (
        Rule("text_model.embeddings.token_embedding.weight", ("text/tokens",)),
        Rule("text_model.embeddings.position_embedding.weight", ("text/positions",)),
        *hf_block("text_model.encoder.layers.{i}", "text/stack/layers"),
        *norm("text_model.final_layer_norm", "text/norm"),
        *dense("text_projection", "text/projection", bias=False),
    )
