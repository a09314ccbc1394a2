"""Rotary tables of transformers and timm, and the golden file that keeps them where neither is installed.

Regenerate in an environment of its own (stvl and jax are not needed), from the root of the repository:

    pip install timm "transformers==4.57.1" torch jaxtyping
    python -m tests.parity.rope_sources

4.57.1, because releases 5.3 and later number text behind a long video differently (see `stvl.rope.language.MRope`).
"""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from .compare import GOLDEN, Arrays

#: Qwen2-VL's marks, image and video tokens.
START, IMAGE, VIDEO, WORD = 1000, 1001, 1002, 5
MERGE, SECTIONS, HEAD, BASE = 2, (2, 3, 3), 16, 1000000.0

#: Sequences as (kind, sizes after merging); a grid follows at least one text token, the mark of its start.
SEQUENCES: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "text": (("text", (7,)),),
    "image": (("text", (3,)), ("image", (4, 5)), ("text", (6,))),
    "video": (("text", (4,)), ("video", (3, 4, 5)), ("text", (2,))),
    "both": (
        ("text", (2,)),
        ("image", (3, 2)),
        ("text", (1,)),
        ("video", (2, 3, 6)),
        ("text", (3,)),
        ("image", (1, 1)),
        ("text", (2,)),
    ),
    # More frames than rows or columns: text goes on behind the last frame.
    "long": (("text", (4,)), ("video", (9, 2, 3)), ("text", (5,)), ("image", (2, 2)), ("text", (1,))),
}

#: (frames, rows, columns) before merging, for the vision tower.
GRIDS = ((1, 4, 6), (3, 8, 2))

#: Name -> (rope type of transformers, its parameters); head 64, base 10000.
STRETCHED: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {"factor": 4.0}),
    "yarn": ("yarn", {"factor": 4.0, "original_max_position_embeddings": 2048}),
    "yarn_short": ("yarn", {"factor": 16.0, "original_max_position_embeddings": 64}),
}


def ids_of(name: str) -> tuple[list[int], list[int], list[list[int]], list[list[int]]]:
    """Token ids, modality of each token (0 text, 1 image, 2 video), and both lists of grids before merging."""
    ids: list[int] = []
    kinds: list[int] = []
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    for kind, sizes in SEQUENCES[name]:
        if kind == "text":
            ids += [WORD] * sizes[0]
            kinds += [0] * sizes[0]
            continue
        frames, rows, columns = (1, *sizes) if kind == "image" else sizes
        grids[kind].append([frames, rows * MERGE, columns * MERGE])
        ids[-1] = START
        count = frames * rows * columns
        ids += [{"image": IMAGE, "video": VIDEO}[kind]] * count
        kinds += [{"image": 1, "video": 2}[kind]] * count
    return ids, kinds, grids["image"], grids["video"]


def segments(name: str, seconds: float = 1.0) -> tuple[Any, ...]:
    """The sequence as stvl spells it (the generator never calls this)."""
    from stvl.rope.segments import Image, Text, Video

    made: list[Any] = []
    for kind, sizes in SEQUENCES[name]:
        if kind == "text":
            made.append(Text(length=sizes[0]))
        elif kind == "image":
            made.append(Image(rows=sizes[0], columns=sizes[1]))
        else:
            frames, rows, columns = sizes
            made.append(Video(frames=frames, rows=rows, columns=columns, seconds_per_frame=seconds))
    return tuple(made)


def positions(name: str, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """(3, n) indices of Qwen2-VL's `get_rope_index` and its delta; of Qwen2.5-VL where `seconds` are given."""
    import inspect

    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    kind: Any = Qwen2VLModel if seconds is None else Qwen2_5_VLModel
    ids, kinds, images, videos = ids_of(name)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    model = SimpleNamespace(config=config)
    if hasattr(kind, "get_vision_position_ids"):
        model.get_vision_position_ids = lambda *args, **words: kind.get_vision_position_ids(
            model, *args, **words
        )
    words: dict[str, Any] = {
        "input_ids": torch.tensor([ids]),
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor(videos) if videos else None,
    }
    if "mm_token_type_ids" in inspect.signature(kind.get_rope_index).parameters:
        words["mm_token_type_ids"] = torch.tensor([kinds])
    if seconds is not None and videos:
        words["second_per_grid_ts"] = torch.tensor([seconds] * len(videos))
    found, delta = kind.get_rope_index(model, **words)
    return found[:, 0].numpy(), int(delta[0, 0])


def mrope_tables(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (n, e/2) that Qwen2-VL's decoder applies at the indices (3, n)."""
    import torch
    from transformers.models.qwen2_vl import modeling_qwen2_vl as module
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig

    rope = {"rope_type": "default", "type": "mrope", "mrope_section": list(SECTIONS), "rope_theta": BASE}
    config = Qwen2VLTextConfig(
        hidden_size=2 * HEAD, num_attention_heads=2, rope_theta=BASE, rope_scaling=rope
    )
    embed = module.Qwen2VLRotaryEmbedding(config)
    cos, sin = embed(torch.zeros(1), torch.from_numpy(index)[:, None])
    if cos.ndim == 4:  # transformers 4 leaves the three axes side by side
        parts = [table.split(list(SECTIONS) * 2, dim=-1) for table in (cos, sin)]
        cos, sin = (torch.cat([m[i % 3] for i, m in enumerate(part)], dim=-1) for part in parts)
    assert torch.equal(cos[..., : HEAD // 2], cos[..., HEAD // 2 :])
    return cos[0, :, : HEAD // 2].numpy(), sin[0, :, : HEAD // 2].numpy()


def vision_tables(grid: tuple[int, int, int], head: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (n, e/2) of Qwen2-VL's vision tower, in the order in which it keeps tokens."""
    import torch
    from transformers.models.qwen2_vl import modeling_qwen2_vl as module
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    config = Qwen2VLVisionConfig(embed_dim=2 * head, num_heads=2, depth=1, hidden_size=8, in_channels=3)
    tower = module.Qwen2VisionTransformerPretrainedModel(config)
    sizes = torch.tensor([grid])
    if hasattr(tower, "rot_pos_emb"):  # transformers 4
        angles = tower.rot_pos_emb(sizes)
        return angles.cos().numpy(), angles.sin().numpy()
    where = module.get_vision_position_ids(sizes, tower.spatial_merge_size)
    cos, sin = tower.rotary_pos_emb(torch.zeros(1), where)
    return cos[..., : head // 2].reshape(-1, head // 2).numpy(), sin[..., : head // 2].reshape(
        -1, head // 2
    ).numpy()


def stretched(name: str) -> tuple[np.ndarray, float]:
    """Ladder of 32 pairs and attention factor of transformers' scaling functions."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, numbers = STRETCHED[name]
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        rope_theta=10000.0,
        max_position_embeddings=int(numbers.get("original_max_position_embeddings", 2048)),
        rope_scaling={"rope_type": kind, "rope_theta": 10000.0, **numbers},
    )
    row, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return row.numpy(), float(factor)


def eva_tables(rows: int, columns: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (n, e/2) of timm's EVA-02 rotary embedding, reference grid 16 x 16."""
    import torch
    from timm.layers.pos_embed_sincos import RotaryEmbeddingCat

    rope = RotaryEmbeddingCat(head, in_pixels=False, feat_shape=[rows, columns], ref_feat_shape=[16, 16])
    sin, cos = torch.as_tensor(rope.get_embed()).chunk(2, -1)
    return cos[:, ::2].numpy(), sin[:, ::2].numpy()


def build() -> Arrays:
    """The golden file."""
    from importlib.metadata import version

    import transformers

    arrays: Arrays = {}
    for name in SEQUENCES:
        index, delta = positions(name)
        cos, sin = mrope_tables(index)
        arrays |= {f"mrope/{name}/index": index, f"mrope/{name}/delta": np.array(delta)}
        arrays |= {f"mrope/{name}/cos": cos, f"mrope/{name}/sin": sin}
    for number, grid in enumerate(GRIDS):
        cos, sin = vision_tables(grid, 24)
        arrays |= {f"vision/{number}/cos": cos, f"vision/{number}/sin": sin}
    for name in STRETCHED:
        row, factor = stretched(name)
        arrays |= {f"stretched/{name}/row": row, f"stretched/{name}/factor": np.array(factor)}
    for number, (rows, columns) in enumerate(((5, 7), (24, 24))):
        cos, sin = eva_tables(rows, columns, 32)
        arrays |= {f"eva/{number}/cos": cos, f"eva/{number}/sin": sin}
    names = [f"transformers {transformers.__version__}", *(f"{n} {version(n)}" for n in ("torch", "timm"))]
    return arrays | {"versions": np.array(names)}


def total(name: str) -> int:
    """Tokens of a sequence."""
    return sum(int(np.prod(sizes)) for _, sizes in SEQUENCES[name])


def main() -> None:
    """Write the file."""
    arrays = build()
    assert all(arrays[f"mrope/{n}/index"].shape == (3, total(n)) for n in SEQUENCES)
    np.savez_compressed(GOLDEN / "rope.npz", **arrays)
    print(*itertools.islice(arrays, 5), "...", *arrays["versions"])


if __name__ == "__main__":
    sys.exit(main())
