"""The engine's models with a few thousand random weights each, for a plain CPU. What they make is noise, and meant to be.

They have every part of the public models and the same code computes with them, so that everything around the weights, from the
first request to the last frame, can be proven where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from model_store.infinitetalk.image_encoder import ImageEncoder
from model_store.infinitetalk.speech_encoder import SpeechEncoder
from model_store.infinitetalk.text_encoder import TextEncoder
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig
from model_store.infinitetalk.vae import VideoAutoencoder

_LAYERS_HEARD = 2

CONFIG = TransformerConfig(
    dim=48,
    ffn_dim=64,
    num_heads=4,
    num_layers=2,
    freq_dim=32,
    text_dim=32,
    image_dim=32,
    audio_blocks=_LAYERS_HEARD,
    audio_channels=16,
    audio_hidden_dim=16,
    audio_tokens=4,
    audio_dim=12,
)

_SPEECH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": _LAYERS_HEARD,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
_SPEECH_WINDOW, _SPEECH_CONTEXT = 400, 50


def transformer() -> InfiniteTalkTransformer:
    """The transformer."""
    return _seeded(InfiniteTalkTransformer(CONFIG))


def text_encoder() -> TextEncoder:
    """The text encoder; its tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = UMT5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return TextEncoder(_seeded(UMT5EncoderModel(sizes)), tokenizer)


def image_encoder() -> ImageEncoder:
    """The image encoder."""
    sizes = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return ImageEncoder(_seeded(CLIPVisionModel(sizes)))


def vae() -> VideoAutoencoder:
    """The video autoencoder."""
    return VideoAutoencoder(_seeded(AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)))


def speech_encoder() -> SpeechEncoder:
    """The speech encoder."""
    return SpeechEncoder(_seeded(Wav2Vec2Model(Wav2Vec2Config(**_SPEECH))), _SPEECH_WINDOW, _SPEECH_CONTEXT)


def _seeded(module: Any) -> Any:
    """The same weights everywhere, of the size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            wide = parameter.ndim > 1 and "norm" not in name
            fan_in = parameter[0].numel() if wide else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 + (0.0 if wide else 0.5))
    return module.eval()
