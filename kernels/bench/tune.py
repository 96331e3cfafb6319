"""``python -m kernels.bench.tune [--only TEXT]``: other launch settings beside the shipped ones, on the GPU at hand.

Each candidate is compiled first; what spills, or makes Hopper's matrix instructions wait for one another, is not timed. Of the
others the table gives the time and whether the result is as near to the truth as the shipped setting's, and names the quickest,
as it would stand in ``kernels.settings``. Without a GPU it tells what the compiler makes of every candidate, for all
architectures. Nothing is changed: a setting ships when somebody has read the table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass

import torch

from kernels import dispatch, settings
from kernels._triton import HAVE_TRITON
from kernels.bench.case import SHAPES, Case
from kernels.bench.cases import CASES
from kernels.bench.measure import accuracy, first_line, milliseconds
from kernels.bench.report import versions
from kernels.offline import recording
from kernels.settings import ARCHITECTURES, Architecture, Launch

# A candidate whose error is larger than the shipped setting's by more than this is not the same computation.
_ALLOWANCE = 1.05


@dataclass(frozen=True)
class Trial:
    """One candidate: what is wrong with it, its time, or neither where there is no GPU."""

    launch: Launch
    shipped: bool
    registers: int
    faults: tuple[str, ...]
    milliseconds: float | None = None


def _tiles(*sizes: tuple[int, int, int], stages: tuple[int, ...], tma: bool = False) -> list[Launch]:
    """Tiles of (rows, columns, warps), each with every depth of pipeline."""
    return [
        Launch(num_warps=warps, num_stages=depth, block_m=rows, block_n=columns, tma=tma)
        for (rows, columns, warps), depth in itertools.product(sizes, stages)
    ]


def _warps(*counts: int) -> list[Launch]:
    return [Launch(num_warps=count) for count in counts]


def _flash(architecture: Architecture) -> list[Launch]:
    if architecture == "sm_90":
        return _tiles((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), stages=(2, 3), tma=True)
    return _tiles((128, 32, 8), (128, 64, 8), (64, 32, 4), (64, 64, 4), stages=(2, 3))


def candidates(kernel: str, architecture: Architecture) -> list[Launch]:
    """What is worth trying for a kernel."""
    if kernel.startswith("flash"):
        return _flash(architecture)
    if kernel in ("layer_norm", "residual_gate_norm", "rms_rope", "quantise_qk"):
        return _warps(2, 4, 8)
    if kernel in ("quantise_rows", "block_means", "quantise_values", "sample"):
        return _warps(4, 8, 16)
    if kernel == "quantise_groups":
        return [Launch(num_warps=warps, block_n=groups) for warps, groups in itertools.product((4, 8), (8, 16, 32))]
    if kernel == "gelu_tanh":
        return [Launch(num_warps=warps, block_n=width) for warps, width in ((4, 1024), (4, 2048), (8, 4096))]
    if kernel == "framewise_attention":
        return _tiles((32, 64, 2), (64, 64, 4), (128, 64, 8), stages=(1, 2))
    if kernel == "int8_linear":
        sizes = itertools.product(((128, 128, 8), (128, 256, 8), (256, 128, 8)), (64, 128), (3, 4))
        return [
            Launch(num_warps=warps, num_stages=depth, block_m=rows, block_n=columns, block_k=inner)
            for (rows, columns, warps), inner, depth in sizes
        ]
    return _tiles((128, 32, 8), (128, 64, 8), (64, 64, 4), (64, 32, 4), stages=(2, 3))


CASE_OF = {
    "layer_norm": "LN + modulate",
    "residual_gate_norm": "gate + residual + LN + modulate",
    "rms_rope": "RMS norm + RoPE of q and k",
    "quantise_rows": "GELU -> int8",
    "quantise_qk": "RMS norm + RoPE of q and k -> int8",
    "quantise_groups": "RMS norm + RoPE of q and k -> int8",
    "sample": "RMS norm + RoPE of q and k -> int8",
    "quantise_values": "V -> fp8, transposed",
    "block_means": "means of blocks",
    "gelu_tanh": "GELU",
    "text_image_attention": "text + image attention",
    "framewise_attention": "audio attention, one person",
    "class_attention_map": "two-person map",
    "flash_16bit": "self-attention, Triton with log-sum-exp",
    "flash_8bit_16bit": "self-attention, int8 + bf16 values, with quantisation",
    "flash_8bit_fp8": "self-attention, int8 + fp8 values, with quantisation",
    "int8_linear": "linear 5120 -> 13824, int8",
}
"""The case that a kernel is timed in."""


def main() -> int:
    """Print a table for each kernel."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.tune", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains TEXT")
    arguments = parser.parse_args()
    if not HAVE_TRITON:
        print("Triton is not installed: nothing to try (pip install 'infinite-talk[gpu]')")
        return 1
    on_gpu = torch.cuda.is_available()
    own = dispatch.architecture(torch.empty(0, device="cuda")) if on_gpu else None
    print(f"# Settings tried {f'on {torch.cuda.get_device_name()}' if on_gpu else 'offline'}\n\n{versions()}")
    for kernel, name in CASE_OF.items():
        if arguments.only not in kernel:
            continue
        case = next(case for case in CASES if case.name == name)
        for architecture in ARCHITECTURES if own is None else (own,):
            if not isinstance(settings.launch_entry(kernel, architecture), settings.Unavailable):
                print("\n".join(_table(kernel, architecture, _try_all(kernel, architecture, case, on_gpu=on_gpu))), flush=True)
    return 0


def _try_all(kernel: str, architecture: Architecture, case: Case, *, on_gpu: bool) -> list[Trial]:
    shipped = settings.launch_settings(kernel, architecture)
    launches = [shipped, *(launch for launch in candidates(kernel, architecture) if launch != shipped)]
    trials = [_compile(kernel, architecture, case, launch, shipped=launch == shipped) for launch in launches]
    if on_gpu:
        trials = _time(kernel, architecture, case, trials)
    return trials


def _compile(kernel: str, architecture: Architecture, case: Case, launch: Launch, *, shipped: bool) -> Trial:
    built = case.build(SHAPES[0], "meta")
    with settings.replaced(kernel, architecture, launch), recording(architecture) as compiled:
        try:
            built.ours()
        except Exception as error:
            return Trial(launch, shipped, 0, (f"does not compile: {first_line(error)}",))
    faults = tuple(f"{one.kernel.strip('_')} {fault}" for one in compiled for fault in one.faults)
    return Trial(launch, shipped, max(one.registers for one in compiled), faults)


def _time(kernel: str, architecture: Architecture, case: Case, trials: list[Trial]) -> list[Trial]:
    timed: list[Trial] = []
    shipped_error = None
    for trial in trials:
        if trial.faults:
            timed.append(trial)
            continue
        faults: tuple[str, ...] = ()
        time = None
        try:
            with settings.replaced(kernel, architecture, trial.launch):
                error, time = _run(case)
        except Exception as failure:
            faults = (f"does not run: {first_line(failure)}",)
        else:
            shipped_error = error if trial.shipped else shipped_error
            if error is not None and shipped_error is not None and error > _ALLOWANCE * shipped_error:
                faults = (f"errs by {error:.2e}, the shipped setting by {shipped_error:.2e}",)
        timed.append(Trial(trial.launch, trial.shipped, trial.registers, faults, time))
    return timed


def _run(case: Case) -> tuple[float | None, float]:
    """Error, where the case has a truth, and milliseconds."""
    torch.manual_seed(0)
    built = case.build(SHAPES[0], "cuda")
    exact = built.exact() if built.exact is not None else None
    result = built.ours()
    error = None if exact is None or built.sample is None else accuracy(built.sample(result), exact).error
    del result
    return error, milliseconds(built.ours)


def _table(kernel: str, architecture: Architecture, trials: list[Trial]) -> list[str]:
    ordered = sorted(trials, key=lambda trial: (bool(trial.faults), trial.milliseconds or 0.0))
    lines = ["", f"## {kernel} on {architecture}", "", "| setting | registers | ms | |", "|---|---|---|---|"]
    for trial in ordered:
        time = "" if trial.milliseconds is None else f"{trial.milliseconds:.3f}"
        notes = [*(["shipped"] if trial.shipped else []), *trial.faults]
        lines.append(f"| {setting_text(trial.launch)} | {trial.registers} | {time} | {'; '.join(notes)} |")
    best = ordered[0]
    if best.milliseconds is not None and not best.faults:
        lines += ["", f'    "{architecture}": {setting_text(best.launch)},']
    return lines


def setting_text(launch: Launch) -> str:
    """A setting as it stands in ``kernels.settings``: what is not its default."""
    given = {"num_warps": launch.num_warps}
    default = Launch(num_warps=launch.num_warps)
    for name in ("num_stages", "block_m", "block_n", "block_k", "tma"):
        if getattr(launch, name) != getattr(default, name):
            given[name] = getattr(launch, name)
    return f"Launch({', '.join(f'{name}={value}' for name, value in given.items())})"


if __name__ == "__main__":
    sys.exit(main())
