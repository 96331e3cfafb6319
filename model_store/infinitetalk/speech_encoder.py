"""Speech to vectors, 25 a second: wav2vec 2.0 (arXiv:2006.11477) with its features brought to the video's rate.

The whole recording is normalised, turned into convolution features (50 a second) and interpolated to 25 rows a second;
only then come projection and transformer. All but the transformer is computed exactly for any stretch of any length:
normalisation and the first layer's group norm need the whole recording, so their sums are taken in a first pass over it.
The transformer sees up to :data:`WINDOW` rows at once; longer speech goes through it in windows that overlap, so cost is
linear in length and memory is flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from model_store.engine import FPS, SPEECH_RATE, Speech
from model_store.infinitetalk import names
from model_store.infinitetalk.loading import fill
from model_store.infinitetalk.tensor_files import open_tensor_file

WINDOW = 3000
"""Rows that the transformer sees at once: two minutes. Up to this length nothing is approximated."""

CONTEXT = 250
"""Rows at each inner edge of a window that are computed and dropped: ten seconds; the position convolution sees 2.5."""

_BLOCK = 10 * SPEECH_RATE  # samples read at a time in the first pass
_FEATURES_AT_ONCE = 1000  # through the convolutions; the first one's output is 64 times as large
_VARIANCE_FLOOR = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


class SpeechEncoder:
    """The encoder.

    Args:
        model: transformers' module with its weights (the base kind, whose first convolution has a group norm).
        window, context: see :data:`WINDOW` and :data:`CONTEXT`, in rows.
    """

    def __init__(self, model: Wav2Vec2Model, window: int = WINDOW, context: int = CONTEXT) -> None:
        self._model: Any = model.eval().requires_grad_(False)
        self._window, self._context = window, context
        config = model.config
        self._kernels = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._stride = int(np.prod(config.conv_stride))
        self._reach = 1  # samples that one feature sees
        for kernel, stride in reversed(self._kernels):
            self._reach = (self._reach - 1) * stride + kernel

    def listen(self, speech: Speech) -> SpeechRows:
        """Take in the recording's sums, so that any stretch of rows can be asked for.

        Raises:
            ValueError: shorter than one row, 40 ms.
        """
        return SpeechRows(self, speech)

    def features(self, samples: int) -> int:
        """Number of convolution features of a recording."""
        for kernel, stride in self._kernels:
            samples = (samples - kernel) // stride + 1
        return samples


class SpeechRows:
    """The rows of one recording, made on demand; the latest windows are kept. Made by :meth:`SpeechEncoder.listen`."""

    def __init__(self, encoder: SpeechEncoder, speech: Speech) -> None:
        self._encoder, self._speech = encoder, speech
        self._features = encoder.features(speech.samples)
        self._rows = speech.samples * FPS // SPEECH_RATE
        if self._rows < 1 or self._features < 1:
            raise ValueError(f"{speech.samples} samples of speech are less than one video frame")
        self._mean, self._scale = self._sample_sums()
        self._channel_mean, self._channel_scale = self._channel_sums()
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of rows: whole 25ths of a second."""
        return self._rows

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start..stop``, each the outputs of the 12 transformer layers: float32 ``[stop - start, 12, 768]``."""
        if not 0 <= start < stop <= self._rows:
            raise ValueError(f"rows {start}..{stop} are not within 0..{self._rows}")
        parts = []
        position = start
        while position < stop:
            index = self._window_of(position)
            first, last = self._span(index)
            keep_from, keep_to = self._kept_span(index)
            window = self._window(index, first, last)
            until = min(stop, keep_to)
            assert keep_from <= position < until
            parts.append(window[position - first : until - first])
            position = until
        return torch.cat(parts)

    # Windows: all but the first and last give their middle, `step` rows; the outermost also give their outer context.

    def _step(self) -> int:
        return self._encoder._window - 2 * self._encoder._context

    def _count(self) -> int:
        beyond = self._rows - self._encoder._window
        return 1 if beyond <= 0 else 1 + -(-beyond // self._step())

    def _span(self, index: int) -> tuple[int, int]:
        first = index * self._step()
        return first, min(first + self._encoder._window, self._rows)

    def _kept_span(self, index: int) -> tuple[int, int]:
        first, last = self._span(index)
        context = self._encoder._context
        return first + (context if index else 0), last - (context if index < self._count() - 1 else 0)

    def _window_of(self, row: int) -> int:
        index = max(0, (row - self._encoder._context) // self._step())
        return min(index, self._count() - 1)

    def _window(self, index: int, first: int, last: int) -> Tensor:
        if index not in self._kept:
            # Two are kept: a chunk may straddle two windows, and the next chunk begins before this one's end.
            self._kept = {kept: window for kept, window in self._kept.items() if kept == index - 1}
            self._kept[index] = self._transform(self._interpolated(first, last))
        return self._kept[index]

    def _transform(self, features: Tensor) -> Tensor:
        """Convolution features at the video's rate [R, 512] -> the outputs of every layer [R, 12, 768]."""
        model = self._encoder._model
        hidden, _ = model.feature_projection(features.unsqueeze(0))
        hidden = model.encoder.layer_norm(hidden + model.encoder.pos_conv_embed(hidden))
        outputs = []
        for layer in model.encoder.layers:
            hidden = layer(hidden)
            outputs.append(hidden[0])
        return torch.stack(outputs, dim=1).float()

    def _interpolated(self, first: int, last: int) -> Tensor:
        """Features of rows first..last [last - first, 512]: linear between the ends of the recording, as torch's
        ``interpolate(mode="linear", align_corners=True)`` over all rows would give, in its float32 arithmetic."""
        device = self._encoder._model.device
        scale = torch.tensor((self._features - 1) / (self._rows - 1) if self._rows > 1 else 0.0, dtype=torch.float32)
        positions = torch.arange(first, last, dtype=torch.float32) * scale
        lower = positions.long().clamp(max=self._features - 1)
        upper = (lower + 1).clamp(max=self._features - 1)
        weight = (positions - lower).to(device).unsqueeze(1)
        start = int(lower[0])
        features = self._convolved(start, int(upper[-1]) + 1)
        return features[(lower - start).to(device)] * (1 - weight) + features[(upper - start).to(device)] * weight

    def _convolved(self, start: int, stop: int) -> Tensor:
        """Features start..stop of the whole recording, exactly: [stop - start, 512]."""
        pieces = [self._convolved_piece(start + a, start + b) for a, b in self._blocks(stop - start, _FEATURES_AT_ONCE)]
        return torch.cat(pieces)

    def _convolved_piece(self, start: int, stop: int) -> Tensor:
        encoder = self._encoder
        samples = self._samples(start * encoder._stride, (stop - 1) * encoder._stride + encoder._reach)
        layers = encoder._model.feature_extractor.conv_layers
        hidden = layers[0].conv(samples.view(1, 1, -1))
        norm = layers[0].layer_norm
        scale = self._channel_scale * norm.weight.unsqueeze(1)
        hidden = layers[0].activation((hidden - self._channel_mean) * scale + norm.bias.unsqueeze(1))
        for layer in layers[1:]:
            hidden = layer(hidden)
        return hidden[0].transpose(0, 1)

    def _samples(self, start: int, stop: int) -> Tensor:
        """Normalised samples on the model's device."""
        raw = (self._speech.read(start, stop).astype(np.float64) - self._mean) * self._scale
        return torch.from_numpy(raw.astype(np.float32)).to(self._encoder._model.device, self._encoder._model.dtype)

    def _blocks(self, length: int, size: int) -> Iterator[tuple[int, int]]:
        for start in range(0, length, size):
            yield start, min(start + size, length)

    def _sample_sums(self) -> tuple[float, float]:
        total = squares = 0.0
        for start, stop in self._blocks(self._speech.samples, _BLOCK):
            block = self._speech.read(start, stop).astype(np.float64)
            total += float(block.sum())
            squares += float((block * block).sum())
        mean = total / self._speech.samples
        variance = max(0.0, squares / self._speech.samples - mean * mean)
        return mean, float((variance + _VARIANCE_FLOOR) ** -0.5)

    @torch.no_grad()
    def _channel_sums(self) -> tuple[Tensor, Tensor]:
        """Mean and 1 / deviation of every channel of the first convolution over the whole recording, each [512, 1]."""
        layer = self._encoder._model.feature_extractor.conv_layers[0]
        kernel, stride = self._encoder._kernels[0]
        length = (self._speech.samples - kernel) // stride + 1
        total = squares = torch.zeros((), dtype=torch.float64)
        for start, stop in self._blocks(length, _BLOCK // stride):
            block = layer.conv(self._samples(start * stride, (stop - 1) * stride + kernel).view(1, 1, -1))[0].double()
            total = total + block.sum(1, keepdim=True).cpu()
            squares = squares + block.square().sum(1, keepdim=True).cpu()
        mean = total / length
        scale = (squares / length - mean.square() + layer.layer_norm.eps).rsqrt()
        model = self._encoder._model
        return mean.to(model.device, model.dtype), scale.to(model.device, model.dtype)


def load_speech_encoder(
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    sizes: dict[str, Any] | None = None,
) -> SpeechEncoder:
    """The speech encoder with its weights.

    Args:
        files: ``model.safetensors`` or ``pytorch_model.bin`` of TencentGameMate/chinese-wav2vec2-base.
        dtype: of the weights; the public model is used in float32.
        device: where the weights are placed.
        sizes: fields of ``Wav2Vec2Config`` for a model of other sizes than the public one.

    Raises:
        InfiniteTalkError: see ``loading.fill``.
    """
    # Without masking, which is for training, the module has no mask vector; the rest of the defaults are the base model's.
    config = Wav2Vec2Config(**({"mask_time_prob": 0.0, "mask_feature_prob": 0.0} | (sizes or {})))
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    fill(model, [open_tensor_file(path) for path in files], names.speech_tensor, dtype=dtype, device=device)
    return SpeechEncoder(model)
