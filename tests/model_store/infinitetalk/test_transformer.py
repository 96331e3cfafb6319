"""The transformer gives what the public model gives: against diffusers without audio, against the written-out forward with it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

import naive_forward  # noqa: E402
import tiny_transformer as tiny  # noqa: E402

from model_store.infinitetalk.names import transformer_tensor  # noqa: E402
from model_store.infinitetalk.transformer import InfiniteTalkTransformer  # noqa: E402

TIMESTEP = 637.25


@pytest.mark.parametrize("people", [1, 2, 3])
def test_forward_with_audio_matches_the_description(people: int) -> None:
    model, given = tiny.transformer(), tiny.inputs(people)
    got = model(timestep=TIMESTEP, **given)
    wanted = naive_forward.forward(model.state_dict(), tiny.CONFIG.num_heads, timestep=TIMESTEP, **given)
    assert got.dtype == torch.float32
    assert tiny.relative_error(got, wanted) < 1e-6


def test_without_audio_it_is_the_image_to_video_model_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    reference = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=48, in_channels=36, out_channels=16, text_dim=40, freq_dim=64, ffn_dim=160,
        num_layers=3, image_dim=48, added_kv_proj_dim=96,
    ).eval()  # fmt: skip
    tiny.seed_weights(reference)
    model = InfiniteTalkTransformer(tiny.CONFIG)
    renamed = {transformer_tensor(name): tensor for name, tensor in reference.state_dict().items()}
    assert not model.load_state_dict(renamed, strict=False).unexpected_keys

    class ExactSinusoid(torch.nn.Module):  # diffusers' own is float32: 2.6e-6 off at this time step
        def forward(self, timestep: torch.Tensor) -> torch.Tensor:
            angles = timestep.double()[:, None] * 10_000 ** (-torch.arange(32, dtype=torch.float64) / 32)
            return torch.cat([angles.cos(), angles.sin()], dim=-1)

    reference.condition_embedder.timesteps_proj = ExactSinusoid()
    given = tiny.inputs()
    text = torch.zeros(1, 512, tiny.CONFIG.text_dim)
    text[0, : len(given["text"])] = given["text"]
    with torch.no_grad():
        wanted = reference(
            torch.cat([given["latents"], given["condition"]])[None], torch.tensor([TIMESTEP]), text, given["clip"][None],
            return_dict=False,
        )[0][0]  # fmt: skip
    got = model(given["latents"], TIMESTEP, given["text"], given["clip"], given["condition"])
    assert tiny.relative_error(got, wanted) < 1e-6


def test_bf16_stays_close_to_fp32() -> None:
    given = tiny.inputs(people=2)
    wanted = tiny.transformer()(timestep=TIMESTEP, **given)
    got = tiny.transformer().bfloat16()(timestep=TIMESTEP, **given)
    assert got.dtype == torch.float32
    assert tiny.relative_error(got, wanted) < 0.03


def test_silence_for_guidance_is_one_person_even_in_a_picture_of_two() -> None:
    model, given = tiny.transformer(), tiny.inputs(people=2)
    given["audio"] = torch.zeros_like(given["audio"][:1])
    with_masks = model(timestep=TIMESTEP, **given)
    without = model(timestep=TIMESTEP, **{**given, "person_masks": None})
    assert torch.equal(with_masks, without)


def test_one_voice_computes_no_person_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a map was computed")

    monkeypatch.setattr("model_store.infinitetalk.transformer.class_attention_map", refuse)
    tiny.transformer()(timestep=TIMESTEP, **tiny.inputs(people=1))
    with pytest.raises(AssertionError, match="a map was computed"):
        tiny.transformer()(timestep=TIMESTEP, **tiny.inputs(people=2))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("latents", (16, 5, 8, 11), "even"),
        ("condition", (20, 4, 8, 12), "condition"),
        ("text", (513, 40), "text"),
        ("clip", (257, 47), "clip"),
        ("audio", (1, 16, 5, 3, 10), "4n . 1"),
        ("audio", (1, 13, 5, 3, 10), "audio"),
        ("person_masks", (2, 8, 12), "person_masks"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    given = tiny.inputs(people=2)
    given[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        tiny.transformer()(timestep=TIMESTEP, **given)
