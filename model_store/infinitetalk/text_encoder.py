"""Words to vectors: the encoder of UMT5-XXL (arXiv:2304.09151) and its tokenizer."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk import names
from model_store.infinitetalk.loading import fill
from model_store.infinitetalk.safetensors_header import damaged
from model_store.infinitetalk.tensor_files import open_tensor_file

MAX_TOKENS = 512

_XXL = {
    "vocab_size": 256_384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}


class TextEncoder:
    """The encoder with its tokenizer.

    Args:
        model: transformers' module with its weights.
        tokenizer: of the same vocabulary; texts beyond :data:`MAX_TOKENS` tokens are cut, their end mark kept.
    """

    def __init__(self, model: UMT5EncoderModel, tokenizer: Tokenizer) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """The text's vectors, one a token and the end mark: ``[n, 4096]`` in the weights' dtype, n <= 512.

        HTML entities are resolved and white space is collapsed first, as in training.
        """
        cleaned = re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
        ids = torch.tensor([self._tokenizer.encode(cleaned).ids], device=self._model.device)
        vectors: Tensor = self._model(input_ids=ids).last_hidden_state[0]
        return vectors


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in ``tokenizer.json``.

    Raises:
        InfiniteTalkError: ``weights_missing``, ``weights_damaged``.
    """
    if not path.exists():
        raise InfiniteTalkError("weights_missing", f"{path.name} is missing: fetch it with `infinitetalk models pull`.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever it cannot read
        raise damaged(path.name, "it is not a tokenizer") from error


def load_text_encoder(
    files: Sequence[Path],
    tokenizer: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    sizes: dict[str, Any] | None = None,
) -> TextEncoder:
    """The text encoder with its weights.

    Args:
        files: ``models_t5_umt5-xxl-enc-bf16.pth``, or the shards of ``text_encoder/`` in the ``-Diffusers`` repository.
        tokenizer: ``google/umt5-xxl/tokenizer.json``, or ``tokenizer/tokenizer.json``.
        dtype: of the weights and the vectors.
        device: where the weights are placed.
        sizes: fields of ``UMT5Config`` for a model of other sizes than the public one.

    Raises:
        InfiniteTalkError: see ``loading.fill``.
    """
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**(_XXL | (sizes or {}))))
    fill(
        model,
        [open_tensor_file(path) for path in files],
        names.text_tensor,
        dtype=dtype,
        device=device,
        tied=("encoder.embed_tokens.weight",),
    )
    model.encoder.embed_tokens.weight = model.shared.weight
    return TextEncoder(model, load_tokenizer(tokenizer))
