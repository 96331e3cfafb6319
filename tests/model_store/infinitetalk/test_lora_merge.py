"""A LoRA is part of the weights after loading, in every published layout."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

import tiny_transformer as tiny  # noqa: E402

from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.loading import load_transformer  # noqa: E402

State = dict[str, torch.Tensor]
RANK = 4
Q = "blocks.1.self_attn.q"


def load(folder: Path, lora: State, *, strength: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    safetensors_torch.save_file(tiny.transformer().state_dict(), folder / "model.safetensors")
    safetensors_torch.save_file(lora, folder / "lora.safetensors")
    model = load_transformer(
        [folder / "model.safetensors"], tiny.CONFIG, dtype=dtype, loras=[(folder / "lora.safetensors", strength)]
    )
    return model.state_dict()


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(RANK, 96, generator=generator), torch.randn(96, RANK, generator=generator)


def test_the_pair_counts_alpha_over_rank_times_strength(tmp_path: Path) -> None:
    down, up = pair()
    lora = {
        f"diffusion_model.{Q}.lora_down.weight": down,
        f"diffusion_model.{Q}.lora_up.weight": up,
        f"diffusion_model.{Q}.alpha": torch.tensor(2.0),
    }
    before, after = tiny.transformer().state_dict(), load(tmp_path, lora, strength=0.5)
    torch.testing.assert_close(after[f"{Q}.weight"], before[f"{Q}.weight"] + 0.5 * 2 / RANK * (up @ down))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name != f"{Q}.weight")


def test_without_alpha_the_pair_counts_whole(tmp_path: Path) -> None:
    down, up = pair()
    after = load(tmp_path, {f"{Q}.lora_down.weight": down, f"{Q}.lora_up.weight": up})
    torch.testing.assert_close(after[f"{Q}.weight"], tiny.transformer().state_dict()[f"{Q}.weight"] + up @ down)


def test_full_differences_of_weight_bias_norm_and_modulation(tmp_path: Path) -> None:
    before = tiny.transformer().state_dict()
    changes = {
        f"{Q}.diff": f"{Q}.weight",
        f"{Q}.diff_b": f"{Q}.bias",
        "blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm3.bias",
        "blocks.0.cross_attn.norm_k.diff": "blocks.0.cross_attn.norm_k.weight",
        "head.modulation.diff": "head.modulation",
        "blocks.2.diff_m": "blocks.2.modulation",
    }
    lora = {f"diffusion_model.{key}": torch.randn_like(before[target]) for key, target in changes.items()}
    after = load(tmp_path, lora)
    for key, target in changes.items():
        torch.testing.assert_close(after[target], before[target] + lora[f"diffusion_model.{key}"])


def test_the_names_of_diffusers_and_peft(tmp_path: Path) -> None:
    down, up = pair()
    lora = {"transformer.blocks.1.attn1.to_q.lora_A.weight": down, "transformer.blocks.1.attn1.to_q.lora_B.weight": up}
    torch.testing.assert_close(load(tmp_path, lora)[f"{Q}.weight"], tiny.transformer().state_dict()[f"{Q}.weight"] + up @ down)


def test_a_text_to_video_lora_changes_the_noise_channels_of_the_patch_embedding(tmp_path: Path) -> None:
    before = tiny.transformer().state_dict()["patch_embedding.weight"]
    difference = torch.randn(96, 16, 1, 2, 2)
    after = load(tmp_path, {"diffusion_model.patch_embedding.diff": difference})["patch_embedding.weight"]
    torch.testing.assert_close(after[:, :16], before[:, :16] + difference)
    assert torch.equal(after[:, 16:], before[:, 16:])


def test_zeros_for_tensors_that_the_model_does_not_have_are_no_obstacle(tmp_path: Path) -> None:
    lora = {"blocks.0.norm1.diff": torch.zeros(96), f"{Q}.diff_b": torch.ones(96)}
    torch.testing.assert_close(load(tmp_path, lora)[f"{Q}.bias"], tiny.transformer().state_dict()[f"{Q}.bias"] + 1)


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    down, up = pair()
    after = load(tmp_path, {f"{Q}.lora_down.weight": down * 1e-3, f"{Q}.lora_up.weight": up}, dtype=torch.bfloat16)
    wanted = (tiny.transformer().state_dict()[f"{Q}.weight"] + up @ (down * 1e-3)).bfloat16()
    assert torch.equal(after[f"{Q}.weight"], wanted)


@pytest.mark.parametrize(
    ("lora", "code", "word"),
    [
        ({f"{Q}.lora_down.weight": torch.ones(RANK, 96)}, "weights_damaged", "half"),
        (
            {f"{Q}.lora_down.weight": torch.ones(RANK, 90), f"{Q}.lora_up.weight": torch.ones(96, RANK)},
            "weights_shape_mismatch",
            Q,
        ),
        ({f"{Q}.lora_down.weight": torch.ones(RANK, 96), f"{Q}.lora_up.weight": torch.ones(96, 3)}, "weights_shape_mismatch", Q),
        ({"blocks.9.self_attn.q.diff": torch.ones(96, 96)}, "weights_key_unknown", "blocks.9.self_attn.q"),
        ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, "weights_key_unknown", "hada_w1_a"),
    ],
)
def test_a_lora_for_something_else_is_refused(tmp_path: Path, lora: State, code: str, word: str) -> None:
    with pytest.raises(InfiniteTalkError) as caught:
        load(tmp_path, lora)
    assert caught.value.code == code
    assert "lora.safetensors" in caught.value.message
    assert word in caught.value.message
