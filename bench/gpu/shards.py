"""Weight files of the full size with random content, written as fast as the disk takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig


def write_shards(folder: Path, config: TransformerConfig, count: int) -> list[Path]:
    """The transformer's tensors in bf16, as ``count`` safetensors files of about the same size.

    Weights have the size that keeps activations near 1: normal, 1 / sqrt(inputs) for products, around 1 for norms.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in InfiniteTalkTransformer(config).state_dict().items()}
    per_file = sum(math.prod(shape) for shape in shapes.values()) / count
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if filled >= per_file and len(groups) < count:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += math.prod(shape)
    paths = []
    for number, names in enumerate(groups, start=1):
        path = folder / f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors"
        _write(path, {name: shapes[name] for name in names})
        paths.append(path)
    return paths


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # as the format's own writer does, so that tensors are aligned
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for data in _random(shapes):
            stream.write(memoryview(data.cpu().view(torch.uint8).numpy()))


def _random(shapes: dict[str, tuple[int, ...]]) -> Iterator[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    for name, shape in shapes.items():
        values = torch.randn(math.prod(shape), generator=generator, device="cuda", dtype=torch.bfloat16)
        if len(shape) > 1:
            values *= math.prod(shape[1:]) ** -0.5
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.02
        yield values
