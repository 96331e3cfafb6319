"""The whole forward written out slowly, in float64, from the model's published description: a second opinion.

It shares no code with the product: every norm, softmax, rotation and window is spelt out, token by token where that is
clearer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean(-1, keepdim=True).add(eps).sqrt()


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt() * weight


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """x [L, heads, 2n] as complex numbers times exp(i angles [L, n])."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[Lq, heads, d] -> [Lq, heads * d]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def forward(
    state: Mapping[str, Tensor],
    heads: int,
    latents: Tensor,
    timestep: float,
    text: Tensor,
    clip: Tensor,
    condition: Tensor,
    audio: Tensor,
    person_masks: Tensor,
) -> Tensor:
    w = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def affine(name: str, x: Tensor, eps: float) -> Tensor:
        return _layer_norm(x, eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    dim = w["head.modulation"].shape[-1]
    head_dim = dim // heads
    video = torch.cat([latents, condition]).double()
    _, frames, height, width = video.shape
    rows, columns = height // 2, width // 2
    per_frame = rows * columns

    # Tokens and their rotary angles.
    tokens, angles = [], []
    side = head_dim // 6
    along_time = head_dim // 2 - 2 * side
    for t in range(frames):
        for i in range(rows):
            for j in range(columns):
                patch = video[:, t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                tokens.append((w["patch_embedding.weight"][:, :, 0] * patch).sum((1, 2, 3)) + w["patch_embedding.bias"])
                angles.append(
                    [t * 1e4 ** (-p / along_time) for p in range(along_time)]
                    + [i * 1e4 ** (-p / side) for p in range(side)]
                    + [j * 1e4 ** (-p / side) for p in range(side)]
                )
    x, angle = torch.stack(tokens), torch.tensor(angles, dtype=torch.float64)

    # Time.
    half = w["time_embedding.0.weight"].shape[1] // 2
    phases = [timestep * 1e4 ** (-i / half) for i in range(half)]
    sinusoid = torch.tensor([math.cos(p) for p in phases] + [math.sin(p) for p in phases], dtype=torch.float64)
    e = linear("time_embedding.2", _silu(linear("time_embedding.0", sinusoid)))
    e0 = linear("time_projection.1", _silu(e)).reshape(6, dim)

    # Words, picture, speech.
    padded = torch.zeros(512, text.shape[1], dtype=torch.float64)
    padded[: len(text)] = text
    words = linear("text_embedding.2", _gelu_tanh(linear("text_embedding.0", padded)))
    picture = _gelu_erf(linear("img_emb.proj.1", affine("img_emb.proj.0", clip.double(), 1e-5)))
    picture = affine("img_emb.proj.4", linear("img_emb.proj.3", picture), 1e-5)
    voices = []
    width_of_token = w["audio_proj.norm.weight"].shape[0]
    for person in audio.double():
        each = []
        for t in range(frames):
            if t == 0:
                hidden = linear("audio_proj.proj1", person[0].flatten())
            else:
                f0 = 4 * t - 3
                heard = [person[f0][0], person[f0][1], person[f0][2], person[f0 + 1][2], person[f0 + 2][2]]
                heard += [person[f0 + 3][2], person[f0 + 3][3], person[f0 + 3][4]]
                hidden = linear("audio_proj.proj1_vf", torch.stack(heard).flatten())
            hidden = linear("audio_proj.proj2", hidden.clamp(min=0)).clamp(min=0)
            each.append(affine("audio_proj.norm", linear("audio_proj.proj3", hidden).reshape(-1, width_of_token), 1e-5))
        voices.append(torch.stack(each))
    people = len(voices)

    masks = person_masks[:, ::2, ::2].reshape(len(person_masks), -1).double()
    line = 1e4 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    for block in range(sum(name.endswith("self_attn.q.weight") for name in w)):
        b = f"blocks.{block}"
        m = w[f"{b}.modulation"][0] + e0
        h = _layer_norm(x, 1e-6) * (1 + m[1]) + m[0]
        q = _turn(_heads(_rms(linear(f"{b}.self_attn.q", h), w[f"{b}.self_attn.norm_q.weight"]), heads), angle)
        k = _turn(_heads(_rms(linear(f"{b}.self_attn.k", h), w[f"{b}.self_attn.norm_k.weight"]), heads), angle)
        y = linear(f"{b}.self_attn.o", _attend(q, k, _heads(linear(f"{b}.self_attn.v", h), heads)))
        x = x + y * m[2]

        h = affine(f"{b}.norm3", x, 1e-6)
        c = f"{b}.cross_attn"
        cross_q = _heads(_rms(linear(f"{c}.q", h), w[f"{c}.norm_q.weight"]), heads)
        text_k = _heads(_rms(linear(f"{c}.k", words), w[f"{c}.norm_k.weight"]), heads)
        image_k = _heads(_rms(linear(f"{c}.k_img", picture), w[f"{c}.norm_k_img.weight"]), heads)
        both = _attend(cross_q, text_k, _heads(linear(f"{c}.v", words), heads))
        both = both + _attend(cross_q, image_k, _heads(linear(f"{c}.v_img", picture), heads))
        x = x + linear(f"{c}.o", both)

        h = affine(f"{b}.norm_x", x, 1e-6)
        a = f"{b}.audio_cross_attn"
        audio_q = _heads(linear(f"{a}.q_linear", h), heads)
        if people > 1:
            scores = torch.einsum("qhd,khd->hqk", q, k[:per_frame]) / math.sqrt(head_dim)
            class_map = torch.stack([(scores.softmax(-1) * mask).sum(-1).mean(0) / mask.sum() for mask in masks])
            place = torch.empty(len(x), dtype=torch.float64)
            for n in range(len(x)):
                winner = int(class_map[:, n].argmax())
                if winner == people:
                    place[n] = 12
                else:
                    own = class_map[winner]
                    place[n] = 20 * winner + 4 * (own[n] - own.min()) / (own.max() - own.min())
            audio_q = _turn(audio_q, place[:, None] * line)
        heard_by_frame = []
        for t in range(frames):
            keys, values = [], []
            for person in range(people):
                kv = linear(f"{a}.kv_linear", voices[person][t])
                key = _heads(kv[:, :dim], heads)
                if people > 1:
                    key = _turn(key, (2 + 20 * person) * line.expand(len(kv), -1))
                keys.append(key)
                values.append(_heads(kv[:, dim:], heads))
            heard_by_frame.append(_attend(audio_q[t * per_frame : (t + 1) * per_frame], torch.cat(keys), torch.cat(values)))
        x = x + linear(f"{a}.proj", torch.cat(heard_by_frame))

        h = _layer_norm(x, 1e-6) * (1 + m[4]) + m[3]
        x = x + linear(f"{b}.ffn.2", _gelu_tanh(linear(f"{b}.ffn.0", h))) * m[5]

    shift, scale = w["head.modulation"][0] + e
    out = linear("head.head", _layer_norm(x, 1e-6) * (1 + scale) + shift)
    channels = out.shape[1] // 4
    result = torch.empty(channels, frames, height, width, dtype=torch.float64)
    for n, token in enumerate(out):
        t, place_in_frame = divmod(n, per_frame)
        i, j = divmod(place_in_frame, columns)
        result[:, t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = token.reshape(2, 2, channels).permute(2, 0, 1)
    return result
