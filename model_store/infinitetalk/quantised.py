"""Linear layers whose weights are kept in 8 bits: half the memory of bf16, the same arithmetic after unpacking.

A row of the weight has one scale. The state dict uses optimum-quanto's names (``weight._data``, ``weight._scale``,
``input_scale``, ``output_scale``), so that its files are read and ours can be read by it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Weight formats by the name that users choose."""

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantise(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round a weight to 8 bits, one scale a row.

    Args:
        weight: ``[out, in]``, any float dtype.
        dtype: a value of :data:`FORMATS`.

    Returns:
        data: ``[out, in]`` in ``dtype``.
        scale: float32 ``[out, 1]``; ``data * scale`` is the weight again.
    """
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / _LARGEST[dtype]
    scaled = wide / scale
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale


class QuantisedLinear(nn.Module):
    """A Linear with an 8-bit weight; activations and products stay in the input's dtype.

    Args:
        data: ``[out, in]`` in a dtype of :data:`FORMATS`.
        scale: ``[out, 1]``.
        bias: ``[out]`` or None.
    """

    def __init__(self, data: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.data = nn.Parameter(data, requires_grad=False)
        self.scale = nn.Parameter(scale.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The unpacked weight, float32 ``[out, in]``."""
        return self.data.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # torch's own signature has no types
        """Move with the module but keep the 8-bit data and the scale's precision, whatever dtype is asked for."""
        data, scale = self.data.detach(), self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in (("data", data), ("scale", scale)):
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, nn.Parameter(before.to(after.device), requires_grad=False))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        def kept(tensor: Tensor) -> Tensor:
            return tensor if keep_vars else tensor.detach()

        destination[f"{prefix}weight._data"] = kept(self.data)
        destination[f"{prefix}weight._scale"] = kept(self.scale)
        if self.bias is not None:
            destination[f"{prefix}bias"] = kept(self.bias)
        for name in ("input_scale", "output_scale"):  # quanto's activation scales; 1 says that none are quantised
            destination[f"{prefix}{name}"] = torch.ones((), device=self.scale.device)
