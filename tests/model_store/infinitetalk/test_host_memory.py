"""Loading fp32 files as bf16 needs little more host memory than the bf16 model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
if not Path("/proc/self/clear_refs").exists():
    pytest.skip("peak memory is read from Linux's /proc", allow_module_level=True)

from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig  # noqa: E402

# The public model's shape at a twentieth of its width: no tensor is more than 2% of the whole, as at full size.
SIZES = {
    "dim": 256,
    "ffn_dim": 692,
    "num_heads": 4,
    "num_layers": 40,
    "text_dim": 256,
    "audio_channels": 32,
    "audio_hidden_dim": 64,
}

MEASURE = """
import json, re, sys
from pathlib import Path

import torch
from model_store.infinitetalk.loading import load_transformer
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config = TransformerConfig(**json.loads(sys.argv[1]))
with torch.device("meta"):
    InfiniteTalkTransformer(config)  # the first tensors on the meta device make torch import 80 MB, whatever the model's size
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = load_transformer([Path(p) for p in sys.argv[2:]], config)
print(status("VmHWM") - before, sum(p.numel() * 2 for p in model.parameters()))
"""


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """An fp32 file whose zeros need no disk: they still come into memory when they are read."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # as the format's own writer does, so that tensors are aligned
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(stream.tell() + position)


def test_the_peak_is_at_most_a_tenth_above_the_model(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = InfiniteTalkTransformer(TransformerConfig(**SIZES)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    paths = [tmp_path / f"{shard}.safetensors" for shard in range(3)]
    for shard, path in enumerate(paths):
        write_zeros(path, {name: shapes[name] for name in list(shapes)[shard::3]})
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(SIZES), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    peak, size = map(int, done.stdout.split())
    assert size > 100e6
    assert 0.9 * size < peak <= 1.1 * size
