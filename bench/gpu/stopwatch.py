"""Where a forward's time goes: device events around every product and every fused operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import model_store.infinitetalk.transformer as module

_OPERATIONS = {
    "attend": "self-attention",
    "eight_bit_attention": "self-attention",
    "eight_bit_values": "self-attention",
    "text_image_attention": "text and image attention",
    "framewise_attention": "audio attention",
    "class_attention_map": "person map",
    "layer_norm_modulate": "norms, gates, rotary",
    "modulated_norm": "norms, gates, rotary",
    "joined_norm": "norms, gates, rotary",
    "qk_norm_rope_": "norms, gates, rotary",
    "qk_norm_rope_quantised": "norms, gates, rotary",
    "rms_norm": "norms, gates, rotary",
    "rope_1d": "norms, gates, rotary",
    "rows": "activations to 8 bits",
    "activated": "GELU",
}
_LINEARS = {
    "self_attn": "self q, k, v, o",
    "cross_attn": "cross q, o",
    "audio_cross_attn": "audio q, proj",
    "ffn": "feed-forward",
}


@contextmanager
def stages(model: nn.Module) -> Iterator[Callable[[], dict[str, float]]]:
    """Within the block, calling the yielded function after a synchronised forward gives milliseconds by stage."""
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    def begin() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(stage: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = begin()
            result = operation(*args, **kwargs)
            events[stage].append((start, begin()))
            return result

        return call

    originals = {name: getattr(module, name) for name in _OPERATIONS}
    hooks = []
    open_events: list[torch.cuda.Event] = []
    for name, operation in originals.items():
        setattr(module, name, timed(_OPERATIONS[name], operation))
    for path, layer in model.named_modules():
        parts = path.split(".")
        if parts[0] == "blocks" and len(parts) == 4 and isinstance(layer, nn.Linear):
            stage = _LINEARS[parts[2]]
            hooks.append(layer.register_forward_pre_hook(lambda *_: open_events.append(begin())))
            hooks.append(layer.register_forward_hook(lambda *_, s=stage: events[s].append((open_events.pop(), begin()))))
    try:
        yield lambda: {stage: sum(start.elapsed_time(stop) for start, stop in pairs) for stage, pairs in events.items()}
    finally:
        for hook in hooks:
            hook.remove()
        for name, operation in originals.items():
            setattr(module, name, operation)
