"""Writes the golden arrays of the parity ladder from timm's EVA-02, transformers' CLIP text and open_clip's loss.

Regenerate in an environment of its own (stvl and jax are not needed), from the root of the repository:

    pip install timm transformers open_clip_torch jaxtyping
    python -m tests.parity.make_golden

Outputs come from f64 runs and are stored as f32; ``f32_error/...`` says how far the same source is from them when it
runs in f32. Weights are values of half precision, stored as such. Each file names the versions that made it.
"""

from __future__ import annotations

import math
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from .compare import (
    GOLDEN,
    MEAN,
    STD,
    Arrays,
    TextSizes,
    VideoSizes,
    gap,
    text_weights,
    token_ids,
    video_weights,
)

VIDEO, TEXT = VideoSizes(), TextSizes()
MODES = ("both", "learned", "rope", "none")
ROWS, TEMPERATURE = 3, 0.05

#: Source weights whose gradient is kept, one for each kind of place in the map.
GRADIENTS = (
    "video/cls_token",
    "video/time",
    "video/blocks.0.attn.q_proj.weight",
    "video/blocks.0.attn.k_proj.weight",
    "text/text_model.embeddings.position_embedding.weight",
    "text/text_model.encoder.layers.0.self_attn.v_proj.weight",
)


def st_angles(frames: int, side: int, head: int, reference: float = 16.0) -> Float[np.ndarray, "n p"]:
    """ST-RoPE's angles token by token and pair by pair, as EVA02-AT (arXiv 2506.14356, Eq. 8-10) writes them."""
    rows = []
    for t in range(frames):
        for y in range(side):
            for x in range(side):
                angles = []
                for pair in range(head // 2):
                    quarter = head // 4
                    place = (y if pair < quarter else x) / side * reference
                    spatial = place * 10000 ** (-2 * (pair % quarter) / (head / 2))
                    angles.append(t * 10000 ** (-2 * pair / head) + spatial)
                rows.append(angles)
    return np.array(rows)


class Sources:
    """Both towers in one precision."""

    def __init__(self, dtype: Any, video: Arrays, text: Arrays) -> None:
        import torch
        from timm.models.eva import Eva
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        self.dtype = dtype
        self.eva = Eva(
            img_size=VIDEO.image,
            patch_size=VIDEO.patch,
            embed_dim=VIDEO.width,
            depth=VIDEO.depth,
            num_heads=VIDEO.heads,
            num_classes=VIDEO.embedding,
            # From here on as timm's eva02_base_patch16_clip_224.
            global_pool="token",
            qkv_fused=False,
            mlp_ratio=4 * 2 / 3,
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(16, 16),
        )
        config = CLIPTextConfig(
            vocab_size=TEXT.vocabulary,
            hidden_size=TEXT.width,
            intermediate_size=4 * TEXT.width,
            projection_dim=TEXT.embedding,
            num_hidden_layers=TEXT.depth,
            num_attention_heads=TEXT.heads,
            max_position_embeddings=TEXT.context,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=TEXT.vocabulary - 2,
            eos_token_id=TEXT.vocabulary - 1,
        )
        self.clip = CLIPTextModelWithProjection(config)
        video = {name: torch.from_numpy(a) for name, a in video.items()}
        self.time = video.pop("time").to(dtype).requires_grad_()
        video["head.bias"] = torch.zeros(VIDEO.embedding)
        self.eva.load_state_dict(video, strict=True)
        self.clip.load_state_dict({name: torch.from_numpy(a) for name, a in text.items()}, strict=True)
        self.eva.to(dtype).eval()
        self.clip.to(dtype).eval()

    def pixels(self, frames: UInt8[np.ndarray, "b y x c"]) -> Any:
        """Normalised (b, c, y, x)."""
        import torch

        mean, std = (torch.tensor(values, dtype=self.dtype) for values in (MEAN, STD))
        return ((torch.from_numpy(frames).to(self.dtype) / 255 - mean) / std).permute(0, 3, 1, 2)

    def rotary(self, mode: str, frames: int) -> Any:
        """timm's table of sines and cosines, every angle twice (interleaved pairs), for all frames."""
        import torch

        if mode in ("learned", "none"):
            return self.eva.rope.get_embed().to(self.dtype).repeat(frames, 1)
        angles = torch.from_numpy(st_angles(frames, VIDEO.side, VIDEO.head)).repeat_interleave(2, dim=-1)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.dtype)

    def tokens(self, frames: UInt8[np.ndarray, "b t y x c"], mode: str) -> Any:
        """``z0 = x + P_xy + P_t`` behind the class token."""
        import torch

        b, t = frames.shape[:2]
        x = self.eva.patch_embed(self.pixels(frames.reshape(b * t, *frames.shape[2:])))
        x = x.reshape(b, t, -1, VIDEO.width) + self.eva.pos_embed[:, None, 1:]
        if mode in ("learned", "both"):
            table = torch.nn.functional.interpolate(self.time.T[None], t, mode="linear", align_corners=False)[
                0
            ].T
            x = x + table[None, :, None]
        first = (self.eva.cls_token + self.eva.pos_embed[:, :1]).expand(b, -1, -1)
        return torch.cat([first, x.reshape(b, -1, VIDEO.width)], dim=1)

    def video(self, frames: UInt8[np.ndarray, "b t y x c"], mode: str) -> Any:
        """Features of clips: timm's blocks under joint attention."""
        x, rope = self.tokens(frames, mode), self.rotary(mode, frames.shape[1])
        for block in self.eva.blocks:
            x = block(x, rope=rope)
        return self.eva.forward_head(self.eva.norm(x))


def image_rungs(source: Sources, image: UInt8[np.ndarray, "b y x c"]) -> dict[str, Any]:
    """The ladder of timm's image model."""
    import torch
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat, build_fourier_pos_embed

    eva, block, side = source.eva, source.eva.blocks[0], VIDEO.side
    grid, _, _ = build_fourier_pos_embed(
        [side, side], bands=torch.ones(1), in_pixels=False, include_grid=True, ref_feat_shape=[16, 16]
    )
    rope = eva.rope.get_embed().to(source.dtype)
    tokens, _ = eva._pos_embed(eva.patch_embed(source.pixels(image)))
    inner = block.norm1(tokens)
    q = block.attn.q_proj(inner).reshape(len(image), -1, VIDEO.heads, VIDEO.head)
    turned = apply_rot_embed_cat(q[:, 1:].transpose(1, 2), rope).transpose(1, 2)
    return {
        "image/coords": grid.reshape(-1, 2),
        "image/sin": rope.chunk(2, -1)[0][:, ::2],
        "image/cos": rope.chunk(2, -1)[1][:, ::2],
        "image/tokens": tokens,
        "image/q": q,
        "image/q_turned": torch.cat([q[:, :1], turned], dim=1),
        "image/attention": block.attn(inner, rope=rope),
        "image/block": block(tokens, rope=rope),
        "image/features": eva(source.pixels(image)),
    }


def video_rungs(
    source: Sources, short: UInt8[np.ndarray, "..."], long: UInt8[np.ndarray, "..."]
) -> dict[str, Any]:
    """The ladder of the video model, ST-RoPE and all."""
    block, t = source.eva.blocks[0], short.shape[1]
    tokens, rope = source.tokens(short[:1], "both"), source.rotary("both", t)
    sin, cos = rope.chunk(2, -1)
    out = {
        "video/sin": sin[:, ::2],
        "video/cos": cos[:, ::2],
        "video/tokens": tokens,
        "video/attention": block.attn(block.norm1(tokens), rope=rope),
        "video/block": block(tokens, rope=rope),
    }
    for mode in MODES:
        out[f"video/{mode}/features"] = source.video(short, mode)
        out[f"long/{mode}/features"] = source.video(long, mode)
    return out


def dual_rungs(source: Sources, frames: UInt8[np.ndarray, "..."], ids: np.ndarray) -> dict[str, Any]:
    """Text tower, logits, loss (open_clip's and torch's own cross-entropy) and some gradients."""
    import torch
    from open_clip.loss import ClipLoss

    text = source.clip(torch.from_numpy(ids).long(), output_hidden_states=True)
    v = torch.nn.functional.normalize(source.video(frames, "both"), dim=-1)
    t = torch.nn.functional.normalize(text.text_embeds, dim=-1)
    logits = v @ t.T / TEMPERATURE
    loss = ClipLoss()(v, t, 1 / TEMPERATURE)
    right = torch.arange(len(ids))
    both = [torch.nn.functional.cross_entropy(x, right) for x in (logits, logits.T)]
    loss.backward()
    named = {f"video/{name}": p for name, p in source.eva.named_parameters()} | {"video/time": source.time}
    named |= {f"text/{name}": p for name, p in source.clip.named_parameters()}
    return {
        "text/tokens": text.hidden_states[0],
        "text/block": text.hidden_states[1],
        "text/features": text.text_embeds,
        "dual/logits": logits,
        "dual/loss": loss,
        "dual/loss_sum": both[0] + both[1],
    } | {f"gradient/{name}": named[name].grad for name in GRADIENTS}


def versions() -> np.ndarray:
    """``name version`` of everything that made the arrays."""
    from importlib.metadata import version

    names = ("torch", "timm", "transformers", "open_clip_torch", "numpy")
    return np.array([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def build() -> dict[str, Arrays]:
    """All golden files by name."""
    import torch

    rng = np.random.default_rng(4)
    short = rng.integers(0, 256, (ROWS, VIDEO.frames, VIDEO.image, VIDEO.image, 3), np.uint8)
    long = rng.integers(0, 256, (1, 4 * VIDEO.frames, VIDEO.image, VIDEO.image, 3), np.uint8)
    ids = token_ids(TEXT, ROWS, seed=5)
    weights = {"video": video_weights(VIDEO, seed=2), "text": text_weights(TEXT, seed=3)}
    runs = []
    for dtype in (torch.float64, torch.float32):
        source = Sources(dtype, **weights)
        rungs = image_rungs(source, short[:1, 0]) | video_rungs(source, short, long)
        rungs |= dual_rungs(source, short, ids)
        runs.append({name: value.detach().double().numpy() for name, value in rungs.items()})
    files: dict[str, Arrays] = {
        "video": {"in/short": short, "in/long": long},
        "text": {"in/ids": ids},
        "dual": {},
    }
    for name, values in weights.items():
        files[name] |= {f"weights/{key}": a.astype(np.float16) for key, a in values.items()}
    for name, exact in runs[0].items():
        file = {"text": "text", "dual": "dual", "gradient": "dual"}.get(name.split("/")[0], "video")
        error = 0.0 if math.isclose(np.abs(exact).max(), 0) else gap(runs[1][name], exact)[0]
        files[file] |= {f"out/{name}": exact.astype(np.float32), f"f32_error/{name}": np.float32(error)}
    return {name: arrays | {"versions": versions()} for name, arrays in files.items()}


def main(folder: Path = GOLDEN) -> None:
    """Write the files and say what they hold."""
    folder.mkdir(exist_ok=True)
    for name, arrays in build().items():
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        worst = max(float(a) for key, a in arrays.items() if key.startswith("f32_error/"))
        print(
            f"{path.name}: {path.stat().st_size / 1000:.0f} kB, the source's own f32 error at most {worst:.1e}"
        )
        print("  " + ", ".join(arrays["versions"]))


if __name__ == "__main__":
    sys.exit(main())
