"""The video autoencoder: diffusers' result, streamed, tiled, and from both public layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import tiny_transformer as tiny  # noqa: E402
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from model_store.infinitetalk import memory  # noqa: E402
from model_store.infinitetalk.condition import reference_condition  # noqa: E402
from model_store.infinitetalk.names import vae_tensor  # noqa: E402
from model_store.infinitetalk.vae import VideoAutoencoder, load_vae  # noqa: E402

SIZES = {"base_dim": 8, "dim_mult": [1, 2, 2, 2]}


def module() -> diffusers.AutoencoderKLWan:
    model = diffusers.AutoencoderKLWan(**SIZES)
    tiny.seed_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    return VideoAutoencoder(module())


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.rand(3, 13, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1


def statistics(model: diffusers.AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (-1, 1, 1, 1)
    return torch.tensor(model.config.latents_mean).view(shape), torch.tensor(model.config.latents_std).view(shape)


def test_encode_is_the_normalised_mode_of_diffusers(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    model = module()
    mean, std = statistics(model)
    with torch.no_grad():
        wanted = (model.encode(video[None]).latent_dist.mode()[0] - mean) / std
    got = vae.encode(video)
    assert got.shape == (16, 4, 4, 6)
    assert tiny.relative_error(got, wanted) < 1e-5


def test_decode_is_that_of_diffusers(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    model, latent = module(), vae.encode(video)
    mean, std = statistics(model)
    with torch.no_grad():
        wanted = model.decode((latent * std + mean)[None]).sample[0]
    got = vae.decode(latent)
    assert got.shape == video.shape
    assert tiny.relative_error(got, wanted) < 1e-5


def test_frames_come_as_soon_as_their_latent_frame_is_decoded(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    latent = vae.encode(video)
    stream = vae.decode_stream(latent)
    first = next(stream)
    assert [first.shape[1], *(group.shape[1] for group in stream)] == [1, 4, 4, 4]
    # Causal: what comes later in the latent cannot have taken part in what was handed on.
    changed = latent.clone()
    changed[:, 2:] = 0
    before, after = vae.decode(latent), vae.decode(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_one_frame(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    latent = vae.encode(video[:, :1])
    assert latent.shape == (16, 1, 4, 6)
    assert torch.equal(latent, vae.encode(video)[:, :1])
    assert vae.decode(latent).shape == (3, 1, 32, 48)


def test_frames_that_fill_no_group_are_refused(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="4n"):
        vae.encode(video[:, :12])


def test_tiles_are_blended_to_nearly_the_same_picture(vae: VideoAutoencoder) -> None:
    video = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 4, 5) * 2 - 1, size=(5, 64, 80), mode="trilinear")[0]
    latent = vae.encode(video)
    whole = vae.decode(latent)
    tiled = vae.decode_tiled(latent, tile=48, overlap=24)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.05 * whole.std()
    assert torch.equal(vae.decode(latent), whole)
    encoded = vae.encode_tiled(video, tile=48, overlap=24)
    assert encoded.shape == latent.shape
    assert tiny.relative_error(encoded, latent) < 0.2
    assert torch.equal(vae.encode(video), latent)


@pytest.mark.parametrize(("spare", "whole"), [(0, True), (-1, False)])
def test_a_picture_beyond_the_room_is_worked_on_in_tiles_from_the_start(
    video: torch.Tensor, spare: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else lies in memory, so that a resumed job makes the same frames."""
    latent = VideoAutoencoder(module()).encode(video)
    bounded = VideoAutoencoder(module(), memory.picture_bytes(*video.shape[2:]) + spare)
    in_groups: list[str] = []

    def watched(name: str) -> None:
        act = getattr(bounded, name)
        monkeypatch.setattr(bounded, name, lambda *given: (in_groups.append(name), act(*given))[1])

    watched("_decode_group")
    watched("encode_stream")
    assert tiny.relative_error(bounded.encode(video), latent) < 1e-5  # smaller than a tile, so the same
    assert [part.shape[1] for part in bounded.decode_stream(latent)] == [1, 4, 4, 4]
    assert bool(in_groups) is whole


def test_cudnn_that_finds_no_engine_has_no_memory(
    vae: VideoAutoencoder, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = vae.encode(video)
    wanted = vae.decode(latent)

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError(said)

    monkeypatch.setattr(vae, "_decode_group", fail)
    monkeypatch.setattr(vae, "encode_stream", fail)
    said = "GET was unable to find an engine to execute this computation"
    assert tiny.relative_error(vae.decode(latent), wanted) < 1e-5
    assert tiny.relative_error(vae.encode(video), latent) < 1e-5
    said = "another fault"
    with pytest.raises(RuntimeError, match="another fault"):
        vae.decode(latent)
    with pytest.raises(RuntimeError, match="another fault"):
        vae.encode(video)


def test_short_memory_goes_on_in_tiles(vae: VideoAutoencoder, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    latent, calls = vae.encode(video), []
    wanted = vae.decode(latent)
    decode_group = vae._decode_group

    def short(part: torch.Tensor, memory: list[torch.Tensor | None]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return decode_group(part, memory)

    monkeypatch.setattr(vae, "_decode_group", short)
    groups = list(vae.decode_stream(latent))
    assert [group.shape[1] for group in groups] == [1, 4, 4, 4]
    assert tiny.relative_error(torch.cat(groups, dim=1), wanted) < 1e-5  # smaller than a tile, so the same


def test_encoding_in_short_memory_goes_on_in_tiles(
    vae: VideoAutoencoder, video: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = vae.encode(video)

    def short(_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(vae, "encode_stream", short)
    assert tiny.relative_error(vae.encode(video), wanted) < 1e-5


def test_the_condition_holds_the_mask_and_the_reference_before_grey(vae: VideoAutoencoder, video: torch.Tensor) -> None:
    condition = reference_condition(vae, video[:, 0], frames=13)
    assert condition.shape == (20, 4, 4, 6)
    assert condition[:4, 0].eq(1).all()
    assert condition[:4, 1:].eq(0).all()
    grey = torch.zeros_like(video)
    grey[:, 0] = video[:, 0]
    assert torch.equal(condition[4:], vae.encode(grey))


def authors_names() -> list[str]:
    """The 194 names of Wan2.1_VAE.pth, from the structure of the authors' code."""

    def convolution(name: str) -> list[str]:
        return [f"{name}.weight", f"{name}.bias"]

    def residual(name: str, widens: bool) -> list[str]:
        gammas = [f"{name}.residual.0.gamma", f"{name}.residual.3.gamma"]
        shortcut = convolution(f"{name}.shortcut") if widens else []
        return [*gammas, *convolution(f"{name}.residual.2"), *convolution(f"{name}.residual.6"), *shortcut]

    def attention(name: str) -> list[str]:
        return [f"{name}.norm.gamma", *convolution(f"{name}.to_qkv"), *convolution(f"{name}.proj")]

    found = convolution("conv1") + convolution("conv2")
    for half in ("encoder", "decoder"):
        found += [*convolution(f"{half}.conv1"), f"{half}.head.0.gamma", *convolution(f"{half}.head.2")]
        found += residual(f"{half}.middle.0", False) + attention(f"{half}.middle.1") + residual(f"{half}.middle.2", False)
    for place in range(11):  # two residual blocks and a downsampler for each of four stages, none after the last
        name = f"encoder.downsamples.{place}"
        if place % 3 == 2:
            found += convolution(f"{name}.resample.1") + (convolution(f"{name}.time_conv") if place > 2 else [])
        else:
            found += residual(name, widens=place in (3, 6))
    for place in range(15):  # three residual blocks and an upsampler
        name = f"decoder.upsamples.{place}"
        if place % 4 == 3:
            found += convolution(f"{name}.resample.1") + (convolution(f"{name}.time_conv") if place < 11 else [])
        else:
            found += residual(name, widens=place == 4)
    return found


def test_every_name_of_the_authors_file() -> None:
    found = authors_names()
    assert len(found) == len(set(found)) == 194
    with torch.device("meta"):
        wanted = diffusers.AutoencoderKLWan().state_dict().keys()
    assert {vae_tensor(name) for name in found} == set(wanted)
    assert all(vae_tensor(name) == name for name in wanted)
    converted = convert_wan_vae_to_diffusers({name: name for name in found})
    assert {vae_tensor(name): name for name in found} == converted


def test_both_layouts_load_to_the_same(tmp_path: Path, video: torch.Tensor, vae: VideoAutoencoder) -> None:
    sizes = {"base_dim": 8}  # the public shape, narrower
    model = diffusers.AutoencoderKLWan(**sizes)
    tiny.seed_weights(model)
    state = model.state_dict()
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save({name: state[vae_tensor(name)] for name in authors_names()}, tmp_path / "Wan2.1_VAE.pth")
    wanted = VideoAutoencoder(model).encode(video)
    for file in ("diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"):
        assert torch.equal(load_vae([tmp_path / file], sizes=sizes).encode(video), wanted), file
