"""Triton kernels of the video transformer, each beside its plain-torch reference."""

from kernels.reference import (
    attention,
    class_attention_map,
    framewise_attention,
    gelu_tanh,
    layer_norm,
    layer_norm_modulate,
    qk_norm_rope,
    residual_gate_norm,
    rms_norm,
    rope_1d,
    text_image_attention,
)

__all__ = [
    "attention",
    "class_attention_map",
    "framewise_attention",
    "gelu_tanh",
    "layer_norm",
    "layer_norm_modulate",
    "qk_norm_rope",
    "residual_gate_norm",
    "rms_norm",
    "rope_1d",
    "text_image_attention",
]
