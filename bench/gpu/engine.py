"""Whole chunks of the engine at full size on this machine's GPU, with random weights, by stage and by memory mode.

    python -m bench.gpu.engine [--minutes 9] [--chunks 10] [--resolution 480|720] [--only PART]... [--out FOLDER]

Measured are, for each memory mode: the first chunk's preparation (words, picture, speech), seconds a chunk by stage (steps of
the transformer, encoding, decoding, colours, the rest: pixels to the host and to the output's size), the GPU's peak memory,
and for the offloaded mode the time that copying its blocks alone takes, so that the overlap shows; host memory over the
chunks; and beside them, in the same run, diffusers' transformer and autoencoder doing the same forwards and decoding.
Sampling is the 4-step variant's, with audio guidance (two forwards a step) and without (one). Clocks wait for the device
around every stage, so the sum is a little more than a chunk takes without them, which is measured too.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu import report

STEPS, SHIFT, AUDIO = 4, 2.0, 2.0
SIZES = {"480": (448, 896), "720": (704, 1280)}
SECONDS_A_CHUNK = 72 / 25
MODES = ("whole", "eight_bit", "fp8", "offload")
PARTS = (*MODES, "diffusers", "host-memory")


@dataclass(frozen=True)
class _Noise:
    """Speech made up as it is read."""

    samples: int

    def read(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (0.1 * np.sin(np.arange(start, stop) * 0.05)).astype(np.float32)


def main() -> None:
    """Run every part that fits."""
    parser = argparse.ArgumentParser(description="Bench of whole chunks.")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part is begun after this many")
    parser.add_argument("--chunks", type=int, default=10, help="chunks over which host memory is watched")
    parser.add_argument("--resolution", choices=SIZES, default="480")
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to run, one or more; all unless given")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where the table is written")
    arguments = parser.parse_args()
    reason = report.obstacle()
    if reason is not None:
        print(f"bench-gpu skipped: {reason}")
        return
    bench = report.Report("engine", arguments.out, arguments.minutes, arguments.resolution, arguments.only)
    table, size = bench.table, SIZES[arguments.resolution]
    # What most is asked about first: a run that is cut short has it.
    for mode in MODES:
        bench.part(mode, lambda m=mode: _mode(table, m, size))
    bench.part("diffusers", lambda: _diffusers(table, size))
    bench.part("host-memory", lambda: _host_memory(table, size, arguments.chunks, bench.deadline))


def random_transformer(mode: str) -> Any:
    """Random weights of the size that keeps activations near 1, kept as the mode says."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from model_store.infinitetalk import memory  # noqa: PLC0415
    from model_store.infinitetalk.loading import pack_blocks  # noqa: PLC0415
    from model_store.infinitetalk.offload import BlockOffload  # noqa: PLC0415
    from model_store.infinitetalk.transformer import InfiniteTalkTransformer  # noqa: PLC0415

    with torch.device("meta"):
        model = InfiniteTalkTransformer()
    device = "cpu" if mode == "offload" else "cuda"
    for module in list(model.modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            values = torch.randn(parameter.shape, dtype=torch.bfloat16, device="cuda")
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
            values = values * scale + (1 if parameter.ndim == 1 and leaf == "weight" else 0)
            module._parameters[leaf] = nn.Parameter(values.to(device), requires_grad=False)
    if mode in ("fp8", "eight_bit"):
        pack_blocks(model, "fp8" if torch.cuda.get_device_capability() >= (8, 9) else "int8")
    if mode == "eight_bit":
        model.multiply_in_eight_bits()
    if mode == "offload":
        choice = memory.choose(24 * 10**9, memory.needs(), len(model.blocks), "offload")
        BlockOffload(model, torch.device("cuda"), choice.resident)
    return model.eval()


def _parts(mode: str) -> Any:
    import torch  # noqa: PLC0415
    from diffusers import AutoencoderKLWan  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        CLIPVisionConfig,
        CLIPVisionModel,
        UMT5Config,
        UMT5EncoderModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    from model_store.infinitetalk import tiny_random  # noqa: PLC0415
    from model_store.infinitetalk.image_encoder import _VIT_H, ImageEncoder  # noqa: PLC0415
    from model_store.infinitetalk.parts import Parts  # noqa: PLC0415
    from model_store.infinitetalk.speech_encoder import SpeechEncoder  # noqa: PLC0415
    from model_store.infinitetalk.stream import Models  # noqa: PLC0415
    from model_store.infinitetalk.text_encoder import _XXL, TextEncoder  # noqa: PLC0415
    from model_store.infinitetalk.vae import VideoAutoencoder  # noqa: PLC0415

    def made(kind: Any, config: Any, dtype: torch.dtype) -> Any:
        torch.set_default_dtype(dtype)
        try:
            with torch.device("cuda"):
                return kind(config)
        finally:
            torch.set_default_dtype(torch.float32)

    models = Models(
        random_transformer(mode),
        VideoAutoencoder(AutoencoderKLWan().to("cuda")),
        ImageEncoder(made(CLIPVisionModel, CLIPVisionConfig(**_VIT_H), torch.bfloat16)),
    )
    speech = made(Wav2Vec2Model, Wav2Vec2Config(mask_time_prob=0.0, mask_feature_prob=0.0), torch.float32)

    def text() -> TextEncoder:
        tokenizer = tiny_random.text_encoder()._tokenizer
        return TextEncoder(made(UMT5EncoderModel, UMT5Config(**_XXL), torch.bfloat16), tokenizer)

    return Parts(mode, models, SpeechEncoder(speech), text)


@contextmanager
def _clocks(models: Any) -> Iterator[dict[str, float]]:
    """Seconds by stage while the block runs; the device is waited for around each."""
    import torch  # noqa: PLC0415

    from model_store.infinitetalk.colour import ColourCorrection  # noqa: PLC0415

    spent: dict[str, float] = defaultdict(float)

    def timed(stage: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.synchronize()
            began = time.monotonic()
            result = act(*args, **kwargs)
            torch.cuda.synchronize()
            spent[stage] += time.monotonic() - began
            return result

        return call

    vae, transformer, correction = models.vae, models.transformer, ColourCorrection
    group, encode, forward, apply = vae._decode_group, vae.encode, transformer.forward, correction.apply
    vae._decode_group, vae.encode = timed("decoding", group), timed("encoding", encode)
    transformer.forward = timed("steps of the transformer", forward)
    correction.apply = timed("colours", apply)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        del vae._decode_group, vae.encode, transformer.forward
        correction.apply = apply  # type: ignore[method-assign]


def _frames(chunks: int) -> int:
    return 81 + 72 * (chunks - 1)


def _stream(parts: Any, words: Any, rows: Any, size: tuple[int, int], chunks: int, audio: float, how: Any) -> Iterator[Any]:
    """So many chunks of a take, computed as they are asked for."""
    from model_store.engine import Plan  # noqa: PLC0415
    from model_store.infinitetalk.guidance import Guidance  # noqa: PLC0415
    from model_store.infinitetalk.sampler import Sampling  # noqa: PLC0415
    from model_store.infinitetalk.stream import Loop, Script, State  # noqa: PLC0415

    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    script = Script(words[0], words[1], rows, lambda _: photo, False, 0)
    plan = Plan(size[1], size[0], _frames(chunks), 72, 81)
    sampling = Sampling(STEPS, SHIFT, Guidance(1.0, audio), attention=how)
    return Loop(parts.models, script, plan, sampling).run(0, State(), lambda *_: None)


def _random_words() -> list[Any]:
    import torch  # noqa: PLC0415

    return [torch.randn(100, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2)]


def _mode(table: report.Table, mode: str, size: tuple[int, int]) -> None:
    import torch  # noqa: PLC0415

    from model_store.infinitetalk.attention import EXACT, Attention  # noqa: PLC0415
    from model_store.infinitetalk.options import DEFAULT_NEGATIVE_PROMPT, DEFAULT_PROMPT  # noqa: PLC0415

    parts = _parts(mode)
    table.row(f"**{mode}**", "", f"weights and encoders take {torch.cuda.memory_allocated() / report.GIB:.1f} GiB of the GPU")
    chunks = 3
    frames = _frames(chunks)

    def clock(what: str, act: Callable[[], Any]) -> Any:
        torch.cuda.synchronize()
        began = time.monotonic()
        result = act()
        torch.cuda.synchronize()
        table.row(f"{mode}: {what}", f"{time.monotonic() - began:.2f} s")
        return result

    if mode == "whole":
        parts._text = parts._load_text()
        words = clock("words, two prompts", lambda: [parts.words(text) for text in (DEFAULT_PROMPT, DEFAULT_NEGATIVE_PROMPT)])
        parts._text = None
        gc.collect()
        torch.cuda.empty_cache()
        rows = clock(f"speech, {frames / 25:.0f} s listened to", lambda: parts.speech.listen(_Noise(frames * 640)))
    else:
        words, rows = _random_words(), parts.speech.listen(_Noise(frames * 640))
    ways = [("two forwards a step", AUDIO, EXACT), ("one forward a step", 1.0, EXACT)]
    if mode == "eight_bit":
        ways += [(f"{label}, attention in 8 bits", audio, Attention(eight_bit=True)) for label, audio, _ in ways]
    for label, audio, how in ways:
        torch.cuda.reset_peak_memory_stats()
        stream = _stream(parts, words, rows, size, chunks, audio, how)
        clock(f"first chunk with its preparation, {label}", lambda s=stream: next(s))
        began = time.monotonic()
        next(stream)
        torch.cuda.synchronize()
        took = time.monotonic() - began
        peak = torch.cuda.max_memory_allocated() / report.GIB
        note = f"{STEPS} steps, {took / SECONDS_A_CHUNK:.1f} times the length of its 2.88 s; peak {peak:.1f} GiB"
        table.row(f"**{mode}: a chunk, {label}**", f"**{took:.2f} s**", note)
        with _clocks(parts.models) as spent:
            began = time.monotonic()
            next(stream)
            torch.cuda.synchronize()
            whole = time.monotonic() - began
        spent["the rest: pixels, noise, speech windows"] = whole - sum(spent.values())
        for stage, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            table.row(f"... {stage}", f"{seconds:.2f} s", f"{seconds / whole:.1%} of {whole:.2f} s with the clocks")
    if mode == "offload":
        _copies(table, parts.models.transformer)


def _host_memory(table: report.Table, size: tuple[int, int], chunks: int, deadline: float) -> None:
    """What a long take leaves behind in host memory, chunk by chunk."""
    from model_store.infinitetalk.attention import EXACT  # noqa: PLC0415

    parts = _parts("whole")
    rows = parts.speech.listen(_Noise(_frames(chunks) * 640))
    seen: list[float] = []
    for _ in _stream(parts, _random_words(), rows, size, chunks, 1.0, EXACT):
        if time.monotonic() > deadline:
            break
        seen.append(report.host_bytes("VmRSS") / report.GIB)
    if len(seen) > 1:
        note = f"{seen[0]:.2f} GiB after the first, {seen[-1]:.2f} after the last, at most {max(seen):.2f}"
        table.row(f"host memory over {len(seen)} chunks", f"{seen[-1] - seen[0]:+.3f} GiB", note)


def _copies(table: report.Table, transformer: Any) -> None:
    """What bringing every visiting block in costs without anything to compute meanwhile."""
    import torch  # noqa: PLC0415

    offload = transformer.before_block.__self__
    size = sum(len(stretch) for stretch in offload._host.values())

    def copy_all() -> None:
        for stretch in offload._host.values():
            offload._slots[0][: len(stretch)].copy_(stretch, non_blocking=True)

    seconds = report.device_seconds(copy_all, 1, 3)
    torch.cuda.synchronize()
    note = f"{size / 1e9:.1f} GB in {len(offload._host)} blocks, {size / 1e9 / seconds:.0f} GB/s; hidden behind each forward"
    table.row("offload: copying the visiting blocks alone", f"{seconds:.2f} s", note)


def _diffusers(table: report.Table, size: tuple[int, int]) -> None:
    shape = (21, size[0] // 8, size[1] // 8)
    table.row(f"diffusers: {STEPS} forwards, no audio", *_diffusers_transformer(shape))
    gc.collect()
    table.row("diffusers: decoding", *_diffusers_autoencoder(shape))


def _diffusers_transformer(shape: tuple[int, int, int]) -> tuple[str, str]:
    import torch  # noqa: PLC0415
    from diffusers import WanTransformer3DModel  # noqa: PLC0415

    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    hidden, text, clip = (
        torch.randn(1, *one, device="cuda", dtype=torch.bfloat16) for one in ((36, *shape), (512, 4096), (257, 1280))
    )

    @torch.no_grad()
    def run() -> None:
        model(hidden, torch.tensor([700.0], device="cuda"), text, clip, return_dict=False)

    return f"{STEPS * report.device_seconds(run, 1, 3):.2f} s", "WanTransformer3DModel, eager, SDPA"


def _diffusers_autoencoder(shape: tuple[int, int, int]) -> tuple[str, str]:
    import torch  # noqa: PLC0415
    from diffusers import AutoencoderKLWan  # noqa: PLC0415

    vae = AutoencoderKLWan().to("cuda").eval()
    latent = torch.randn(1, 16, *shape, device="cuda")
    with torch.no_grad():
        return f"{report.device_seconds(lambda: vae.decode(latent, return_dict=False), 1, 2):.2f} s", "AutoencoderKLWan, fp32"


if __name__ == "__main__":
    main()
