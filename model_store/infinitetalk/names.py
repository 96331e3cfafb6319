"""Tensor names: every public spelling brought to the one that the loaded module uses.

Each component was published twice: by its authors, and converted, in a repository whose name ends in ``-Diffusers``.
Every function here takes a name in either spelling and returns the module's own, or None for a tensor that the module
does not read; an unknown name comes back unchanged, for the loader to refuse.
"""

from __future__ import annotations

import re

_TRANSFORMER_OUTER = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_TRANSFORMER_BLOCK = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "norm_added_k": "norm_k_img",
}
_ATTENTIONS = {"attn1": "self_attn", "attn2": "cross_attn"}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")


def transformer_module(path: str) -> str:
    """A module's path in the transformer (no ``.weight``), from either spelling, with or without a wrapper's prefix."""
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    if path in _TRANSFORMER_OUTER:
        return _TRANSFORMER_OUTER[path]
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)", path)
    if match is None:
        return path
    block, rest = match.groups()
    attention, _, inner = rest.partition(".")
    if attention in _ATTENTIONS:
        return f"{block}.{_ATTENTIONS[attention]}.{_ATTENTION.get(inner, inner)}"
    # The two spellings both have a norm3: only the authors' has weights, the other's is the plain norm before the ffn.
    return f"{block}.{_TRANSFORMER_BLOCK.get(rest, rest)}"


def transformer_tensor(name: str) -> str:
    """A tensor's name in the transformer's state dict."""
    if name.endswith("scale_shift_table"):
        return transformer_module(name)
    module, dot, kind = name.rpartition(".")
    if kind in ("_data", "_scale"):  # optimum-quanto splits a weight in two
        module, _, weight = module.rpartition(".")
        return f"{transformer_module(module)}.{weight}.{kind}"
    return f"{transformer_module(module)}{dot}{kind}" if dot else name


_VAE_RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_VAE_MIDDLE = {"middle.0.": "mid_block.resnets.0.", "middle.1.": "mid_block.attentions.0.", "middle.2.": "mid_block.resnets.1."}
_VAE_ENDS = {"conv1.": "conv_in.", "head.0.": "norm_out.", "head.2.": "conv_out."}
_VAE_STAGE = 4  # the decoder's list has three residual blocks and an upsampler for every stage


def vae_tensor(name: str) -> str:
    """A tensor's name in diffusers' ``AutoencoderKLWan``."""
    for ours, theirs in (("conv1.", "quant_conv."), ("conv2.", "post_quant_conv.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    for table in (_VAE_MIDDLE, _VAE_ENDS):
        for ours, theirs in table.items():
            if rest.startswith(ours):
                rest = theirs + rest.removeprefix(ours)
    match = re.fullmatch(r"(down|up)samples\.(\d+)\.(.+)", rest)
    if match is not None:
        direction, index, inner = match[1], int(match[2]), match[3]
        if direction == "down":
            rest = f"down_blocks.{index}.{inner}"
        else:
            stage, place = divmod(index, _VAE_STAGE)
            part = "upsamplers.0" if place == _VAE_STAGE - 1 else f"resnets.{place}"
            rest = f"up_blocks.{stage}.{part}.{inner}"
    for ours, theirs in _VAE_RESIDUAL.items():
        if f".{ours}" in rest:
            rest = rest.replace(f".{ours}", f".{theirs}")
    return f"{half}.{rest}"


_T5_BLOCK = {
    "norm1.": "layer.0.layer_norm.",
    "attn.": "layer.0.SelfAttention.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}


def text_tensor(name: str) -> str | None:
    """A tensor's name in transformers' ``UMT5EncoderModel``."""
    if name == "encoder.embed_tokens.weight":  # tied to shared.weight
        return None
    if name == "token_embedding.weight":
        return "shared.weight"
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return name
    for ours, theirs in _T5_BLOCK.items():
        if match[2].startswith(ours):
            return f"encoder.block.{match[1]}.{theirs}{match[2].removeprefix(ours)}"
    return name


_CLIP_OUTER = {
    "visual.cls_embedding": "embeddings.class_embedding",
    "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "visual.pos_embedding": "embeddings.position_embedding.weight",
    "visual.pre_norm.weight": "pre_layrnorm.weight",
    "visual.pre_norm.bias": "pre_layrnorm.bias",
    "visual.post_norm.weight": "post_layernorm.weight",
    "visual.post_norm.bias": "post_layernorm.bias",
}
_CLIP_BLOCK = {
    "norm1.": "layer_norm1.",
    "attn.to_qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.out_proj.",
    "norm2.": "layer_norm2.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
}


def image_tensor(name: str) -> str | None:
    """A tensor's name in transformers' ``CLIPVisionModel``, without its ``vision_model.`` prefix.

    The authors keep query, key and value in one tensor: ``self_attn.qkv`` stands for ``q_proj``, ``k_proj``, ``v_proj``.
    """
    if name in _CLIP_OUTER:
        return _CLIP_OUTER[name]
    if name.startswith(("textual.", "log_scale", "visual.head", "visual_projection.")) or name.endswith("position_ids"):
        return None
    match = re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)", name)
    if match is None:
        return name.removeprefix("vision_model.")
    for ours, theirs in _CLIP_BLOCK.items():
        if match[2].startswith(ours):
            return f"encoder.layers.{match[1]}.{theirs}{match[2].removeprefix(ours)}"
    return name


_SPEECH_UNREAD = ("quantizer.", "project_hid.", "project_q.", "lm_head.", "masked_spec_embed")
_WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


def speech_tensor(name: str) -> str | None:
    """A tensor's name in transformers' ``Wav2Vec2Model``."""
    name = name.removeprefix("wav2vec2.")
    if name.startswith(_SPEECH_UNREAD):
        return None
    for ours, theirs in _WEIGHT_NORM.items():
        name = name.replace(ours, theirs)
    return name
