"""EVA02-AT and its train step as a PyTorch user would write them for speed: SDPA, autocast, f32 parameters, fused AdamW.

The blocks are timm's own where timm is installed, and the same written here where it is not; everything around them is
written here. Names and layout are those of the public weights (timm's EVA-02, transformers' CLIP text), so that
`mapping` carries weights to stvl. Classes are made inside functions, for torch is imported only there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from stvl.models.dual import DualEncoderConfig
from stvl.rope.schemes import RopeScheme

from .compare import MEAN, STD

Tensor = Any
Module = Any

Blocks = Literal["timm", "own"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the step is run.

    Attributes:
        dtype: ``float32``, or ``bfloat16`` under autocast with a residual stream in bfloat16, as in stvl.
        blocks: whose EVA-02 blocks.
        temperature, rate, clip, decay: of InfoNCE and of AdamW, as in `stvl.plan.steps.step_experiment`.
    """

    dtype: str = "float32"
    blocks: Blocks = "own"
    temperature: float = 0.05
    rate: float = 3e-5
    clip: float = 1.0
    decay: float = 0.01


def rope_table(scheme: RopeScheme, frames: int, side: int, head: int) -> np.ndarray:
    """timm's table ``[sines, cosines]`` (n, 2 e), every angle twice (interleaved pairs), without the class token."""
    angles = scheme.coords(frames, side, side, prefix=0) @ scheme.frequencies(head)
    twice = np.repeat(angles, 2, axis=-1)
    return np.concatenate([np.sin(twice), np.cos(twice)], axis=-1).astype(np.float32)


@functools.cache
def eva_attention() -> type:
    """EVA-02's attention: no bias of k, a norm before the out-projection, rotation of all tokens but the first."""
    import torch
    from torch import nn
    from torch.nn import functional

    def turned(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        left, right = x[..., ::2], x[..., 1::2]
        return x * cos + torch.stack([-right, left], dim=-1).flatten(-2) * sin

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width, bias=False)
            self.norm, self.proj = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, width)

        def forward(self, x: Tensor, rope: Tensor) -> Tensor:
            sin, cos = rope.chunk(2, -1)
            q, k, v = (
                part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = (
                torch.cat([y[:, :, :1], turned(y[:, :, 1:], sin, cos).to(v.dtype)], dim=2) for y in (q, k)
            )
            out = functional.scaled_dot_product_attention(q, k, v)
            return self.proj(self.norm(out.transpose(1, 2).flatten(2)))

    return Attention


@functools.cache
def eva_block() -> type:
    """EVA-02's pre-norm block with SwiGLU."""
    from torch import nn
    from torch.nn import functional

    class SwiGLU(nn.Module):
        def __init__(self, width: int, hidden: int) -> None:
            super().__init__()
            self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
            self.norm, self.fc2 = nn.LayerNorm(hidden, eps=1e-6), nn.Linear(hidden, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.norm(functional.silu(self.fc1_g(x)) * self.fc1_x(x)))

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, hidden: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.attn = eva_attention()(width, heads)
            self.mlp = SwiGLU(width, hidden)

        def forward(self, x: Tensor, rope: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x), rope)
            return x + self.mlp(self.norm2(x))

    return Block


def eva_blocks(config: Any, blocks: Blocks) -> Module:
    """The blocks of a video tower, called with ``(x, rope=table)``."""
    from torch import nn

    if blocks == "own":
        made = (eva_block()(config.width, config.heads, config.mlp_hidden) for _ in range(config.depth))
        return nn.ModuleList(made)
    from timm.models.eva import Eva

    return Eva(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        # From here on as timm's eva02_base_patch16_clip_224.
        global_pool="token",
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
    ).blocks


@functools.cache
def video_tower() -> type:
    """The video tower: ``z0 = x + P_xy + P_t`` behind the class token, joint attention, the class token's feature."""
    import torch
    from torch import nn

    class VideoTower(nn.Module):
        def __init__(self, config: Any, frames: int, embedding: int, setting: Setting) -> None:
            super().__init__()
            d, side = config.width, config.side
            self.dtype = getattr(torch, setting.dtype)
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, config.patch, config.patch)})
            self.cls_token = nn.Parameter(torch.randn(1, 1, d) * 0.02)
            self.pos_embed = nn.Parameter(torch.randn(1, 1 + side**2, d) * 0.02)
            self.time = nn.Parameter(torch.randn(frames, d) * 0.02)
            self.blocks = eva_blocks(config, setting.blocks)
            self.norm, self.head = nn.LayerNorm(d, eps=1e-6), nn.Linear(d, embedding, bias=False)
            table = rope_table(config.scheme, frames, side, d // config.heads)
            self.register_buffer("rope", torch.from_numpy(table), persistent=False)
            self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
            self.register_buffer("std", torch.tensor(STD), persistent=False)

        def forward(self, video: Tensor) -> Tensor:
            b, t = video.shape[:2]
            pixels = ((video.float() / 255 - self.mean) / self.std).flatten(0, 1).permute(0, 3, 1, 2)
            with torch.autocast(video.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
                x = self.patch_embed["proj"](pixels).flatten(2).mT.unflatten(0, (b, t))
                x = x + self.pos_embed[:, None, 1:] + self.time[None, :, None]
                first = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
                x = torch.cat([first, x.flatten(1, 2)], dim=1).to(self.dtype)
                for block in self.blocks:
                    x = block(x, rope=self.rope)
            return self.head(self.norm(x[:, 0].float()))

    return VideoTower


@functools.cache
def text_block() -> type:
    """CLIP's causal pre-norm block with the exact GELU."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            names = ("q_proj", "k_proj", "v_proj", "out_proj")
            self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
            self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

        def forward(self, x: Tensor) -> Tensor:
            inner = self.layer_norm1(x)
            q, k, v = (
                self.self_attn[f"{kind}_proj"](inner).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for kind in "qkv"
            )
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.self_attn["out_proj"](out.transpose(1, 2).flatten(2))
            return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.layer_norm2(x))))

    return Block


@functools.cache
def text_tower() -> type:
    """CLIP's text tower: the feature of the largest id of a row."""
    import torch
    from torch import nn

    class TextTower(nn.Module):
        def __init__(self, config: Any, embedding: int, setting: Setting) -> None:
            super().__init__()
            d = config.width
            self.dtype = getattr(torch, setting.dtype)
            tables = {
                "token_embedding": nn.Embedding(config.vocabulary, d),
                "position_embedding": nn.Embedding(config.context, d),
            }
            layers = nn.ModuleList(text_block()(d, config.heads) for _ in range(config.depth))
            parts = {
                "embeddings": nn.ModuleDict(tables),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": nn.LayerNorm(d),
            }
            for table in tables.values():
                nn.init.normal_(table.weight, std=0.02)
            self.text_model = nn.ModuleDict(parts)
            self.text_projection = nn.Linear(d, embedding, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            tables, layers = self.text_model["embeddings"], self.text_model["encoder"]["layers"]
            x = tables["token_embedding"](ids) + tables["position_embedding"].weight[: ids.shape[1]]
            with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
                x = x.to(self.dtype)
                for block in layers:
                    x = block(x)
            end = x[torch.arange(len(ids), device=ids.device), ids.argmax(1)].float()
            return self.text_projection(self.text_model["final_layer_norm"](end))

    return TextTower


@functools.cache
def dual_loss() -> type:
    """Both towers, and InfoNCE of their unit features, the mean of both directions."""
    import torch
    from torch import nn
    from torch.nn import functional

    class DualLoss(nn.Module):
        def __init__(self, model: DualEncoderConfig, frames: int, setting: Setting) -> None:
            super().__init__()
            self.temperature = setting.temperature
            self.video = video_tower()(model.video, frames, model.embedding, setting)
            self.text = text_tower()(model.text, model.embedding, setting)

        def forward(self, video: Tensor, ids: Tensor) -> Tensor:
            clips, texts = (functional.normalize(x, dim=-1) for x in (self.video(video), self.text(ids)))
            logits = clips @ texts.T / self.temperature
            right = torch.arange(len(ids), device=ids.device)
            return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2

    return DualLoss


#: Tables and the class token, which do not decay, as in `stvl.train.optimizers.decay_mask`.
_STAYS = ("cls_token", "pos_embed", "time", "position_embedding.weight")


def adamw(model: Module, setting: Setting) -> Any:
    """AdamW, fused, with stvl's decay mask: matrices and the table of words decay."""
    import torch

    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or name.endswith(_STAYS) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": setting.decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=setting.rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


class Step:
    """``step(video, ids)``: forward, backward, bound on the gradient, update; gives the loss before the update.

    Attributes:
        model: both towers with the loss.
        loss: what is called for the loss: the model, or its compiled form.
    """

    def __init__(self, model: Module, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.loss: Any = model
        self.optimizer = adamw(model, setting)

    def __call__(self, video: Tensor, ids: Tensor) -> Tensor:
        import torch

        loss = self.loss(video, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
