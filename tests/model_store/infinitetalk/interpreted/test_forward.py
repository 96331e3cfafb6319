"""A whole forward through the kernels, each way of computing it, beside the same forward in plain torch."""

import pytest
import torch

from kernels.dispatch import OVERRIDE
from model_store.infinitetalk.attention import EXACT, Attention
from model_store.infinitetalk.loading import pack_blocks
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig

# Heads as wide as the public model's, since kernels are made for that width; everything else as small as can be.
CONFIG = TransformerConfig(
    dim=256,
    ffn_dim=320,
    num_heads=2,
    num_layers=1,
    freq_dim=32,
    text_dim=32,
    text_len=40,
    image_dim=32,
    audio_blocks=2,
    audio_channels=8,
    audio_hidden_dim=8,
    audio_tokens=8,
    audio_dim=16,
)
# torch's own product serves fp8 on a device, and its reference here.
KERNELS = "triton,linear_eight_bit=reference"
EIGHT_BIT = Attention(eight_bit=True)


def inputs(people: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    masks = torch.zeros(people + 1, 8, 12)
    for person in range(people):
        masks[person, 2:, person * 12 // people : (person + 1) * 12 // people - 2] = 1
    masks[-1] = 1 - masks[:-1].amax(0)
    return {
        "latents": noise(16, 2, 8, 12),
        "text": noise(9, 32),
        "clip": noise(33, 32),
        "condition": noise(20, 2, 8, 12),
        "audio": noise(people, 5, 5, 2, 8),
        "person_masks": masks,
    }


def predict(people: int, how: Attention, packed: str | None, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    model = InfiniteTalkTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    model.to(dtype)
    if packed is not None:
        pack_blocks(model, packed)
        model.multiply_in_eight_bits()
    return model(timestep=600.0, **inputs(people), how=how)


@pytest.mark.parametrize(
    ("people", "how", "packed", "kernels"),
    [
        (1, EXACT, None, "triton"),
        (2, EXACT, None, "triton"),
        (1, EIGHT_BIT, "int8", "triton"),
        (2, EIGHT_BIT, None, "triton"),
        (1, Attention(eight_bit=True, keep=0.5), "fp8", KERNELS),
        (1, Attention(keep=0.5), None, "triton"),
    ],
)
def test_kernels_err_no_more_than_twice_as_much_as_plain_torch(
    monkeypatch: pytest.MonkeyPatch, people: int, how: Attention, packed: str | None, kernels: str
) -> None:
    monkeypatch.setenv(OVERRIDE, "reference")
    exact = predict(people, EXACT, None, torch.float32).double()
    plain = predict(people, how, packed)
    monkeypatch.setenv(OVERRIDE, kernels)
    got = predict(people, how, packed)
    errors = [((one.double() - exact).norm() / exact.norm()).item() for one in (got, plain)]
    # The kernel rounds the softmax's weights, too, to 16 bits or fp8; plain torch does not.
    assert 0 < errors[0] < 2 * errors[1], errors
