"""The speech encoder: transformers' own network with the interpolation in it, and windows for long speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_transformer as tiny  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from model_store.engine import ArraySpeech  # noqa: E402
from model_store.infinitetalk.speech_encoder import SpeechEncoder, load_speech_encoder  # noqa: E402

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
RATE = 16_000


def module() -> transformers.Wav2Vec2Model:
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(mask_time_prob=0.0, mask_feature_prob=0.0, **SIZES))
    tiny.seed_weights(model)
    return model.eval()


def speech(seconds: float, seed: int = 0) -> ArraySpeech:
    """Coloured noise with syllables and an offset, so that every normalisation matters."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(round(seconds * RATE)).cumsum()
    samples -= np.convolve(samples, np.full(400, 1 / 400), mode="same")
    loudness = 1 + np.sin(np.arange(len(samples)) / RATE * 2 * np.pi * 3)
    return ArraySpeech((0.02 * samples * loudness + 0.1).astype(np.float32))


def whole(model: transformers.Wav2Vec2Model, given: ArraySpeech) -> torch.Tensor:
    """The public pipeline in one pass over the whole recording."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    values = extractor(given.data, sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        features = model.feature_extractor(values)
        rows = int(len(given.data) / RATE * 25)
        features = torch.nn.functional.interpolate(features, size=rows, mode="linear", align_corners=True)
        hidden, _ = model.feature_projection(features.transpose(1, 2))
        states: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda _m, _i, out: states.append(out)) for layer in model.encoder.layers]
        model.encoder(hidden)
        for hook in hooks:
            hook.remove()
    return torch.stack([state[0] for state in states], dim=1)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.3])
def test_up_to_a_window_it_is_the_whole_pass(seconds: float) -> None:
    model, given = module(), speech(seconds)
    rows = SpeechEncoder(model).listen(given)
    assert len(rows) == int(seconds * 25)
    got = rows.rows(0, len(rows))
    assert got.shape == (len(rows), 12, 24)
    assert tiny.relative_error(got, whole(model, given)) < 1e-5


def test_before_the_transformer_long_speech_is_exact() -> None:
    """Normalisation, convolutions and interpolation of a stretch in the middle are those of the whole recording."""
    model, given = module(), speech(30)
    rows = SpeechEncoder(model, window=100, context=20).listen(given)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    with torch.no_grad():
        features = model.feature_extractor(extractor(given.data, sampling_rate=RATE, return_tensors="pt").input_values)
        wanted = torch.nn.functional.interpolate(features, size=len(rows), mode="linear", align_corners=True)[0].T
        got = rows._interpolated(300, 400)
    assert tiny.relative_error(got, wanted[300:400]) < 1e-5


def test_windows_stay_within_a_tenth_of_the_whole_pass() -> None:
    """With random weights attention reaches evenly over all the speech, the worst case for a window; it still stays close."""
    model, given = module(), speech(24)
    windowed = SpeechEncoder(model, window=300, context=50).listen(given)
    got, wanted = windowed.rows(0, len(windowed)), whole(model, given)
    assert tiny.relative_error(got, wanted) < 0.1
    seams = (got[1:] - got[:-1]).flatten(1).norm(dim=1)
    natural = (wanted[1:] - wanted[:-1]).flatten(1).norm(dim=1)
    assert seams.max() < 1.5 * natural.max()


def test_any_stretch_is_cut_from_the_same_rows() -> None:
    rows = SpeechEncoder(module(), window=60, context=10).listen(speech(12))
    everything = rows.rows(0, len(rows))
    for start, stop in ((0, 1), (49, 51), (50, 90), (130, 300), (299, 300)):
        assert torch.allclose(rows.rows(start, stop), everything[start:stop], atol=1e-5)


class Tone:
    """Speech that is made as it is read, and counts what was read."""

    def __init__(self, seconds: int) -> None:
        self.samples = seconds * RATE
        self.read_samples = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        self.read_samples += stop - start
        return (np.sin(np.arange(start, stop) * 0.05) * 0.3).astype(np.float32)


def cost(seconds: int) -> tuple[int, int, int]:
    """Samples read, rows through the transformer, and the most rows at once, when chunks of 81 frames that share 9 are made."""
    model, tone, seen = module(), Tone(seconds), []
    model.encoder.layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    rows = SpeechEncoder(model, window=250, context=25).listen(tone)
    for start in range(0, len(rows), 72):
        rows.rows(start, min(start + 81, len(rows)))
    return tone.read_samples, sum(seen), max(seen)


def test_four_times_the_speech_costs_four_times_as_much() -> None:
    read, rows, most = cost(30)
    read_4, rows_4, most_4 = cost(120)
    assert read_4 < 4.4 * read
    assert rows_4 < 4.4 * rows
    assert most == most_4 == 250
    assert rows_4 < 1.3 * 120 * 25


@pytest.mark.parametrize("samples", [0, 399, 639])
def test_less_than_a_frame_is_refused(samples: int) -> None:
    with pytest.raises(ValueError, match="less than one video frame"):
        SpeechEncoder(module()).listen(ArraySpeech(np.zeros(samples, np.float32)))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_the_public_files_load(tmp_path: Path, kind: str) -> None:
    model, given = module(), speech(1)
    published = {}
    for name, tensor in model.state_dict().items():
        old = name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        published[f"wav2vec2.{old}"] = tensor
    published |= {
        "quantizer.codevectors": torch.ones(1),
        "project_q.bias": torch.ones(1),
        "wav2vec2.masked_spec_embed": torch.ones(24),
    }
    (save_file if kind == "model.safetensors" else torch.save)(published, tmp_path / kind)
    loaded = load_speech_encoder([tmp_path / kind], sizes=SIZES).listen(given)
    assert torch.equal(loaded.rows(0, 25), SpeechEncoder(model).listen(given).rows(0, 25))
