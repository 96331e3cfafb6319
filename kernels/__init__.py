"""Triton kernels of the video transformer, each beside its plain-torch reference."""

from kernels.class_map import class_attention_map
from kernels.cross_attention import framewise_attention, text_image_attention
from kernels.gelu import gelu_tanh
from kernels.layer_norms import (
    layer_norm,
    layer_norm_modulate,
    layer_norm_quantised,
    residual_gate_norm,
    residual_gate_norm_quantised,
)
from kernels.linear import EightBitWeight, layer_precision, linear_eight_bit, quantise_weight
from kernels.quantise import gelu_tanh_quantised, quantise_rows
from kernels.quantise_qk import EightBitQK, qk_norm_rope_quantised, quantise_qk
from kernels.quantise_v import EightBitV, eight_bit_values, quantise_v
from kernels.rms_rope import qk_norm_rope_, rms_norm, rope_1d
from kernels.self_attention import attention, attention_with_lse, merge_attention
from kernels.self_attention_eight_bit import eight_bit_attention, eight_bit_attention_with_lse
from kernels.self_attention_sparse import BlockList, block_sparse_attention, block_sparse_attention_with_lse, select_blocks

__all__ = [
    "BlockList",
    "EightBitQK",
    "EightBitV",
    "EightBitWeight",
    "attention",
    "attention_with_lse",
    "block_sparse_attention",
    "block_sparse_attention_with_lse",
    "class_attention_map",
    "eight_bit_attention",
    "eight_bit_attention_with_lse",
    "eight_bit_values",
    "framewise_attention",
    "gelu_tanh",
    "gelu_tanh_quantised",
    "layer_norm",
    "layer_norm_modulate",
    "layer_norm_quantised",
    "layer_precision",
    "linear_eight_bit",
    "merge_attention",
    "qk_norm_rope_",
    "qk_norm_rope_quantised",
    "quantise_qk",
    "quantise_rows",
    "quantise_v",
    "quantise_weight",
    "residual_gate_norm",
    "residual_gate_norm_quantised",
    "rms_norm",
    "rope_1d",
    "select_blocks",
    "text_image_attention",
]
