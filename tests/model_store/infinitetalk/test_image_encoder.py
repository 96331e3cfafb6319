"""The image encoder: the authors' network from the authors' names, read before its last block, and both public layouts alike."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_transformer as tiny  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from model_store.infinitetalk.image_encoder import load_image_encoder  # noqa: E402

READ = 2  # blocks that are read; the file has one more, as the public one has 32
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": READ, "num_attention_heads": 4, "image_size": 28}
State = dict[str, torch.Tensor]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def authors_state() -> State:
    state = {"visual.cls_embedding": noise(1, 1, 24), "visual.pos_embedding": noise(1, 5, 24), "visual.head": noise(24, 10)}
    state["visual.patch_embedding.weight"] = noise(24, 3, 14, 14)
    norms = ["visual.pre_norm", "visual.post_norm"]
    for i in range(READ + 1):
        b = f"visual.transformer.{i}"
        norms += [f"{b}.norm1", f"{b}.norm2"]
        for name, out, inner in (("attn.to_qkv", 72, 24), ("attn.proj", 24, 24), ("mlp.0", 40, 24), ("mlp.2", 24, 40)):
            state |= {f"{b}.{name}.weight": noise(out, inner + i - i), f"{b}.{name}.bias": noise(out)}
    for norm in norms:
        state |= {f"{norm}.weight": 1 + noise(24), f"{norm}.bias": noise(24)}
    return state | {"textual.token_embedding.weight": noise(7, 7), "log_scale": noise(1)[0]}


def naive(state: State, picture: torch.Tensor) -> torch.Tensor:
    w = {name: tensor.double() for name, tensor in state.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    square = torch.nn.functional.interpolate(picture.double()[None], size=(28, 28), mode="bicubic", align_corners=False)[0]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().view(3, 1, 1)
    pixels = ((square + 1) / 2 - mean) / std
    patches = [pixels[:, y : y + 14, x : x + 14].flatten() for y in (0, 14) for x in (0, 14)]
    x = torch.stack(patches) @ w["visual.patch_embedding.weight"].flatten(1).T
    x = norm(torch.cat([w["visual.cls_embedding"][0], x]) + w["visual.pos_embedding"][0], "visual.pre_norm")
    for i in range(READ):
        b = f"visual.transformer.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.to_qkv")
        q, k, v = (part.view(5, 4, 6).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        attended = (q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v
        x = x + linear(attended.transpose(0, 1).reshape(5, 24), f"{b}.attn.proj")
        x = x + linear(torch.nn.functional.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.0")), f"{b}.mlp.2")
    return x


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(3, 60, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_authors_weights_make_the_authors_vectors(tmp_path: Path, picture: torch.Tensor) -> None:
    path = tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    torch.save(authors_state(), path)
    got = load_image_encoder([path], dtype=torch.float32, sizes=SIZES).embed(picture)
    assert got.shape == (5, 24)
    assert tiny.relative_error(got, naive(authors_state(), picture)) < 1e-5


def test_the_diffusers_layout_gives_the_hidden_states_before_the_last_block(tmp_path: Path, picture: torch.Tensor) -> None:
    config = transformers.CLIPVisionConfig(**{**SIZES, "num_hidden_layers": READ + 1, "hidden_act": "gelu", "patch_size": 14})
    model = transformers.CLIPVisionModel(config).eval()
    tiny.seed_weights(model)
    published = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in model.state_dict().items()}
    published["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(published, tmp_path / "model.safetensors")
    encoder = load_image_encoder([tmp_path / "model.safetensors"], dtype=torch.float32, sizes=SIZES | {"patch_size": 14})
    square = torch.nn.functional.interpolate(picture[None], size=(28, 28), mode="bicubic", align_corners=False)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        wanted = model(((square * 0.5 + 0.5) - mean) / std, output_hidden_states=True).hidden_states[-2][0]
    assert tiny.relative_error(encoder.embed(picture), wanted) < 1e-5
