"""Sampling: the times, the Euler steps, the forwards of guidance, and steps that are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

import tiny_transformer as tiny  # noqa: E402

from model_store.infinitetalk.attention import Attention  # noqa: E402
from model_store.infinitetalk.guidance import APG_NORM, Branch, Guidance, Guide  # noqa: E402
from model_store.infinitetalk.sampler import Sampling, denoise, noise, timesteps  # noqa: E402
from model_store.infinitetalk.step_skipping import KeptBlocks, skipped_steps  # noqa: E402

SHAPE = (16, 5, 4, 6)


@dataclass(frozen=True)
class Made:
    """Forwards that predict what a function of latent and branch says."""

    make: Callable[[torch.Tensor, Branch], torch.Tensor]

    def begin(self, told: object, keeps: bool) -> None:
        pass

    def predict(
        self,
        latent: torch.Tensor,
        time: float,
        branches: Sequence[Branch],
        skip: bool,
        how: Attention,
        before: Callable[[], None],
    ) -> dict[Branch, torch.Tensor]:
        found = {}
        for branch in branches:
            before()
            found[branch] = self.make(latent, branch)
        return found


def test_times_fall_from_pure_noise_to_none_and_dwell_where_the_shift_says() -> None:
    assert timesteps(4, 1.0) == pytest.approx([1000, 667, 334, 1, 0])
    shifted = timesteps(4, 7.0)
    assert shifted == pytest.approx([1000 * 7 * u / (1 + 6 * u) for u in (1, 0.667, 0.334, 0.001, 0)])
    assert timesteps(1, 7.0) == [1000, 0]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_straight_flow_is_followed_to_its_end(steps: int) -> None:
    start, goal = noise(1, 0, SHAPE), noise(2, 0, SHAPE)
    given = goal[:, :1].clone()

    def predict(latent: torch.Tensor, _: Branch) -> torch.Tensor:
        assert torch.equal(latent[:, :1], given), "the clean beginning is not in the latent"
        flow = start - goal  # the prediction is noise minus video
        flow[:, :1] = 0
        return flow

    result = denoise(Made(predict), start, given, Sampling(steps, 3.0, Guidance(1, 1)))
    assert torch.allclose(result, goal, atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (Guidance(5, 4), lambda c, d, n, u: u + 5 * (c - d) + 4 * (d - u)),
        (Guidance(5, 1), lambda c, d, n, u: u + 5 * (c - d) + 1 * (d - u)),
        (Guidance(1, 2), lambda c, d, n, u: n + 2 * (c - n)),
        (Guidance(1, 1), lambda c, d, n, u: c),
    ],
)
def test_guidance_joins_as_many_forwards_as_it_needs(guidance: Guidance, wanted: object) -> None:
    values = {branch: noise(place, 7, SHAPE) for place, branch in enumerate(Branch)}
    asked: list[Branch] = []

    def predict(_: torch.Tensor, branch: Branch) -> torch.Tensor:
        asked.append(branch)
        return values[branch]

    start = noise(9, 0, SHAPE)
    result = denoise(Made(predict), start, start[:, :0], Sampling(1, 1.0, guidance))
    order = (Branch.FULL, Branch.NO_TEXT, Branch.NO_AUDIO, Branch.NOTHING)
    assert torch.allclose(start - result, wanted(*(values[branch] for branch in order)), atol=1e-4)  # type: ignore[operator]
    assert len(asked) == (3 if guidance.text != 1 else 2 if guidance.audio != 1 else 1)


def test_projected_guidance_is_square_to_the_prediction_and_bounded() -> None:
    full, other = noise(1, 0, SHAPE), 50 * noise(2, 0, SHAPE)
    change = Guide(Guidance(1, 2, apg=True)).join({Branch.FULL: full, Branch.NO_AUDIO: other}) - full
    for frame in range(SHAPE[1]):
        assert (change[:, frame] * full[:, frame]).sum().abs() < 1e-2 * change[:, frame].norm() * full[:, frame].norm()
        assert change[:, frame].norm() <= APG_NORM * 1.001
    plain = Guide(Guidance(1, 2)).join({Branch.FULL: full, Branch.NO_AUDIO: other}) - full
    assert plain.norm() > 3 * change.norm()


def test_projected_guidance_remembers_the_step_before() -> None:
    full, other = noise(1, 0, SHAPE), noise(2, 0, SHAPE)
    guide = Guide(Guidance(1, 2, apg=True))
    first, second = (guide.join({Branch.FULL: full, Branch.NO_AUDIO: other}) - full for _ in range(2))
    assert torch.allclose(second, 0.25 * first, atol=1e-4)  # 1 - 0.75 of the same difference


def test_noise_follows_from_seed_and_frame() -> None:
    assert torch.equal(noise(3, 72, SHAPE), noise(3, 72, SHAPE))
    assert not torch.equal(noise(3, 72, SHAPE), noise(4, 72, SHAPE))
    assert not torch.equal(noise(3, 72, SHAPE), noise(3, 144, SHAPE))
    assert noise(3, 72, (16, 21, 32, 32)).std().item() == pytest.approx(1, abs=0.01)


def test_what_the_listener_raises_stops_before_the_next_forward() -> None:
    forwards = 0

    def predict(latent: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal forwards
        forwards += 1
        return latent

    def stop(done: int) -> None:
        if done == 1 and forwards == 4:  # the second forward of the second step
            raise KeyboardInterrupt

    start = noise(0, 0, SHAPE)
    with pytest.raises(KeyboardInterrupt):
        denoise(Made(predict), start, start[:, :1], Sampling(9, 1.0, Guidance(5, 4)), stop)
    assert forwards == 4


def test_skipped_steps_follow_from_the_times_and_the_threshold() -> None:
    times = timesteps(40, 3.0)[:-1]

    def skipped(threshold: float) -> frozenset[int]:
        return skipped_steps(times, lambda time: torch.full((6, 4), 1 + 0.2 * time / 1000), "480", threshold)

    assert skipped(0.0) == frozenset()
    some, most = skipped(0.2), skipped(0.5)
    assert len(some) < len(most) < 35
    assert some
    assert min(most) >= 5
    restless = skipped_steps(times, lambda time: torch.full((6, 4), 1e3 / (time + 1)), "480", 0.2)
    assert len(restless) < len(some), "where the modulation changes much the blocks run"


def test_a_skipped_step_adds_what_the_blocks_added_before() -> None:
    model, given = tiny.transformer(), tiny.inputs()
    kept = KeptBlocks()
    ran = model(timestep=700.0, **given, kept=kept)
    assert torch.allclose(ran, model(timestep=700.0, **given), atol=1e-6)
    blocks = 0

    def count(index: int) -> None:
        nonlocal blocks
        blocks += 1

    model.before_block = count
    assert torch.allclose(model(timestep=700.0, **given, kept=kept, skip=True), ran, atol=1e-5)
    assert blocks == 0
    moved = given | {"latents": given["latents"] + 0.01}
    near = model(timestep=690.0, **moved, kept=kept, skip=True)
    assert 0 < tiny.relative_error(near, model(timestep=690.0, **moved)) < 0.5
