"""A picture to vectors: the vision half of OpenCLIP's XLM-RoBERTa ViT-H/14 (arXiv:2212.07143), read after 31 of its 32 blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from model_store.infinitetalk import names
from model_store.infinitetalk.loading import fill
from model_store.infinitetalk.tensor_files import open_tensor_file

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

# The last block and the final norm are never read, so they are not built.
_VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 31,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}


class ImageEncoder:
    """The encoder.

    Args:
        model: transformers' module with its weights, without its last block.
    """

    def __init__(self, model: CLIPVisionModel) -> None:
        self._model = model.eval().requires_grad_(False)
        self._size: int = model.config.image_size
        self._mean = torch.tensor(_MEAN, device=model.device).view(3, 1, 1)
        self._std = torch.tensor(_STD, device=model.device).view(3, 1, 1)

    @torch.no_grad()
    def embed(self, picture: Tensor) -> Tensor:
        """The picture's vectors, the class token first.

        The picture is squeezed to a square by bicubic interpolation without antialiasing, as in training.

        Args:
            picture: ``[3, H, W]`` in -1..1.

        Returns:
            ``[257, 1280]`` in the weights' dtype.
        """
        square = F.interpolate(
            picture.to(self._model.device).float().unsqueeze(0),
            size=(self._size, self._size),
            mode="bicubic",
            align_corners=False,
        )
        pixels = (square * 0.5 + 0.5 - self._mean) / self._std
        vectors: Tensor = self._model(pixel_values=pixels.to(self._model.dtype)).last_hidden_state[0]
        return vectors


def load_image_encoder(
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    sizes: dict[str, Any] | None = None,
) -> ImageEncoder:
    """The image encoder with its weights.

    Args:
        files: ``models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`` (its ``visual.*`` is read), or
            ``image_encoder/model.safetensors`` of the ``-Diffusers`` repository.
        dtype: of the weights and the vectors.
        device: where the weights are placed.
        sizes: fields of ``CLIPVisionConfig`` for a model of other sizes; ``num_hidden_layers`` counts the blocks that are read.

    Raises:
        InfiniteTalkError: see ``loading.fill``.
    """
    config = CLIPVisionConfig(**(_VIT_H | (sizes or {})))
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    model.post_layernorm = torch.nn.Identity()
    unread = re.compile(rf"encoder\.layers\.{config.num_hidden_layers}\.|post_layernorm\.")

    def rename(key: str) -> str | None:
        name = names.image_tensor(key)
        return None if name is None or unread.match(name) else name

    fill(model, [open_tensor_file(path) for path in files], rename, dtype=dtype, device=device, split=_split)
    positions = torch.arange(model.embeddings.num_positions, device=device).unsqueeze(0)
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    return ImageEncoder(model)


def _split(name: str) -> Sequence[str]:
    return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"] if ".qkv." in name else (name,)
