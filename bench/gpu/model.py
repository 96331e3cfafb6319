"""The full-size transformer and the video autoencoder on this machine's GPU, with random weights, beside diffusers.

    python -m bench.gpu.model [--minutes 9] [--folder FOLDER] [--out FOLDER]

Measured are: loading from sharded bf16 files that the bench writes itself (time, host memory's peak); seconds a forward of
one 81-frame chunk at 480x832 and 720x1280 with one voice, two voices and none, by stage for one voice; peak GPU memory;
diffusers' Wan transformer at the same shapes, eager with its default SDPA and compiled; encoding and decoding a chunk.
A forward's time is the median of several after warm-up, inputs random. What does not fit into the minutes or the memory
is left out, with the reason in the table. The table is printed and written to ``bench/gpu/results/``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu import report

SIZES = {"480x832": (480, 832), "720x1280": (720, 1280)}
TIMESTEP = 700.0


def main() -> None:
    """Run every stage that fits."""
    parser = argparse.ArgumentParser(description="Bench of the full-size model.")
    parser.add_argument("--minutes", type=float, default=9.0, help="no stage is begun after this many")
    parser.add_argument("--folder", type=Path, default=None, help="where 38 GB of weight files are written and deleted again")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where the table is written")
    arguments = parser.parse_args()
    reason = report.obstacle()
    if reason is not None:
        print(f"bench-gpu skipped: {reason}")
        return
    bench = report.Report("model", arguments.out, arguments.minutes)
    table, stage = bench.table, bench.part
    ours: dict[str, float] = {}
    stage("autoencoder", lambda: _autoencoder(table))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        stage("transformer", lambda: _transformer(table, Path(scratch), ours, bench.deadline))
    stage("diffusers", lambda: _diffusers(table, ours, bench.deadline))


def _inputs(size: tuple[int, int], people: int) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    frames, height, width = 1 + (report.FRAMES - 1) // 4, size[0] // 8, size[1] // 8

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda")

    masks = torch.zeros(people + 1, height, width, device="cuda")
    for person in range(people):
        masks[person, :, person * width // people : (person + 1) * width // people - 4] = 1
    masks[-1] = 1 - masks[:-1].amax(0) if people else 1
    return {
        "latents": noise(16, frames, height, width),
        "timestep": TIMESTEP,
        "text": noise(120, 4096),
        "clip": noise(257, 1280),
        "condition": noise(20, frames, height, width),
        "audio": noise(people, report.FRAMES, 5, 12, 768) if people else None,
        "person_masks": masks if people > 1 else None,
    }


def _transformer(table: report.Table, folder: Path, ours: dict[str, float], deadline: float) -> None:
    import torch  # noqa: PLC0415

    from bench.gpu.stopwatch import stages  # noqa: PLC0415

    model = _loaded(table, folder)
    for name, shape in SIZES.items():
        runs = 5 if name == "480x832" else 3
        for label, people in (("one voice", 1), ("no audio", 0), ("two voices", 2)):
            if time.monotonic() > deadline:
                table.row(f"forward {name}, {label}", "not run", "no time left")
                continue
            given = _inputs(shape, people)
            torch.cuda.reset_peak_memory_stats()
            seconds = report.device_seconds(lambda g=given: model(**g), 2, runs)
            ours[f"{name}, {label}"] = seconds
            memory = torch.cuda.max_memory_allocated() / report.GIB
            table.row(f"**forward {name}, {label}**", f"**{seconds:.2f} s**", f"peak {memory:.1f} GiB with weights and kept keys")
            if people == 1:
                with stages(model) as by_stage:
                    whole = report.device_seconds(lambda g=given: model(**g), 0, 1) * 1000
                    parts = by_stage()
                parts["the rest: patches, time, head, gaps"] = whole - sum(parts.values())
                for part, milliseconds in sorted(parts.items(), key=lambda item: -item[1]):
                    table.row(
                        f"... {part}", f"{milliseconds:.0f} ms", f"{milliseconds / whole:.1%} of {whole:.0f} ms with the clocks"
                    )

    _in_eight_bits(table, model, ours, deadline)


def _loaded(table: report.Table, folder: Path) -> Any:
    """The transformer, from files that are written first; where they do not fit on the disk, made on the GPU."""
    import torch  # noqa: PLC0415

    from bench.gpu.engine import random_transformer  # noqa: PLC0415
    from bench.gpu.shards import write_shards  # noqa: PLC0415
    from model_store.infinitetalk.loading import load_transformer  # noqa: PLC0415
    from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig  # noqa: PLC0415

    config = TransformerConfig()
    with torch.device("meta"):
        size = sum(parameter.numel() * 2 for parameter in InfiniteTalkTransformer(config).parameters())
    free = shutil.disk_usage(folder).free
    if free < size * 1.02:
        note = f"{size / report.GIB:.0f} GiB are to be written and {free / report.GIB:.0f} are free: choose another --folder"
        table.row("load to the GPU", "not run", note)
        return random_transformer("whole")
    began = time.monotonic()
    files = write_shards(folder, config, 7)
    table.row("weights written", f"{size / 1e9:.1f} GB", f"{time.monotonic() - began:.0f} s, 7 files, not part of any result")

    torch.zeros(1, device="cuda")
    _reset_host_peak()
    before = report.host_bytes("VmRSS")
    began = time.monotonic()
    model = load_transformer(files, config, device="cuda")
    torch.cuda.synchronize()
    took = time.monotonic() - began
    peak = report.host_bytes("VmHWM") - before
    note = f"host memory's peak {peak / report.GIB:.1f} GiB ({peak / size:.3f} of the bf16 model), files in the page cache"
    table.row("load to the GPU", f"{took:.1f} s", note)
    for file in files:
        file.unlink()
    return model


def _in_eight_bits(table: report.Table, model: Any, ours: dict[str, float], deadline: float) -> None:
    """The quicker ways of computing, each beside the exact one of this run, in speed and in what it predicts."""
    import torch  # noqa: PLC0415

    from model_store.infinitetalk.attention import EXACT, Attention  # noqa: PLC0415
    from model_store.infinitetalk.loading import pack_blocks  # noqa: PLC0415

    given = {name: _inputs(size, 1) for name, size in SIZES.items()}
    exact = {name: model(**inputs) for name, inputs in given.items()}
    eight_bit = Attention(eight_bit=True)

    def measure(kind: str, how: Attention) -> None:
        for name, inputs in given.items():
            if time.monotonic() > deadline:
                table.row(f"forward {name}, {kind}", "not run", "no time left")
                continue
            error = ((model(**inputs, how=how) - exact[name]).norm() / exact[name].norm()).item()
            torch.cuda.reset_peak_memory_stats()
            seconds = report.device_seconds(lambda g=inputs: model(**g, how=how), 1, 3)
            times = ours[f"{name}, one voice"] / seconds if f"{name}, one voice" in ours else float("nan")
            memory = torch.cuda.max_memory_allocated() / report.GIB
            note = f"{times:.2f} times as fast as exact; its prediction differs by {error:.1%}; peak {memory:.1f} GiB"
            table.row(f"**forward {name}, {kind}**", f"**{seconds:.2f} s**", note)

    measure("attention in 8 bits", eight_bit)
    pack_blocks(model, "fp8" if torch.cuda.get_device_capability() >= (8, 9) else "int8")
    torch.cuda.empty_cache()
    model.multiply_in_eight_bits()
    measure("linear layers in 8 bits", EXACT)
    measure("linear layers and attention in 8 bits", eight_bit)


def _reset_host_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"host memory's peak counts from the start of the process: {error}", file=sys.stderr)


def _diffusers(table: report.Table, ours: dict[str, float], deadline: float) -> None:
    import torch  # noqa: PLC0415

    try:
        from diffusers import WanTransformer3DModel  # noqa: PLC0415
    except ImportError:
        table.row("diffusers", "not run", "diffusers is not installed")
        return
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120).eval()
    finally:
        torch.set_default_dtype(torch.float32)

    when = torch.tensor([TIMESTEP], device="cuda")

    def measure(kind: str, runs: int) -> None:
        for name, shape in SIZES.items():
            if time.monotonic() > deadline:
                table.row(f"diffusers {kind}, {name}", "not run", "no time left")
                continue
            given = _inputs(shape, 0)
            hidden = torch.cat([given["latents"], given["condition"]]).bfloat16()[None]
            text, clip = torch.randn(1, 512, 4096, device="cuda").bfloat16(), given["clip"].bfloat16()[None]

            def run(h: torch.Tensor = hidden, t: torch.Tensor = text, c: torch.Tensor = clip) -> None:
                with torch.no_grad():
                    model(h, when, t, c, return_dict=False)

            torch.cuda.reset_peak_memory_stats()
            seconds = report.device_seconds(run, 2, runs)
            mine = ours.get(f"{name}, no audio")
            note = f"peak {torch.cuda.max_memory_allocated() / report.GIB:.1f} GiB"
            if mine is not None:
                note += f"; ours without audio {mine:.2f} s is {seconds / mine:.2f} times as fast"
            table.row(f"diffusers {kind}, {name}", f"{seconds:.2f} s", note)

    measure("eager, SDPA", 3)
    model.compile_repeated_blocks()
    measure("compiled blocks, SDPA", 3)


def _autoencoder(table: report.Table) -> None:
    import torch  # noqa: PLC0415

    try:
        from diffusers import AutoencoderKLWan  # noqa: PLC0415
    except ImportError:
        table.row("autoencoder", "not run", "diffusers is not installed")
        return
    from model_store.infinitetalk.condition import reference_condition  # noqa: PLC0415
    from model_store.infinitetalk.vae import VideoAutoencoder  # noqa: PLC0415

    for dtype in (torch.float32, torch.bfloat16):
        vae = VideoAutoencoder(AutoencoderKLWan().to("cuda", dtype))
        kind = str(dtype).removeprefix("torch.")
        for name, (height, width) in SIZES.items():
            picture = torch.rand(3, height, width, device="cuda") * 2 - 1
            latent = torch.randn(16, 1 + (report.FRAMES - 1) // 4, height // 8, width // 8, device="cuda")
            for what, run in (
                ("encode", lambda v=vae, p=picture: reference_condition(v, p, report.FRAMES)),
                ("decode", lambda v=vae, z=latent: [None for _ in v.decode_stream(z)]),
            ):
                torch.cuda.reset_peak_memory_stats()
                seconds = report.device_seconds(run, 1, 2)
                table.row(
                    f"{what} {name}, {kind}", f"{seconds:.2f} s", f"peak {torch.cuda.max_memory_allocated() / report.GIB:.1f} GiB"
                )


if __name__ == "__main__":
    main()
