"""LoRA files: low-rank and full differences to named weights, added while the weights are loaded (arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.safetensors_header import damaged
from model_store.infinitetalk.tensor_files import TensorFile

_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight")


@dataclass
class _Difference:
    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    full: list[str] = field(default_factory=list)


class Lora:
    """The differences of one file, by the tensor they change.

    Read are ``<module>.lora_down.weight`` and ``.lora_up.weight`` (also spelt ``lora_A`` / ``lora_B``) with
    ``<module>.alpha`` (the product counts alpha / rank; 1 where alpha is absent), and the full differences
    ``<module>.diff`` for the weight, ``<module>.diff_b`` for the bias, ``<module>.diff_m`` for the modulation.

    Args:
        file: the opened LoRA.
        scale: strength of all its differences.
        module: brings a module's path in the file to the model's own.

    Raises:
        InfiniteTalkError: ``weights_key_unknown`` for a tensor of no known kind, ``weights_damaged`` for half a pair.
    """

    def __init__(self, file: TensorFile, scale: float, module: Callable[[str], str]) -> None:
        self.file = file.file
        self._tensors = file
        self._scale = scale
        self._differences: dict[str, _Difference] = {}
        for key in file:
            self._register(key, module)
        for target, difference in self._differences.items():
            if (difference.down is None) != (difference.up is None):
                raise damaged(self.file, f"{target} has only one half of its lora_down / lora_up pair")

    @property
    def targets(self) -> frozenset[str]:
        """Names of the tensors that it changes."""
        return frozenset(self._differences)

    def changes(self, target: str) -> bool:
        """Whether it changes that tensor at all; extracted LoRAs carry zeros for tensors that were alike."""
        difference = self._differences[target]
        keys = [difference.down, *difference.full]
        return any(bool(self._tensors.read(key).any()) for key in keys if key is not None)

    def apply(self, target: str, tensor: Tensor) -> Tensor:
        """``tensor`` with this LoRA's differences, float32, or ``tensor`` itself where there are none.

        A difference for a patch embedding with fewer input channels (a text-to-video LoRA on an image-to-video model)
        counts for the first channels, the noise, which both kinds of model have.

        Raises:
            InfiniteTalkError: ``weights_shape_mismatch``.
        """
        difference = self._differences.get(target)
        if difference is None:
            return tensor
        result = tensor.float() if tensor.dtype != torch.float32 else tensor.clone()
        if difference.down is not None and difference.up is not None:
            down, up = self._tensors.read(difference.down).float(), self._tensors.read(difference.up).float()
            rank = down.shape[0]
            alpha = 1.0 if difference.alpha is None else self._tensors.read(difference.alpha).item() / rank
            if up.shape[1:].numel() != rank:
                raise self._mismatch(difference.up, list(up.shape), f"[..., {rank}]")
            self._add(result, up.flatten(1) @ down.flatten(1), alpha, difference.up, down.shape[1:])
        for key in difference.full:
            full = self._tensors.read(key).float()
            self._add(result, full, 1.0, key, full.shape[1:])
        return result

    def _add(self, result: Tensor, change: Tensor, factor: float, key: str, inner: torch.Size) -> None:
        part = result
        if result.ndim == 5 and len(inner) == 4 and inner[0] < result.shape[1]:
            part = result[:, : inner[0]]
        if change.shape[0] != part.shape[0] or change.numel() != part.numel():
            raise self._mismatch(key, [change.shape[0], *inner], str(list(part.shape)))
        part.add_(change.reshape(part.shape), alpha=factor * self._scale)

    def _mismatch(self, key: str, got: list[int], wanted: str) -> InfiniteTalkError:
        return InfiniteTalkError(
            "weights_shape_mismatch",
            f"{self.file}: {key} has the shape {got}, the model needs {wanted}: this LoRA was made for another model.",
        )

    def _register(self, key: str, module: Callable[[str], str]) -> None:
        def of(suffix: str, kind: str) -> _Difference:
            return self._differences.setdefault(f"{module(key.removesuffix(suffix))}.{kind}", _Difference())

        for suffix in _DOWN:
            if key.endswith(suffix):
                of(suffix, "weight").down = key
                return
        for suffix in _UP:
            if key.endswith(suffix):
                of(suffix, "weight").up = key
                return
        if key.endswith(".alpha"):
            of(".alpha", "weight").alpha = key
        elif key.endswith(".diff"):
            target = module(key.removesuffix(".diff"))
            name = target if target.endswith("modulation") else f"{target}.weight"
            self._differences.setdefault(name, _Difference()).full.append(key)
        elif key.endswith(".diff_b"):
            of(".diff_b", "bias").full.append(key)
        elif key.endswith(".diff_m"):
            of(".diff_m", "modulation").full.append(key)
        else:
            raise InfiniteTalkError(
                "weights_key_unknown",
                f"{self.file}: {key} is no part of a LoRA that can be read (lora_down, lora_up, alpha, diff, diff_b, diff_m): "
                "choose a LoRA for Wan2.1 in that layout.",
            )
