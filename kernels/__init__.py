"""Triton kernels of the video transformer, each beside its plain-torch reference."""

from kernels.gelu import gelu_tanh
from kernels.layer_norm import (
    layer_norm,
    layer_norm_modulate,
    layer_norm_quantised,
    residual_gate_norm,
    residual_gate_norm_quantised,
)
from kernels.quantise import gelu_tanh_quantised, quantise_rows
from kernels.reference import (
    attention,
    class_attention_map,
    framewise_attention,
    text_image_attention,
)
from kernels.rms_rope import qk_norm_rope, rms_norm, rope_1d

__all__ = [
    "attention",
    "class_attention_map",
    "framewise_attention",
    "gelu_tanh",
    "gelu_tanh_quantised",
    "layer_norm",
    "layer_norm_modulate",
    "layer_norm_quantised",
    "qk_norm_rope",
    "quantise_rows",
    "residual_gate_norm",
    "residual_gate_norm_quantised",
    "rms_norm",
    "rope_1d",
    "text_image_attention",
]
