"""The frozen arrays are what their sources give today, where timm, transformers and open_clip are installed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stvl.models.clip_text import TextEncoder

from .compare import TextSizes, check, load, text_weights, token_ids
from .mapping import text_tree
from .models import text_config

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("torch_installed")]


def test_text_tower_is_that_of_transformers():
    import torch

    transformers = pytest.importorskip("transformers")
    sizes = TextSizes(width=40, depth=3, heads=5, context=16, vocabulary=50, embedding=8)
    weights, ids = text_weights(sizes, seed=21), token_ids(sizes, rows=5, seed=22)
    config = transformers.CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        projection_dim=sizes.embedding,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        hidden_act="gelu",
        eos_token_id=sizes.vocabulary - 1,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()}, strict=True)
    wanted = model.double()(torch.from_numpy(ids).long()).text_embeds.detach().numpy()
    params = {"params": text_tree(weights, sizes.heads)}
    found = jax.jit(TextEncoder(text_config(sizes), sizes.embedding).apply)(params, jnp.asarray(ids))
    check(f"text tower, transformers {transformers.__version__}", found, wanted)


@pytest.mark.slow
def test_golden_files_are_what_the_sources_give():
    for name in ("timm", "transformers", "open_clip"):
        pytest.importorskip(name)
    from .make_golden import build

    for name, arrays in build().items():
        frozen = load(name)
        assert sorted(frozen) == sorted(arrays)
        for key, array in arrays.items():
            kind = key.split("/")[0]
            if kind in ("weights", "in"):
                np.testing.assert_array_equal(array, frozen[key], err_msg=key)
            elif kind == "out":
                # Sines come from f32 angles of timm, which may differ in the last place between machines.
                check(f"{name}.npz, {key}", array, frozen[key], 5e-6)
