"""Linear layers whose weights are kept in 8 bits: half the memory of bf16, and on request products in 8 bits.

A row of the weight has one scale. The state dict uses optimum-quanto's names (``weight._data``, ``weight._scale``,
``input_scale``, ``output_scale``), so that its files are read and ours can be read by it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import EightBitWeight, linear_eight_bit
from model_store.infinitetalk.activations import Activation

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Weight formats by the name that users choose."""


class QuantisedLinear(nn.Module):
    """A Linear with an 8-bit weight.

    Activations in 16 bits are multiplied in 16 bits, with the unpacked weight; activations in the weight's type and a scale for
    each row (see ``activations``) in 8 bits.

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

    def forward(self, x: Activation) -> Tensor:
        """``[..., in] -> [..., out]``."""
        if isinstance(x, tuple):
            bias = self.bias
            out_dtype = torch.bfloat16 if bias is None else bias.dtype
            return linear_eight_bit(x, EightBitWeight(self.data, self.scale), bias, out_dtype)
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
