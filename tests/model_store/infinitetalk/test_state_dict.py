"""The full-size model on the meta device has exactly the public checkpoints' tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from model_store.infinitetalk.names import transformer_tensor  # noqa: E402
from model_store.infinitetalk.transformer import InfiniteTalkTransformer  # noqa: E402

D, FFN = 5120, 13824


def linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def base() -> dict[str, tuple[int, ...]]:
    tensors = {"patch_embedding.weight": (D, 36, 1, 2, 2), "patch_embedding.bias": (D,), "head.modulation": (1, 2, D)}
    tensors |= linear("text_embedding.0", D, 4096) | linear("text_embedding.2", D, D)
    tensors |= linear("time_embedding.0", D, 256) | linear("time_embedding.2", D, D) | linear("time_projection.1", 6 * D, D)
    tensors |= linear("img_emb.proj.1", 1280, 1280) | linear("img_emb.proj.3", D, 1280) | linear("head.head", 64, D)
    for place, width in ((0, 1280), (4, D)):
        tensors |= {f"img_emb.proj.{place}.weight": (width,), f"img_emb.proj.{place}.bias": (width,)}
    for i in range(40):
        b = f"blocks.{i}"
        tensors |= {f"{b}.modulation": (1, 6, D), f"{b}.norm3.weight": (D,), f"{b}.norm3.bias": (D,)}
        for attention, projections in (("self_attn", "q k v o"), ("cross_attn", "q k v o k_img v_img")):
            for projection in projections.split():
                tensors |= linear(f"{b}.{attention}.{projection}", D, D)
        for norm in ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k", "cross_attn.norm_k_img"):
            tensors[f"{b}.{norm}.weight"] = (D,)
        tensors |= linear(f"{b}.ffn.0", FFN, D) | linear(f"{b}.ffn.2", D, FFN)
    return tensors


def adapter() -> dict[str, tuple[int, ...]]:
    tensors = linear("audio_proj.proj1", 512, 46080) | linear("audio_proj.proj1_vf", 512, 73728)
    tensors |= linear("audio_proj.proj2", 512, 512) | linear("audio_proj.proj3", 24576, 512)
    tensors |= {"audio_proj.norm.weight": (768,), "audio_proj.norm.bias": (768,)}
    for i in range(40):
        b = f"blocks.{i}"
        tensors |= {f"{b}.norm_x.weight": (D,), f"{b}.norm_x.bias": (D,)}
        tensors |= linear(f"{b}.audio_cross_attn.q_linear", D, D) | linear(f"{b}.audio_cross_attn.kv_linear", 2 * D, 768)
        tensors |= linear(f"{b}.audio_cross_attn.proj", D, D)
    return tensors


def test_every_public_tensor_and_no_other() -> None:
    with torch.device("meta"):
        state = InfiniteTalkTransformer().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == base() | adapter()
    assert (len(base()), len(adapter())) == (1303, 330)
    assert sum(state[name].numel() for name in base()) == 16_394_878_784
    assert sum(state[name].numel() for name in adapter()) == 2_487_168_000


def test_the_public_diffusers_names_are_the_same_tensors() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    with torch.device("meta"):
        converted = diffusers.WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=D).state_dict()
    assert {transformer_tensor(name): tuple(tensor.shape) for name, tensor in converted.items()} == base()
