"""Small seeded models and inputs for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig

CONFIG = TransformerConfig(
    dim=96,
    ffn_dim=160,
    num_heads=2,
    num_layers=3,
    freq_dim=64,
    text_dim=40,
    image_dim=48,
    audio_blocks=3,
    audio_channels=10,
    audio_hidden_dim=16,
    audio_tokens=4,
    audio_dim=12,
)
FRAMES, HEIGHT, WIDTH = 5, 8, 12  # in latents: 17 video frames


def seed_weights(module: nn.Module, seed: int = 0) -> None:
    """Weights of natural size everywhere, biases and norms included, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 + (parameter.ndim == 1) * 0.5)


def transformer(seed: int = 0) -> InfiniteTalkTransformer:
    model = InfiniteTalkTransformer(CONFIG)
    seed_weights(model, seed)
    return model.eval()


def inputs(people: int = 1, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    masks = torch.zeros(people + 1, HEIGHT, WIDTH)
    for person in range(people):
        masks[person, 2:, person * WIDTH // people : (person + 1) * WIDTH // people - 1] = 1
    masks[-1] = 1 - masks[:-1].amax(0)
    return {
        "latents": noise(16, FRAMES, HEIGHT, WIDTH),
        "condition": noise(20, FRAMES, HEIGHT, WIDTH),
        "text": noise(7, CONFIG.text_dim),
        "clip": noise(257, CONFIG.image_dim),
        "audio": noise(people, 4 * (FRAMES - 1) + 1, 5, CONFIG.audio_blocks, CONFIG.audio_channels),
        "person_masks": masks,
    }


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()
