"""Parts come from the cache by name, in whichever public layout lies there, with the variant's LoRA merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_transformer as tiny  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from model_store.catalogue import component  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.checkpoints import Checkpoints  # noqa: E402
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig  # noqa: E402
from model_store.weights import WeightCache  # noqa: E402

# Sizes that the public config.json does not hold keep their full size here too.
CONFIG = TransformerConfig(dim=48, ffn_dim=64, num_heads=1, num_layers=1, freq_dim=32)
JSON = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 1,
    "num_layers": 1,
    "freq_dim": 32,
    "in_dim": 36,
    "out_dim": 16,
    "text_len": 512,
    "eps": 1e-6,
}
Q = "blocks.0.self_attn.q.weight"


def is_adapter(name: str) -> bool:
    return name.startswith("audio_proj.") or ".audio_cross_attn." in name or ".norm_x." in name


@pytest.fixture(scope="module")
def model() -> InfiniteTalkTransformer:
    made = InfiniteTalkTransformer(CONFIG)
    tiny.seed_weights(made)
    return made.bfloat16()


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path)


def place(cache: WeightCache, name: str, number: int = 0) -> Path:
    part = component(name)
    path = cache.path(part, part.files[number])
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def place_adapter(cache: WeightCache, model: InfiniteTalkTransformer) -> None:
    save_file({name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}, place(cache, "adapter-single"))


def place_authors(cache: WeightCache, model: InfiniteTalkTransformer) -> None:
    place(cache, "base").write_text(json.dumps(JSON))
    base = {name: tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}
    for shard in range(7):
        save_file({name: base[name] for name in list(base)[shard::7]}, place(cache, "base", shard + 1))


def place_converted(cache: WeightCache, model: InfiniteTalkTransformer) -> None:
    converted = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=48, in_channels=36, out_channels=16, text_dim=4096, freq_dim=32, ffn_dim=64,
        num_layers=1, image_dim=1280, added_kv_proj_dim=48,
    ).bfloat16()  # fmt: skip
    from model_store.infinitetalk.names import transformer_tensor  # noqa: PLC0415

    ours = model.state_dict()
    converted.load_state_dict({name: ours[transformer_tensor(name)] for name in converted.state_dict()})
    converted.save_pretrained(cache.folder / "Wan-AI" / "Wan2.1-I2V-14B-480P-Diffusers" / "transformer", max_shard_size="500KB")


@pytest.mark.parametrize("layout", [place_authors, place_converted])
def test_the_transformer_from_either_layout(
    cache: WeightCache, model: InfiniteTalkTransformer, layout: Callable[[WeightCache, InfiniteTalkTransformer], None]
) -> None:
    layout(cache, model)
    place_adapter(cache, model)
    loaded = Checkpoints(cache, "cpu").transformer().state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_a_variant_has_its_lora_merged(cache: WeightCache, model: InfiniteTalkTransformer) -> None:
    place_authors(cache, model)
    place_adapter(cache, model)
    difference = torch.randn(48, 48)
    save_file({"diffusion_model.blocks.0.self_attn.q.diff": difference}, place(cache, "lora-4-step"))
    checkpoints = Checkpoints(cache, "cpu")
    before = model.state_dict()[Q]
    assert torch.equal(checkpoints.transformer("base").state_dict()[Q], before)
    assert torch.equal(checkpoints.transformer("4-step").state_dict()[Q], (before.float() + difference).bfloat16())
    for wanted, code in (("8-step", "weights_missing"), ("3-step", "variant_unknown")):
        with pytest.raises(InfiniteTalkError) as caught:
            checkpoints.transformer(wanted)
        assert caught.value.code == code


def test_a_missing_shard_is_named_in_either_layout(cache: WeightCache, model: InfiniteTalkTransformer) -> None:
    place_authors(cache, model)
    place(cache, "base", 3).unlink()
    with pytest.raises(InfiniteTalkError, match=r"00003-of-00007.*models pull base"):
        Checkpoints(cache, "cpu").transformer()
    place_converted(cache, model)
    shard = sorted(cache.folder.rglob("transformer/*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InfiniteTalkError, match=shard.name):
        Checkpoints(cache, "cpu").transformer()
