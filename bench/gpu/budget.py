"""What a chunk of the infinitetalk engine must cost on an H200, computed from FLOPs and bytes; nothing here is measured.

    python -m bench.gpu.budget > docs/infinitetalk-speed.md

The work is counted, from the model's sizes and by torch's FLOP counter on tensors without content. How fast it is done is
assumed: :data:`RATES` says what, and why. ``make bench-gpu`` measures; where the two differ much, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model_store.infinitetalk.transformer import TransformerConfig

HEIGHT, WIDTH, LATENT_FRAMES, STEPS = 448, 896, 21, 4
NEW_SECONDS = 72 / 25

RATES: Mapping[str, tuple[float, str]] = {
    "GEMM, bf16": (700e12, "of 990 by the data sheet; cuBLAS on large products"),
    "GEMM, fp8": (1200e12, "of 1980; row-wise scales, quantised in the producer"),
    "attention, bf16": (620e12, "published for cuDNN and FlashAttention-3 at head size 128, on H100"),
    "attention, 8 bits": (650e12, "what plain Triton can be expected to reach: exp2 limits it as much as the products"),
    "attention over 769 keys": (400e12, "short rows; assumed"),
    "convolution, TF32": (180e12, "of 495; 96 to 384 channels fill the tensor cores badly; assumed"),
    "convolution, bf16": (330e12, "of 990; channels last; assumed"),
    "memory": (3.4e12, "bytes a second: 80% of 4.3e12, which was published as measured"),
}
"""Work a second -> why."""

SPARSITY = 1.6
"""How much faster self-attention is at half of its blocks: the bar that the sparse kernel is to reach."""


@dataclass(frozen=True)
class Forward:
    """Work of one forward: FLOPs of linear layers, self-attention, and text and image attention; bytes of everything else."""

    linear: float
    attention: float
    cross: float
    traffic: float


def forward(config: TransformerConfig | None = None) -> Forward:
    """One forward at 448 x 896 with text, picture and speech of one person; keys and values of these are remembered."""
    sizes = config or TransformerConfig()
    n, d, layers = LATENT_FRAMES * (HEIGHT // 16) * (WIDTH // 16), sizes.dim, sizes.num_layers
    products = 4 + 2 + 2  # self q, k, v, o; cross q, o; audio q, proj
    linear = 2 * n * d * (products * d + 2 * sizes.ffn_dim)
    keys = sizes.text_len + 257
    audio = 4 * n * sizes.audio_tokens * d
    one = 2 * n * d  # bytes of an activation in bf16
    # Norm and rotary of q and k read and write 4; the three joined residuals 4 each; audio attention and GELU (ffn wide) 2 each.
    traffic = one * (4 + 3 * 4 + 2) + 2 * 2 * n * sizes.ffn_dim
    return Forward(layers * linear, layers * 4 * n * n * d, layers * (4 * n * keys * d + audio), layers * traffic)


def autoencoder() -> tuple[float, float]:
    """FLOPs of decoding a chunk, and of encoding its last nine frames for the next."""
    import torch  # noqa: PLC0415
    from diffusers import AutoencoderKLWan  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with torch.device("meta"):
        model: Any = AutoencoderKLWan().eval()
        latent = torch.empty(1, 16, LATENT_FRAMES, HEIGHT // 8, WIDTH // 8)
        video = torch.empty(1, 3, 9, HEIGHT, WIDTH)

    def count(act: Callable[[], object]) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            act()
        return float(counter.get_total_flops())

    return count(lambda: model.decode(latent, return_dict=False)), count(lambda: model.encode(video))


@dataclass(frozen=True)
class Stage:
    """A way of computing, as good as the ones before it and one thing better."""

    name: str
    forwards: int
    gemm: str = "GEMM, bf16"
    attention: str = "attention, bf16"
    sparsity: float = 1.0
    convolution: str = "convolution, TF32"
    gpus: int = 1


WAY = (
    Stage("the 4-step variant as it is: bf16, two forwards a step", 8),
    Stage("... with linear layers in fp8", 8, "GEMM, fp8"),
    Stage("... and 8-bit self-attention over half of the blocks", 8, "GEMM, fp8", "attention, 8 bits", SPARSITY),
    Stage("... and the autoencoder in bf16", 8, "GEMM, fp8", "attention, 8 bits", SPARSITY, "convolution, bf16"),
    Stage("... and no audio guidance: one forward a step", 4, "GEMM, fp8", "attention, 8 bits", SPARSITY, "convolution, bf16"),
    Stage(
        "or, instead of the last, two GPUs, a branch each", 8, "GEMM, fp8", "attention, 8 bits", SPARSITY, "convolution, bf16", 2
    ),
    Stage("one forward a step in plain bf16", 4),
)
"""What is done for speed, one thing after another."""


def seconds(stage: Stage, work: Forward, decoding: float, encoding: float) -> dict[str, float]:
    """Seconds of a chunk by part."""
    rate = {name: value for name, (value, _) in RATES.items()}
    one = (
        work.linear / rate[stage.gemm]
        + work.attention / rate[stage.attention] / stage.sparsity
        + work.cross / rate["attention over 769 keys"]
        + work.traffic / rate["memory"]
    )
    pixels = 81 * HEIGHT * WIDTH * 3 * 4  # bytes of a chunk in fp32; colours read and write them about ten times
    return {
        "transformer": stage.forwards * one / stage.gpus,
        "decoding": decoding / rate[stage.convolution],
        "encoding": encoding / rate[stage.convolution],
        "colours": 20 * pixels / rate["memory"],
    }


def document() -> str:
    """The page, in Markdown."""
    work = forward()
    decoding, encoding = autoencoder()
    rate = {name: value for name, (value, _) in RATES.items()}
    parts = (
        ("linear layers", work.linear, "GEMM, bf16"),
        ("self-attention", work.attention, "attention, bf16"),
        ("text, image and audio attention", work.cross, "attention over 769 keys"),
    )
    forward_rows = [f"| {name} | {flops / 1e12:.0f} TFLOP | {at} | {flops / rate[at]:.2f} |" for name, flops, at in parts]
    traffic = (
        f"| norms, gates, rotary, GELU (fused) | {work.traffic / 1e9:.0f} GB | memory | {work.traffic / rate['memory']:.2f} |"
    )
    chunk_rows = []
    for stage in WAY:
        spent = seconds(stage, work, decoding, encoding)
        total = sum(spent.values())
        cells = " | ".join(f"{value:.2f} s ({value / total:.0%})" for value in spent.values())
        chunk_rows.append(f"| {stage.name} | {cells} | **{total:.1f} s** | {total / NEW_SECONDS:.1f} |")
    return _PAGE.format(
        width=WIDTH,
        height=HEIGHT,
        forward="\n".join([*forward_rows, traffic]),
        chunk="\n".join(chunk_rows),
        decoding=decoding / 1e12,
        encoding=encoding / 1e12,
        rates="\n".join(f"| {name} | {value / 1e12:g}e12 | {why} |" for name, (value, why) in RATES.items()),
    )


_PAGE = """# How fast a chunk can be

**Computed, not measured**: no GPU was at hand. `python -m bench.gpu.budget` counts the work and prints this page;
`make bench-gpu` measures on a GPU, by the same stages. The bar is 16 s for a chunk of the 4-step variant on one H200
(2.88 s of video at {width} x {height}), and from there a way to 9 s.

## One forward

| part | work | at | seconds |
|---|---|---|---|
{forward}

## A chunk

| | transformer | decoding | encoding | colours | **sum** | times its length |
|---|---|---|---|---|---|---|
{chunk}

Decoding is {decoding:.0f} TFLOP a chunk, encoding the nine frames that the next one goes on from {encoding:.0f}.
Picture, words and silence are looked at once a job, speech once a chunk; neither is counted, nor are the pixels on
their way to the host and to H.264, which go beside the next chunk.

What follows from it:

* In bf16 with audio guidance 16 s cannot be met on one GPU, whatever the kernels do: linear layers and self-attention
  alone take more. With fp8 and sparse attention it can, barely; without audio guidance (`audio_guidance` 1) it can at
  once.
* 9 s need one forward a step, or a second GPU for the second branch, which the engine uses by itself. Distilling the
  guidance would give the first without a loss.
* No stage outside the transformer comes to a quarter of the chunk in any row.
* The engine runs the first row by itself, the second with `INFINITETALK_MEMORY=eight_bit`, and the third with the options
  `eight_bit_attention` and `attention_keep` (0.5) besides. These are off unless asked for: what they do to a picture has to
  be seen with real weights first. The autoencoder works in fp32.

## What is assumed

| work | a second | why |
|---|---|---|
{rates}
"""
"""The page around the tables."""


if __name__ == "__main__":
    print(document(), end="")
