"""How the weights are kept, chosen by the GPU's free memory: whole, in 8 bits, or visiting from host memory.

The needs are computed from the model's sizes. What a forward works with is an estimate on the high side: the largest tensors
that live at once in a block, at the largest trained size, with a third on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig

BY_ITSELF = ("whole", "fp8", "offload")
"""``whole``: bf16 on the GPU. ``fp8``: blocks in 8 bits on the GPU. ``offload``: bf16 blocks in host memory, see ``offload``."""

MODES = (*BY_ITSELF, "eight_bit")
"""``eight_bit``: as ``fp8``, and the blocks' large layers multiply in 8 bits, which is quicker and not chosen by itself."""

TEXT_ENCODER_BYTES = 11_500_000_000
"""UMT5-XXL's encoder in bf16; it stays on the GPU where that leaves room, else works on the CPU."""

_ENCODERS_BYTES = 2_500_000_000  # image and speech encoder, video autoencoder
_USABLE = 0.95  # of the free memory; the rest is for fragments and the driver
_LARGEST = (768, 1280)  # pixels of the largest trained picture
_LARGEST_TOKENS = 21 * (_LARGEST[0] // 16) * (_LARGEST[1] // 16)  # of a take: latent frames times tokens of that picture
_BF16 = 2

# Of the video autoencoder in fp32 while it decodes, by torch's count on tensors without content (7.8 GB at 448x896, 18.2 GB at
# 768x1216), and 15% for what cuDNN works with. Encoding takes less.
_PICTURE_BYTES_A_PIXEL = 22_500


@dataclass(frozen=True)
class Choice:
    """How the weights are kept.

    Args:
        mode: one of :data:`MODES`.
        resident: blocks that stay on the GPU in mode ``offload``.
        text_on_gpu: whether the text encoder is on the GPU.
        room: bytes that the video autoencoder may take; a picture that takes more is worked on in tiles.
        reason: why, in a sentence.
    """

    mode: str
    resident: int
    text_on_gpu: bool
    room: int
    reason: str


@dataclass(frozen=True)
class Needs:
    """Bytes of the parts of a forward: all weights in bf16, one block's, activations, and kept keys and values."""

    weights: int
    block: int
    activations: int
    kept: int

    @property
    def work(self) -> int:
        """What a forward works with."""
        return self.activations + self.kept


def picture_bytes(height: int, width: int) -> int:
    """What the video autoencoder works with on a picture of so many pixels."""
    return height * width * _PICTURE_BYTES_A_PIXEL


def needs(config: TransformerConfig | None = None) -> Needs:
    """What a transformer of these sizes needs; the public model's unless given."""
    with torch.device("meta"):
        model = InfiniteTalkTransformer(config)
    sizes = model.config
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters()) * _BF16
    weights = sum(parameter.numel() for parameter in model.parameters()) * _BF16
    activations = _LARGEST_TOKENS * (6 * sizes.dim + 2 * sizes.ffn_dim) * _BF16
    # Keys and values: two texts and one picture, and the speech of every latent frame twice.
    rows = 2 * sizes.text_len + 257 + 2 * 21 * sizes.audio_tokens
    return Needs(weights, block, int(1.33 * activations), rows * 2 * sizes.dim * sizes.num_layers * _BF16)


def host_bytes(need: Needs, blocks: int, choice: Choice, processes: int) -> int:
    """Host memory that mode ``offload`` takes at its peak: weights, while the visiting blocks are being pinned, in every process,
    and the text encoder in one. torch rounds what it pins up to a power of two."""
    pinned = 1 << (need.block - 1).bit_length()
    return processes * (need.weights + (blocks - choice.resident) * (pinned - need.block)) + TEXT_ENCODER_BYTES


def choose(free: int, need: Needs, blocks: int, wanted: str | None = None) -> Choice:
    """How to keep the weights.

    Args:
        free: the GPU's free bytes.
        need: see :func:`needs`.
        blocks: how many the transformer has.
        wanted: one of :data:`MODES` to have just that, whatever is free.

    Raises:
        InfiniteTalkError: ``memory_mode_unknown``; ``gpu_memory_short`` when not even ``offload`` fits.
    """
    if wanted is not None and wanted not in MODES:
        raise InfiniteTalkError(
            "memory_mode_unknown", f"INFINITETALK_MEMORY is {wanted!r}: set it to one of {', '.join(MODES)}, or not at all."
        )
    usable = int(free * _USABLE) - need.work - _ENCODERS_BYTES
    in_blocks = need.block * blocks
    sizes = {
        "whole": need.weights,
        "fp8": need.weights - in_blocks // 2,
        "eight_bit": need.weights - in_blocks // 2,
        "offload": need.weights - in_blocks + min(2, blocks) * need.block,
    }
    mode = wanted or next((mode for mode in BY_ITSELF if sizes[mode] <= usable), None)
    if mode is None:
        least = (sizes["offload"] + need.work + _ENCODERS_BYTES) / _USABLE
        raise InfiniteTalkError(
            "gpu_memory_short",
            f"The GPU has {free / 1e9:.1f} GB free and {least / 1e9:.1f} GB are needed at the least: end what else runs on "
            "it, or use a larger one.",
        )
    left = usable - sizes[mode]
    resident = blocks
    if mode == "offload":
        # No block stays where the largest picture is to be decoded whole: a block's visit is hidden behind the forward.
        spare = left - max(0, picture_bytes(*_LARGEST) - need.activations)
        resident = min(blocks, max(0, spare) // need.block)
        left -= resident * need.block
    text_on_gpu = mode != "offload" and left >= TEXT_ENCODER_BYTES
    left -= TEXT_ENCODER_BYTES if text_on_gpu else 0
    why = "INFINITETALK_MEMORY asks for it" if wanted else f"{free / 1e9:.1f} GB are free"
    what = {
        "whole": f"all weights on the GPU in bf16 ({sizes['whole'] / 1e9:.1f} GB)",
        "fp8": f"blocks on the GPU in fp8 ({sizes['fp8'] / 1e9:.1f} GB)",
        "eight_bit": f"blocks on the GPU in 8 bits ({sizes['eight_bit'] / 1e9:.1f} GB), and multiplied in 8 bits",
        "offload": f"{resident} of {blocks} blocks on the GPU, the others visit from host memory",
    }[mode]
    # Forwards and the autoencoder take turns.
    return Choice(mode, resident, text_on_gpu, max(0, left + need.activations), f"{what}: {why}")
