"""The computed speed: its work agrees with what is counted elsewhere, and the page shows what the code computes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bench.gpu import budget  # noqa: E402
from model_store.infinitetalk.transformer import TransformerConfig  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "infinitetalk-speed.md"


def test_the_page_is_what_is_computed() -> None:
    assert PAGE.read_text() == budget.document(), "python -m bench.gpu.budget > docs/infinitetalk-speed.md"


def test_linear_layers_are_counted_as_torch_counts_them() -> None:
    sizes = TransformerConfig()
    tokens = budget.LATENT_FRAMES * (budget.HEIGHT // 16) * (budget.WIDTH // 16)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(tokens, sizes.dim)
        for _ in range(8):
            torch.nn.Linear(sizes.dim, sizes.dim)(x)
        torch.nn.Linear(sizes.ffn_dim, sizes.dim)(torch.nn.Linear(sizes.dim, sizes.ffn_dim)(x))
    assert budget.forward().linear == pytest.approx(sizes.num_layers * counter.get_total_flops())


def test_a_quicker_way_takes_less_time() -> None:
    work, autoencoder = budget.forward(), (277e12, 19e12)
    first, *further, plain = (sum(budget.seconds(stage, work, *autoencoder).values()) for stage in budget.WAY)
    assert sorted([first, *further], reverse=True) == pytest.approx([first, *further])
    assert plain > further[-1]
