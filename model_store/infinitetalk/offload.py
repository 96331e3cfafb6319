"""Blocks of the transformer that live in host memory and visit the GPU, one computing while the next comes in.

Every such block is one pinned stretch of host memory; two places of the same layout on the GPU take turns. A block's copy
starts as soon as the block before it begins to compute, on a stream of its own, so it costs time only where the bus is slower
than the arithmetic. Blocks that fit stay on the GPU for good, spread evenly, so that the copies are too. On a CPU the same
code makes plain copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model_store.infinitetalk.transformer import InfiniteTalkTransformer

_ALIGNMENT = 256  # bytes, of every tensor in its stretch


class BlockOffload:
    """Moves a transformer's blocks in and out; it works as long as it is attached as ``before_block``.

    Args:
        model: on the CPU, with its weights; everything but the blocks goes to the device.
        device: where is computed.
        resident: how many blocks stay on the device.
    """

    def __init__(self, model: InfiniteTalkTransformer, device: torch.device, resident: int) -> None:
        self._device = device
        blocks = list(model.blocks)
        self._visiting = _spread(len(blocks), max(0, len(blocks) - resident))
        visiting = set(self._visiting)
        for name, child in model.named_children():
            if name != "blocks":
                child.to(device)
        self._host: dict[int, Tensor] = {}
        self._parameters: dict[int, list[nn.Parameter]] = {}
        for index, block in enumerate(blocks):
            if index in visiting:
                self._parameters[index] = self._pack(index, block)
            else:
                block.to(device)
        model.forget_contexts()
        size = max((len(stretch) for stretch in self._host.values()), default=0)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(2, len(self._visiting)))]
        self._held: list[int | None] = [None] * len(self._slots)
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._arrived = [torch.cuda.Event() if cuda else None for _ in self._slots]
        model.before_block = self.before_block

    def before_block(self, index: int) -> None:
        """Have a block's weights on the device for what is computed next, and the following block's on their way."""
        if index not in self._host:
            return
        slot = self._fetch(index, keep=None)
        arrived = self._arrived[slot]
        if arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)
        for parameter, part in zip(self._parameters[index], _parts(self._slots[slot], self._parameters[index]), strict=True):
            parameter.data = part
        place = self._visiting.index(index)
        self._fetch(self._visiting[(place + 1) % len(self._visiting)], keep=slot)

    def _fetch(self, index: int, keep: int | None) -> int:
        """Begin to copy a block into a place, unless it is there; the place."""
        if index in self._held:
            return self._held.index(index)
        slot = next((slot for slot in range(len(self._slots)) if slot != keep), 0)
        self._held[slot] = index
        if self._stream is None:
            self._slots[slot][: len(self._host[index])].copy_(self._host[index])
            return slot
        # What was computed so far may still read the place.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._slots[slot][: len(self._host[index])].copy_(self._host[index], non_blocking=True)
            arrived = self._arrived[slot]
            assert arrived is not None
            arrived.record(self._stream)
        return slot

    def _pack(self, index: int, block: nn.Module) -> list[nn.Parameter]:
        """Move a block's weights into one stretch of host memory. The modulation, read for all blocks at once, goes along
        to the device."""
        parameters = []
        for name, parameter in block.named_parameters():
            if name == "modulation":
                parameter.data = parameter.data.to(self._device)
            else:
                parameters.append(parameter)
        size = sum(_room(parameter) for parameter in parameters)
        stretch = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        for parameter, part in zip(parameters, _parts(stretch, parameters), strict=True):
            part.copy_(parameter.data)
            parameter.data = part
        self._host[index] = stretch
        return parameters


def _room(parameter: Tensor) -> int:
    return math.ceil(parameter.numel() * parameter.element_size() / _ALIGNMENT) * _ALIGNMENT


def _parts(stretch: Tensor, parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    """The places of the parameters in a stretch of bytes, in their shapes and dtypes."""
    position = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        yield stretch[position : position + size].view(parameter.dtype).view(parameter.shape)
        position += _room(parameter)


def _spread(count: int, chosen: int) -> list[int]:
    """``chosen`` of ``count`` places, evenly apart."""
    return [place * count // chosen for place in range(chosen)]
