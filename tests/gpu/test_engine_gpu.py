"""On a GPU: the streaming loop resumes exactly, and visiting blocks compute what resident ones do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from model_store.engine import ArraySpeech, Plan  # noqa: E402
from model_store.infinitetalk import tiny_random  # noqa: E402
from model_store.infinitetalk.guidance import Guidance  # noqa: E402
from model_store.infinitetalk.image_encoder import ImageEncoder  # noqa: E402
from model_store.infinitetalk.offload import BlockOffload  # noqa: E402
from model_store.infinitetalk.sampler import Sampling  # noqa: E402
from model_store.infinitetalk.speech_encoder import SpeechEncoder  # noqa: E402
from model_store.infinitetalk.state import state_from_bytes, state_to_bytes  # noqa: E402
from model_store.infinitetalk.stream import Loop, Models, Script, State  # noqa: E402
from model_store.infinitetalk.vae import VideoAutoencoder  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")]

PLAN = Plan(32, 32, 160, 72, 81)


def loop(resident: int | None = None) -> Loop:
    transformer = tiny_random.transformer()
    if resident is None:
        transformer.to("cuda")
    else:
        BlockOffload(transformer, torch.device("cuda"), resident)
    models = Models(
        transformer,
        VideoAutoencoder(tiny_random.vae()._model.to("cuda")),
        ImageEncoder(tiny_random.image_encoder()._model.to("cuda")),
    )
    text = tiny_random.text_encoder()
    rng = np.random.default_rng(0)
    speech = ArraySpeech((0.1 * rng.standard_normal(160 * 640)).astype(np.float32))
    photo = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rows = SpeechEncoder(tiny_random.speech_encoder()._model.to("cuda"), 400, 50).listen(speech)
    script = Script(text.embed("a person"), text.embed("noise"), rows, lambda _: photo, False, 1)
    return Loop(models, script, PLAN, Sampling(2, 2.0, Guidance(1.0, 2.0)))


def nothing(*_: int) -> None:
    pass


def test_a_stream_resumed_from_its_bytes_is_the_same() -> None:
    whole = list(loop().run(0, State(), nothing))
    state = state_from_bytes(state_to_bytes(whole[0][1], "tiny-random"), "tiny-random", (32, 32))
    rest = list(loop().run(1, state, nothing))
    for (frames, _), (wanted, _) in zip(rest, whole[1:], strict=True):
        # Kernels may add in another order; noise of one step of 255 is no seam.
        assert np.abs(frames.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("resident", [0, 1])
def test_visiting_blocks_compute_what_resident_ones_do(resident: int) -> None:
    for (frames, _), (wanted, _) in itertools.islice(
        zip(loop(resident).run(0, State(), nothing), loop().run(0, State(), nothing), strict=True), 2
    ):
        assert np.abs(frames.astype(int) - wanted.astype(int)).max() <= 1
