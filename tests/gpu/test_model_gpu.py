"""On a GPU the transformer's kernels give what plain torch gives on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from model_store.infinitetalk.attention import Attention  # noqa: E402
from model_store.infinitetalk.loading import load_transformer, pack_blocks  # noqa: E402
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")]

# Heads as wide as the public model's, since kernels are made for that width.
CONFIG = TransformerConfig(dim=512, ffn_dim=1408, num_heads=4, num_layers=3, text_dim=64, image_dim=64, audio_channels=16)


def model() -> InfiniteTalkTransformer:
    torch.manual_seed(0)
    made = InfiniteTalkTransformer(CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2)
    return made.bfloat16().eval()


def inputs(people: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    masks = torch.zeros(people + 1, 16, 20)
    for person in range(people):
        masks[person, 2:, person * 20 // people : (person + 1) * 20 // people - 2] = 1
    masks[-1] = 1 - masks[:-1].amax(0)
    return {
        "latents": torch.randn(16, 3, 16, 20),
        "text": torch.randn(30, 64),
        "clip": torch.randn(257, 64),
        "condition": torch.randn(20, 3, 16, 20),
        "audio": torch.randn(people, 9, 5, 12, 16),
        "person_masks": masks,
    }


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.cpu().double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("people", [1, 2])
def test_bf16_on_the_gpu_errs_no_more_than_twice_as_much_as_on_the_cpu(people: int) -> None:
    given = inputs(people)
    exact = model().float()(timestep=600.0, **given)
    on_cpu = relative_error(model()(timestep=600.0, **given), exact)
    on_gpu = relative_error(model().cuda()(timestep=600.0, **{name: value.cuda() for name, value in given.items()}), exact)
    assert on_gpu <= 2 * on_cpu


@pytest.mark.parametrize("quantised", [None, "int8", "fp8"])
def test_weights_are_loaded_to_the_gpu(tmp_path: Path, quantised: str | None) -> None:
    made, given = model(), inputs(1)
    torch.save(made.state_dict(), tmp_path / "model.pth")
    loaded = load_transformer([tmp_path / "model.pth"], CONFIG, device="cuda", quantised=quantised)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    exact = made.float()(timestep=600.0, **given)
    assert relative_error(loaded(timestep=600.0, **given), exact) < (0.05 if quantised is None else 0.15)


@pytest.mark.parametrize("packed", [None, "int8", "fp8"])
@pytest.mark.parametrize("how", [Attention(eight_bit=True), Attention(eight_bit=True, keep=0.5)], ids=["all", "half"])
@pytest.mark.parametrize("people", [1, 2])
def test_quicker_ways_err_no_more_than_twice_as_much_as_on_the_cpu(people: int, how: Attention, packed: str | None) -> None:
    given = inputs(people)

    def predict(device: str) -> torch.Tensor:
        made = model().to(device)
        if packed is not None:
            pack_blocks(made, packed)
            made.multiply_in_eight_bits()
        return made(timestep=600.0, **{name: value.to(device) for name, value in given.items()}, how=how)

    if packed == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device has no fp8")
    exact = model().float()(timestep=600.0, **given)
    assert relative_error(predict("cuda"), exact) <= 2 * relative_error(predict("cpu"), exact)
