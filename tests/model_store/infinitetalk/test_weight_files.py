"""Weights come back from files in both public spellings, exactly; damaged and foreign files are named with a cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

import tiny_transformer as tiny  # noqa: E402

from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.loading import load_transformer, read_transformer_config  # noqa: E402
from model_store.infinitetalk.names import transformer_tensor  # noqa: E402
from model_store.infinitetalk.tensor_files import open_tensor_file  # noqa: E402

State = dict[str, torch.Tensor]
FILE, TENSOR = "infinitetalk.safetensors", "audio_proj.norm.weight"


def is_adapter(name: str) -> bool:
    return name.startswith("audio_proj.") or ".audio_cross_attn." in name or ".norm_x." in name


def write_public_layout(folder: Path, state: State) -> list[Path]:
    """Three shards of the base model and one file of the adapter."""
    base = [name for name in state if not is_adapter(name)]
    parts = [base[i::3] for i in range(3)] + [[name for name in state if is_adapter(name)]]
    paths = [folder / f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [
        folder / "infinitetalk.safetensors"
    ]
    for path, part in zip(paths, parts, strict=True):
        safetensors_torch.save_file({name: state[name].contiguous() for name in part}, path)
    return paths


def assert_same(got: State, wanted: State) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


def test_the_authors_layout_comes_back_exactly(tmp_path: Path) -> None:
    model, given = tiny.transformer(), tiny.inputs(people=2)
    seen: list[tuple[int, int]] = []
    loaded = load_transformer(
        write_public_layout(tmp_path, model.state_dict()),
        tiny.CONFIG,
        dtype=torch.float32,
        on_tensor=lambda done, total: seen.append((done, total)),
    )
    assert_same(loaded.state_dict(), model.state_dict())
    assert tiny.relative_error(loaded(timestep=500.0, **given), model(timestep=500.0, **given)) < 1e-6
    count = len(model.state_dict())
    assert seen == [(i + 1, count) for i in range(count)]


def test_the_diffusers_layout_comes_back_exactly(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    converted = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=48, in_channels=36, out_channels=16, text_dim=40, freq_dim=64, ffn_dim=160,
        num_layers=3, image_dim=48, added_kv_proj_dim=96,
    )  # fmt: skip
    tiny.seed_weights(converted)
    converted.save_pretrained(tmp_path / "transformer", max_shard_size="300KB")
    shards = sorted((tmp_path / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    adapter = {name: tensor for name, tensor in tiny.transformer().state_dict().items() if is_adapter(name)}
    safetensors_torch.save_file(adapter, tmp_path / "adapter.safetensors")
    loaded = load_transformer([*shards, tmp_path / "adapter.safetensors"], tiny.CONFIG, dtype=torch.float32)
    wanted = {transformer_tensor(name): tensor for name, tensor in converted.state_dict().items()} | adapter
    assert_same(loaded.state_dict(), {name: wanted[name] for name in loaded.state_dict()})


def test_the_cast_to_bf16_is_one_rounding(tmp_path: Path) -> None:
    model = tiny.transformer()
    loaded = load_transformer(write_public_layout(tmp_path, model.state_dict()), tiny.CONFIG)
    assert_same(loaded.state_dict(), {name: tensor.bfloat16() for name, tensor in model.state_dict().items()})


def test_the_adapter_takes_precedence_over_the_base(tmp_path: Path) -> None:
    state = tiny.transformer().state_dict()
    paths = write_public_layout(tmp_path, state)
    changed = {name: tensor for name, tensor in state.items() if is_adapter(name)}
    changed["head.head.bias"] = torch.full_like(state["head.head.bias"], 7.0)
    safetensors_torch.save_file(changed, paths[-1])
    assert (load_transformer(paths, tiny.CONFIG).head.head.bias == 7).all()


def test_a_pth_file_is_read(tmp_path: Path) -> None:
    state = tiny.transformer().state_dict()
    torch.save(state, tmp_path / "whole.pth")
    assert_same(load_transformer([tmp_path / "whole.pth"], tiny.CONFIG, dtype=torch.float32).state_dict(), state)


def test_both_spellings_of_the_config(tmp_path: Path) -> None:
    authors = {
        "dim": 96,
        "ffn_dim": 160,
        "freq_dim": 64,
        "num_heads": 2,
        "num_layers": 3,
        "in_dim": 36,
        "out_dim": 16,
        "text_len": 512,
        "eps": 1e-6,
    }
    converted = {"num_attention_heads": 2, "attention_head_dim": 48, "ffn_dim": 160, "freq_dim": 64, "num_layers": 3, "in_channels": 36, "out_channels": 16, "text_dim": 4096, "image_dim": 1280, "eps": 1e-6}  # fmt: skip # noqa: E501
    configs = []
    for number, values in enumerate((authors, converted)):
        (tmp_path / f"{number}.json").write_text(json.dumps(values))
        configs.append(read_transformer_config(tmp_path / f"{number}.json"))
    assert configs[0] == configs[1]
    assert (configs[0].dim, configs[0].head_dim, configs[0].num_layers) == (96, 48, 3)


def shorten(path: Path, by: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def resave(change: Callable[[State], object]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        state = safetensors_torch.load_file(path)
        change(state)
        safetensors_torch.save_file(state, path)

    return act


def corrupt_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:30] = b"\xff" * 10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (Path.unlink, "weights_missing", [FILE, "pull"]),
        (shorten, "weights_damaged", [FILE, "pull"]),
        (lambda path: path.write_bytes(b""), "weights_damaged", [FILE, "0 bytes"]),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "weights_damaged", [FILE]),
        (corrupt_header, "weights_damaged", [FILE, "header"]),
        (resave(lambda s: s.pop(TENSOR)), "weights_key_missing", [TENSOR, "verify"]),
        (resave(lambda s: s.update({TENSOR: torch.ones(13)})), "weights_shape_mismatch", [FILE, TENSOR, "[13]", "[12]"]),
        (resave(lambda s: s.update({"audio_proj.proj9": torch.ones(1)})), "weights_key_unknown", [FILE, "audio_proj.proj9"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, damage: Callable[[Path], None], code: str, words: list[str]) -> None:
    paths = write_public_layout(tmp_path, tiny.transformer().state_dict())
    damage(paths[-1])
    with pytest.raises(InfiniteTalkError) as caught:
        load_transformer(paths, tiny.CONFIG)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


@pytest.mark.parametrize("content", [{"weight": Payload()}, {"weights": {"nested": torch.ones(1)}}, torch.ones(3)])
def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(InfiniteTalkError, match=r"model\.pth"):
        open_tensor_file(tmp_path / "model.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00"])
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(InfiniteTalkError, match=r"model\.pth.*models pull"):
        open_tensor_file(tmp_path / "model.pth")


def test_a_truncated_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(tiny.transformer().state_dict(), path)
    shorten(path, by=5000)
    with pytest.raises(InfiniteTalkError, match=r"model\.pth"):
        open_tensor_file(path)
