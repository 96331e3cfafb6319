"""8-bit weights: packed at loading or read as optimum-quanto wrote them, close to the full model, and kept by a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

import tiny_transformer as tiny  # noqa: E402

from kernels import quantise_weight  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.loading import load_transformer, pack_blocks  # noqa: E402
from model_store.infinitetalk.quantised import FORMATS, QuantisedLinear  # noqa: E402

Q = "blocks.1.self_attn.q"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(tiny.transformer().state_dict(), path)
    return path


@pytest.mark.parametrize(("name", "step"), [("int8", 0.5 / 127), ("fp8", 2**-4)])
def test_no_weight_moves_by_more_than_half_a_step(name: str, step: float) -> None:
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 30)[:, None]
    weight[7] = 0
    data, scale = quantise_weight(weight, FORMATS[name])
    error = (data.float() * scale - weight).abs()
    # int8 has even steps over a row's range; fp8 has steps relative to the weight, and even ones below its smallest normal
    largest = weight.abs().amax(1, keepdim=True)
    bound = step * largest if name == "int8" else torch.maximum(step * weight.abs(), largest * 2**-10 / 448)
    assert (error <= bound * 1.001).all()


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.02), ("fp8", 0.08)])
def test_packed_at_loading_it_stays_close_and_half_the_size(file: Path, name: str, bound: float) -> None:
    model = load_transformer([file], tiny.CONFIG, dtype=torch.float32, quantised=name)
    linear = model.get_submodule(Q)
    assert isinstance(linear, QuantisedLinear)
    assert linear.data.dtype == FORMATS[name]
    assert isinstance(model.time_projection[1], torch.nn.Linear)
    given = tiny.inputs(people=2)
    assert tiny.relative_error(model(timestep=500.0, **given), tiny.transformer()(timestep=500.0, **given)) < bound


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_model_survives_its_own_file(file: Path, tmp_path: Path, name: str) -> None:
    model = load_transformer([file], tiny.CONFIG, quantised=name)
    safetensors_torch.save_file(model.state_dict(), tmp_path / "packed.safetensors")
    again = load_transformer([tmp_path / "packed.safetensors"], tiny.CONFIG)
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key].float(), tensor.float()), key


def quanto_state(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every Linear as optimum-quanto 0.2.6 writes it, also those that we keep whole."""
    model = tiny.transformer()
    state = model.state_dict()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            data, scale = quantise_weight(state.pop(f"{path}.weight"), dtype)
            state |= {f"{path}.weight._data": data, f"{path}.weight._scale": scale.bfloat16()}
            state |= {f"{path}.input_scale": torch.tensor(1.0), f"{path}.output_scale": torch.tensor(1.0)}
    return state


@pytest.mark.parametrize("name", FORMATS)
def test_the_layout_of_optimum_quanto_is_read(tmp_path: Path, name: str) -> None:
    state = quanto_state(FORMATS[name])
    safetensors_torch.save_file(state, tmp_path / "quanto.safetensors")
    model = load_transformer([tmp_path / "quanto.safetensors"], tiny.CONFIG, dtype=torch.float32)
    linear, projection = model.get_submodule(Q), model.time_projection[1]
    assert isinstance(linear, QuantisedLinear)
    assert torch.equal(linear.data.float(), state[f"{Q}.weight._data"].float())
    unpacked = state["time_projection.1.weight._data"].float() * state["time_projection.1.weight._scale"].float()
    assert torch.equal(projection.weight, unpacked)
    given = tiny.inputs()
    assert tiny.relative_error(model(timestep=500.0, **given), tiny.transformer()(timestep=500.0, **given)) < 0.1


def test_a_lora_reaches_packed_weights(tmp_path: Path) -> None:
    safetensors_torch.save_file(quanto_state(torch.int8), tmp_path / "quanto.safetensors")
    difference = torch.randn(96, 96)
    safetensors_torch.save_file({f"{Q}.diff": difference}, tmp_path / "lora.safetensors")
    plain = load_transformer([tmp_path / "quanto.safetensors"], tiny.CONFIG)
    merged = load_transformer([tmp_path / "quanto.safetensors"], tiny.CONFIG, loras=[(tmp_path / "lora.safetensors", 1.0)])
    linear, before = merged.get_submodule(Q), plain.get_submodule(Q)
    assert isinstance(linear, QuantisedLinear)
    assert isinstance(before, QuantisedLinear)
    assert linear.data.dtype == torch.int8
    assert tiny.relative_error(linear.weight, before.weight + difference) < 0.01


def test_casting_the_model_keeps_the_packed_weights(file: Path) -> None:
    model = load_transformer([file], tiny.CONFIG, dtype=torch.float32, quantised="fp8")
    before = model.get_submodule(Q).state_dict()
    model.bfloat16()
    after = model.get_submodule(Q).state_dict()
    assert after["bias"].dtype == torch.bfloat16
    for name in ("weight._data", "weight._scale"):
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name].float(), before[name].float())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({f"{Q}.weight._scale": None}, "weights_damaged"),
        ({f"{Q}.input_scale": torch.tensor(0.3)}, "weights_unsupported"),
    ],
)
def test_quantised_files_that_cannot_be_used_are_named(tmp_path: Path, change: dict[str, torch.Tensor | None], code: str) -> None:
    state = {**quanto_state(torch.int8), **change}
    safetensors_torch.save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "quanto.safetensors")
    with pytest.raises(InfiniteTalkError, match=r"quanto\.safetensors") as caught:
        load_transformer([tmp_path / "quanto.safetensors"], tiny.CONFIG)
    assert caught.value.code == code


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.03), ("fp8", 0.1)])
@pytest.mark.parametrize("people", [1, 2])
def test_products_in_eight_bits_stay_close(file: Path, name: str, bound: float, people: int) -> None:
    model = load_transformer([file], tiny.CONFIG, dtype=torch.float32, quantised=name)
    given = tiny.inputs(people=people)
    kept = model(timestep=500.0, **given)
    model.multiply_in_eight_bits()
    got = model(timestep=500.0, **given)
    assert not torch.equal(got, kept)
    assert tiny.relative_error(got, tiny.transformer()(timestep=500.0, **given)) < bound


def test_what_was_kept_of_the_text_goes_when_weights_are_packed() -> None:
    given = tiny.inputs()
    used, fresh = tiny.transformer(), tiny.transformer()
    used(timestep=500.0, **given)  # keys and values of text, picture and speech are kept
    for model in (used, fresh):
        pack_blocks(model, "int8")
    assert torch.equal(used(timestep=500.0, **given), fresh(timestep=500.0, **given))


def test_products_in_eight_bits_need_one_eight_bit_type() -> None:
    model = tiny.transformer()
    with pytest.raises(ValueError, match="one 8-bit type"):
        model.multiply_in_eight_bits()
    pack_blocks(model, "int8")
    model.multiply_in_eight_bits()
    assert {block.bits for block in model.blocks} == {torch.int8}
    weight = quantise_weight(torch.randn(96, 96), FORMATS["fp8"])
    model.blocks[1].cross_attn.o = QuantisedLinear(*weight, None)
    with pytest.raises(ValueError, match="float8"):
        model.multiply_in_eight_bits()


def test_an_unknown_format_lists_the_known_ones(file: Path) -> None:
    with pytest.raises(InfiniteTalkError, match="int8 or fp8"):
        load_transformer([file], tiny.CONFIG, quantised="int3")
