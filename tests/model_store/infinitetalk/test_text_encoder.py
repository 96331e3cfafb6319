"""The text encoder: the authors' network from the authors' names, and both public layouts alike."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_transformer as tiny  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.names import text_tensor  # noqa: E402
from model_store.infinitetalk.text_encoder import load_text_encoder  # noqa: E402

SIZES = {"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
State = dict[str, torch.Tensor]


def authors_state() -> State:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {"token_embedding.weight": noise(50, 24), "norm.weight": 1 + noise(24)}
    for i in range(2):
        b = f"blocks.{i}"
        state |= {f"{b}.norm1.weight": 1 + noise(24), f"{b}.norm2.weight": 1 + noise(24)}
        state |= {f"{b}.attn.{part}.weight": noise(24, 24) for part in "qkvo"}
        state[f"{b}.pos_embedding.embedding.weight"] = noise(32, 4)
        state |= {
            f"{b}.ffn.gate.0.weight": noise(40, 24),
            f"{b}.ffn.fc1.weight": noise(40, 24),
            f"{b}.ffn.fc2.weight": noise(24, 40),
        }
    return state


def naive(state: State, ids: list[int]) -> torch.Tensor:
    """UMT5's encoder: pre-norm RMS, unscaled attention with a bias by distance in every block, gated GELU (tanh)."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def bucket(distance: int) -> int:
        near, far = 8, 128
        side, length = (16 if distance > 0 else 0), abs(distance)
        if length < near:
            return side + length
        return side + min(15, near + int(math.log(length / near) / math.log(far / near) * (16 - near)))

    x = w["token_embedding.weight"][ids]
    length = len(ids)
    buckets = torch.tensor([[bucket(key - query) for key in range(length)] for query in range(length)])
    for i in range(2):
        b = f"blocks.{i}"
        h = norm(x, f"{b}.norm1")
        q, k, v = ((h @ w[f"{b}.attn.{part}.weight"].T).view(length, 4, 6).transpose(0, 1) for part in "qkv")
        scores = q @ k.transpose(1, 2) + w[f"{b}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, 24) @ w[f"{b}.attn.o.weight"].T
        h = norm(x, f"{b}.norm2")
        gate = torch.nn.functional.gelu(h @ w[f"{b}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (h @ w[f"{b}.ffn.fc1.weight"].T * gate) @ w[f"{b}.ffn.fc2.weight"].T
    return norm(x, "norm")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = ["<pad>", "</s>", "<unk>", "a", "person", "speaks", "&"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_authors_weights_make_the_authors_vectors(tmp_path: Path, tokenizer: Path) -> None:
    torch.save(authors_state(), tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    encoder = load_text_encoder([tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"], tokenizer, dtype=torch.float32, sizes=SIZES)
    text = " a person speaks " * 30  # long enough for the far buckets
    got = encoder.embed(text)
    assert got.shape == (91, 24)
    assert tiny.relative_error(got, naive(authors_state(), [3, 4, 5] * 30 + [1])) < 1e-5


def test_the_diffusers_layout_is_the_same_model(tmp_path: Path, tokenizer: Path) -> None:
    converted: State = {}
    for name, tensor in authors_state().items():
        renamed = text_tensor(name)
        assert renamed is not None
        converted[renamed] = tensor
    converted["encoder.embed_tokens.weight"] = converted["shared.weight"].clone()
    halves = list(converted)
    save_file({name: converted[name] for name in halves[::2]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: converted[name] for name in halves[1::2]}, tmp_path / "model-00002-of-00002.safetensors")
    torch.save(authors_state(), tmp_path / "t5.pth")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    one = load_text_encoder(shards, tokenizer, dtype=torch.float32, sizes=SIZES)
    other = load_text_encoder([tmp_path / "t5.pth"], tokenizer, dtype=torch.float32, sizes=SIZES)
    assert torch.equal(one.embed("a person speaks"), other.embed("a person speaks"))


def test_every_tensor_of_the_full_size_has_an_authors_name() -> None:
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(transformers.UMT5Config(**{**SIZES, "feed_forward_proj": "gated-gelu"}))
    assert {text_tensor(name) for name in authors_state()} == set(model.state_dict()) - {"encoder.embed_tokens.weight"}


def test_text_is_cleaned_and_cut(tmp_path: Path, tokenizer: Path) -> None:
    torch.save(authors_state(), tmp_path / "t5.pth")
    encoder = load_text_encoder([tmp_path / "t5.pth"], tokenizer, dtype=torch.float32, sizes=SIZES)
    assert torch.equal(encoder.embed("  a \n person\t&amp;amp; "), encoder.embed("a person &"))
    assert encoder.embed("a " * 600).shape == (512, 24)
    assert encoder.embed("").shape == (1, 24)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    torch.save(authors_state(), tmp_path / "t5.pth")
    (tmp_path / "tokenizer.json").write_text("{}")
    for path, code in ((tmp_path / "tokenizer.json", "weights_damaged"), (tmp_path / "none.json", "weights_missing")):
        with pytest.raises(InfiniteTalkError, match=path.name) as caught:
            load_text_encoder([tmp_path / "t5.pth"], path, dtype=torch.float32, sizes=SIZES)
        assert caught.value.code == code
