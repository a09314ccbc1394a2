"""The public implementations themselves (open_clip, timm, transformers), tiny or in full, and what their blocks compute.

torch and the packages are imported inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compare import MEAN, STD, Arrays, Draw
from .public_weights import TINY, Tiny


def open_clip_model(name: str, device: str = "cpu") -> Any:
    """open_clip's model of that name with random weights, f32; on the device ``meta`` it has shapes only."""
    import open_clip

    return open_clip.create_model(name, pretrained=None, device=device).eval()


def tiny_clip(quick_gelu: bool = False, custom_text: bool = False, s: Tiny = TINY) -> Any:
    """open_clip's ``CLIP`` or ``CustomTextCLIP`` at the sizes of `s`."""
    from open_clip.model import CLIP, CustomTextCLIP

    vision = {
        "image_size": s.image,
        "patch_size": s.patch,
        "width": s.width,
        "layers": s.depth,
        "head_width": s.width // s.heads,
    }
    text = {
        "context_length": s.context,
        "vocab_size": s.vocabulary,
        "width": s.text_width,
        "heads": s.text_heads,
        "layers": s.text_depth,
    }
    kind: Any = CustomTextCLIP if custom_text else CLIP
    return kind(s.embedding, vision, text, quick_gelu=quick_gelu).eval()


def tiny_eva02(s: Tiny = TINY) -> Any:
    """open_clip's ``CustomTextCLIP`` around a small ``Eva`` of timm, with the options of eva02_*_clip_*."""
    import torch
    from timm.models.eva import Eva

    class Visual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Eva(
                img_size=s.image,
                patch_size=s.patch,
                embed_dim=s.width,
                depth=s.depth,
                num_heads=s.heads,
                num_classes=s.embedding,
                global_pool="token",
                qkv_fused=False,
                mlp_ratio=4 * 2 / 3,
                swiglu_mlp=True,
                scale_mlp=True,
                scale_attn_inner=True,
                use_rot_pos_emb=True,
                ref_feat_shape=(16, 16),
            )

        def forward(self, x: Any) -> Any:
            return self.trunk(x)

    model = tiny_clip(custom_text=True, s=s)
    model.visual = Visual()
    return model.eval()


def tiny_hf(act: str, s: Tiny = TINY) -> Any:
    """transformers' ``CLIPModel``."""
    from transformers import CLIPConfig, CLIPModel

    shared: Any = {"projection_dim": s.embedding, "hidden_act": act}
    config = CLIPConfig(
        text_config=shared
        | {
            "vocab_size": s.vocabulary,
            "hidden_size": s.text_width,
            "intermediate_size": 4 * s.text_width,
            "num_hidden_layers": s.text_depth,
            "num_attention_heads": s.text_heads,
            "max_position_embeddings": s.context,
            "pad_token_id": 0,
            "bos_token_id": s.vocabulary - 2,
            "eos_token_id": s.vocabulary - 1,
        },
        vision_config=shared
        | {
            "hidden_size": s.width,
            "intermediate_size": 4 * s.width,
            "num_hidden_layers": s.depth,
            "num_attention_heads": s.heads,
            "image_size": s.image,
            "patch_size": s.patch,
        },
        projection_dim=s.embedding,
    )
    return CLIPModel(config).eval()


def randomise(model: Any, seed: int) -> Arrays:
    """Fill a model with weights in which every wrong wire shows; returns them under the model's names.

    Matrices keep variance, q and k have a gain, biases are not zero, and norms are far from the identity.
    """
    import torch

    draw = Draw(seed)
    for name, tensor in model.named_parameters():
        shape = tuple(tensor.shape)
        if len(shape) == 0:
            draw.weights[name] = np.array(2.5, np.float32)
        elif len(shape) == 1:
            normed = "norm" in name or ".ln_" in name or "ln_final" in name or "layrnorm" in name
            draw.array(name, *shape, scale=0.3, mean=1.0 if normed and name.endswith("weight") else 0.0)
        elif "embed" in name and "patch" not in name:
            draw.array(name, *shape, scale=0.5)
        elif name in ("text_projection", "text.text_projection", "visual.proj"):
            draw.array(name, *shape, scale=shape[0] ** -0.5)
        else:
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "in_proj")) else 1.0
            draw.array(name, *shape, scale=gain * np.prod(shape[1:]) ** -0.5)
    state = {name: torch.from_numpy(array) for name, array in draw.weights.items()}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def pixels(frames: np.ndarray, dtype: Any) -> Any:
    """Normalised (b, c, y, x) of uint8 (b, y, x, c)."""
    import torch

    mean, std = (torch.tensor(values, dtype=dtype) for values in (MEAN, STD))
    return ((torch.from_numpy(frames).to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2)


class Kept:
    """Inputs and outputs of named modules during a forward pass."""

    def __init__(self, model: Any, names: dict[str, str]) -> None:
        self.found: dict[str, Any] = {}
        for name, ours in names.items():
            model.get_submodule(name).register_forward_hook(self._keep(ours))

    def _keep(self, ours: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            if ours.endswith("blocks/0"):
                self.found[ours.replace("blocks/0", "embed")] = inputs[0] if inputs else None
            self.found[ours] = output[0] if isinstance(output, tuple) else output

        return hook


def open_clip_activations(model: Any, images: np.ndarray, ids: np.ndarray) -> Arrays:
    """What open_clip's towers compute, by stvl's names, from uint8 images (b, y, x, c) and ids."""
    import torch

    eva = hasattr(model.visual, "trunk")
    visual = "visual.trunk.blocks" if eva else "visual.transformer.resblocks"
    below = "text.transformer.resblocks" if hasattr(model, "text") else "transformer.resblocks"
    names = {f"{visual}.{i}": f"video/blocks/{i}" for i in range(len(model.get_submodule(visual)))}
    names |= {f"{below}.{i}": f"text/blocks/{i}" for i in range(len(model.get_submodule(below)))}
    names["visual.trunk.norm" if eva else "visual.ln_post"] = "video/norm"
    names["text.ln_final" if hasattr(model, "text") else "ln_final"] = "text/norm"
    kept = Kept(model, names)
    index = torch.from_numpy(ids).long()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        image, text = model.encode_image(pixels(images, dtype)), model.encode_text(index)
    kept.found |= {"video/projection": image, "text/projection": text}
    found = kept.found
    if found["video/norm"].ndim == 3:
        found["video/norm"] = found["video/norm"][:, 0]
    found["text/norm"] = found["text/norm"][torch.arange(len(ids)), index.argmax(-1)]
    return {name: value.double().numpy() for name, value in found.items()}


def hf_activations(model: Any, images: np.ndarray, ids: np.ndarray) -> Arrays:
    """What transformers' towers compute: embeddings, blocks and features."""
    import torch

    dtype = next(model.parameters()).dtype
    names = {f"vision_model.encoder.layers.{i}": f"video/blocks/{i}" for i in range(TINY.depth)}
    names |= {f"text_model.encoder.layers.{i}": f"text/blocks/{i}" for i in range(TINY.text_depth)}
    names |= {"visual_projection": "video/projection", "text_projection": "text/projection"}
    kept = Kept(model, names)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids).long(), pixel_values=pixels(images, dtype))
    # transformers may hand its layers keyword arguments, of which a hook sees nothing.
    return {name: value.double().numpy() for name, value in kept.found.items() if value is not None}
