"""Weights from files into modules, one tensor at a time: read, add LoRA, cast, pack to 8 bits, place on the device.

Modules are built on torch's ``meta`` device, where they need no memory, and filled. No more than one tensor of a
safetensors file is in host memory besides what was already placed, so loading a bf16 model from fp32 files needs little
more than the bf16 model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels import quantise_weight
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk import names
from model_store.infinitetalk.lora import Lora
from model_store.infinitetalk.quantised import FORMATS, QuantisedLinear
from model_store.infinitetalk.safetensors_header import damaged
from model_store.infinitetalk.tensor_files import TensorFile, open_tensor_file
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig

OnTensor = Callable[[int, int], None]
"""Called after every tensor with the number placed and the number of all."""

Rename = Callable[[str], str | None]
Split = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from: a key of a file, or one of several equal parts of it along the first axis."""

    file: TensorFile
    key: str
    part: int = 0
    parts: int = 1

    def shape(self) -> tuple[int, ...]:
        first, *rest = self.file.shape(self.key) or (1,)
        return (first // self.parts, *rest)

    def read(self) -> Tensor:
        tensor = self.file.read(self.key)
        return tensor if self.parts == 1 else tensor.chunk(self.parts)[self.part]


def _whole(name: str) -> Sequence[str]:
    return (name,)


def _collect(
    files: Iterable[TensorFile], rename: Rename, split: Split, wanted: Mapping[str, object]
) -> dict[str, dict[str, _Source]]:
    """The sources of every wanted tensor: one, or optimum-quanto's two; later files take precedence."""
    found: dict[str, dict[str, _Source]] = {}
    for file in files:
        fresh: dict[str, dict[str, _Source]] = {}
        for key in file:
            name = rename(key)
            if name is None:
                continue
            if name.endswith((".input_scale", ".output_scale")):
                if not bool((file.read(key) == 1).all()):
                    raise InfiniteTalkError(
                        "weights_unsupported",
                        f"{file.file}: {key} is not 1, so its activations are quantised too: choose a file of 8-bit weights.",
                    )
                continue
            target, _, piece = name.rpartition(".") if name.endswith(("._data", "._scale")) else (name, "", "whole")
            targets = split(target)
            for part, one in enumerate(targets):
                if one not in wanted:
                    raise InfiniteTalkError(
                        "weights_key_unknown",
                        f"{file.file}: the model has no tensor for {key}. This is a file of another model: "
                        "compare its name with `infinitetalk models list`.",
                    )
                fresh.setdefault(one, {})[piece] = _Source(file, key, part, len(targets))
        found.update(fresh)
    return found


def fill(
    module: nn.Module,
    files: Sequence[TensorFile],
    rename: Rename,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    split: Split = _whole,
    loras: Sequence[Lora] = (),
    pack: Callable[[str], bool] = lambda _: False,
    pack_dtype: torch.dtype | None = None,
    tied: Collection[str] = (),
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Give every parameter and persistent buffer of ``module`` its tensor from ``files``.

    Args:
        module: on the meta device or not; what it held is replaced.
        files: opened weight files; where two have a tensor, the later one's counts.
        rename: a key of a file -> the module's name, or None for what is not read.
        dtype: of the parameters afterwards.
        device: where they are placed.
        split: a renamed key -> the names between which it is divided along the first axis.
        loras: differences to add, in fp32, before the cast.
        pack: whether a Linear's weight may be kept in 8 bits.
        pack_dtype: the 8-bit format; None packs only what is packed in the file.
        tied: names that the module shares with others of its tensors, for the caller to tie afterwards.
        on_tensor: progress.

    Raises:
        InfiniteTalkError: ``weights_key_unknown``, ``weights_key_missing``, ``weights_shape_mismatch``,
            ``weights_damaged``; each names file, tensor and cure.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in tied}
    sources = _collect(files, rename, split, wanted)
    described = ", ".join(file.file for file in files)
    for name in wanted:
        if name not in sources:
            raise InfiniteTalkError(
                "weights_key_missing",
                f"{described}: there is no tensor for {name}. A file is missing or of another model: "
                "run `infinitetalk models verify`, then `infinitetalk models pull`.",
            )
    for lora in loras:
        for target in lora.targets - wanted.keys():
            if lora.changes(target):
                raise InfiniteTalkError(
                    "weights_key_unknown",
                    f"{lora.file}: it changes {target}, which the model does not have: choose a LoRA for Wan2.1 14B.",
                )
    for done, (name, pieces) in enumerate(sources.items(), start=1):
        packed = _packed(pieces)
        shape_source = pieces["_data"] if packed else pieces["whole"]
        tensor = _shaped(shape_source, wanted[name])
        format_in_file = tensor.dtype if packed else None
        changed = any(name in lora.targets for lora in loras)
        may_pack = name.endswith(".weight") and pack(name)
        if packed and may_pack and not changed and pack_dtype in (None, tensor.dtype):
            data, scale = tensor.to(device, copy=True), _scale(pieces["_scale"]).to(device)
            _place_packed(module, name, data, scale)
        else:
            if packed:
                tensor = tensor.float() * _scale(pieces["_scale"])
            for lora in loras:
                tensor = lora.apply(name, tensor)
            eight_bits = pack_dtype or format_in_file
            if may_pack and eight_bits is not None:
                data, scale = quantise_weight(tensor.to(device), eight_bits)
                _place_packed(module, name, data, scale)
            else:
                _place(module, name, tensor.to(device, dtype, copy=True))
        on_tensor(done, len(sources))


def _packed(pieces: Mapping[str, _Source]) -> bool:
    if "whole" in pieces:
        return False
    if pieces.keys() != {"_data", "_scale"}:
        source = next(iter(pieces.values()))
        raise damaged(source.file.file, f"{source.key} has lost its other half (_data and _scale belong together)")
    return True


def _scale(source: _Source) -> Tensor:
    return source.read().float().reshape(-1, 1)


def _shaped(source: _Source, wanted: tuple[int, ...]) -> Tensor:
    """The tensor in the module's shape; a spelling may have kept leading axes of length 1."""
    shape = source.shape()
    if shape != wanted and shape != (1,) * (len(shape) - len(wanted)) + wanted:
        raise InfiniteTalkError(
            "weights_shape_mismatch",
            f"{source.file.file}: {source.key} has the shape {list(shape)}, the model needs {list(wanted)}: it belongs to a "
            "model of another size. Fetch the right one with `infinitetalk models pull`.",
        )
    return source.read().reshape(wanted)


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    parent = module.get_submodule(path)
    if leaf in parent._buffers:
        parent._buffers[leaf] = tensor
    else:
        setattr(parent, leaf, nn.Parameter(tensor, requires_grad=False))


def _place_packed(module: nn.Module, name: str, data: Tensor, scale: Tensor) -> None:
    path = name.removesuffix(".weight")
    parent_path, _, leaf = path.rpartition(".")
    linear = module.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    setattr(module.get_submodule(parent_path), leaf, QuantisedLinear(data, scale, linear.bias))


_PACKED_LAYERS = ("self_attn", "cross_attn", "audio_cross_attn", "ffn")


def _packable(name: str) -> bool:
    """The blocks' large products; what is small or computed in fp32 keeps its precision."""
    parts = name.split(".")
    return parts[0] == "blocks" and parts[2] in _PACKED_LAYERS and not parts[3].startswith("norm")


def pack_blocks(model: InfiniteTalkTransformer, format_name: str) -> None:
    """Keep the large weights of a model's blocks in 8 bits from now on, as ``load_transformer`` does while it loads.

    Args:
        model: with weights.
        format_name: a key of ``quantised.FORMATS``.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and _packable(f"{path}.weight"):
            _place_packed(model, f"{path}.weight", *quantise_weight(module.weight, FORMATS[format_name]))
    model.forget_contexts()


def read_transformer_config(path: Path) -> TransformerConfig:
    """The sizes in a checkpoint's ``config.json``, in the authors' spelling or the ``-Diffusers`` one.

    Raises:
        InfiniteTalkError: ``weights_missing``, ``weights_damaged``.
    """
    try:
        values = json.loads(path.read_text())
        heads = int(values.get("num_heads") or values["num_attention_heads"])
        return TransformerConfig(
            dim=int(values["dim"]) if "dim" in values else heads * int(values["attention_head_dim"]),
            ffn_dim=int(values["ffn_dim"]),
            num_heads=heads,
            num_layers=int(values["num_layers"]),
            freq_dim=int(values["freq_dim"]),
            text_dim=int(values.get("text_dim", TransformerConfig.text_dim)),
            text_len=int(values.get("text_len", TransformerConfig.text_len)),
            in_dim=int(values.get("in_dim") or values["in_channels"]),
            out_dim=int(values.get("out_dim") or values["out_channels"]),
            eps=float(values["eps"]),
            image_dim=int(values.get("image_dim") or TransformerConfig.image_dim),
        )
    except FileNotFoundError as error:
        raise InfiniteTalkError(
            "weights_missing", f"{path.name} is missing: fetch it with `infinitetalk models pull`."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path.name, f"it does not tell the model's sizes ({error})") from error


def load_transformer(
    files: Sequence[Path],
    config: TransformerConfig | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    loras: Sequence[tuple[Path, float]] = (),
    quantised: str | None = None,
    on_tensor: OnTensor = lambda done, total: None,
) -> InfiniteTalkTransformer:
    """The transformer with its weights.

    Args:
        files: the base model's files in either spelling, then the InfiniteTalk adapter's; or one quantised file of both.
        config: sizes; the public 14B model's unless given.
        dtype: of the weights and of the residual stream.
        device: where the weights are placed.
        loras: LoRA files with their strengths, merged into the weights.
        quantised: ``int8`` or ``fp8`` to keep the blocks' weights in 8 bits. A file that is quantised stays so.
        on_tensor: progress.

    Raises:
        InfiniteTalkError: see :func:`fill`; ``quantisation_unknown``.
    """
    if quantised is not None and quantised not in FORMATS:
        raise InfiniteTalkError(
            "quantisation_unknown", f"There is no weight format {quantised!r}: choose {' or '.join(FORMATS)}.", param="quantised"
        )
    with torch.device("meta"):
        model = InfiniteTalkTransformer(config)
    fill(
        model,
        [open_tensor_file(path) for path in files],
        names.transformer_tensor,
        dtype=dtype,
        device=device,
        loras=[Lora(open_tensor_file(path), scale, names.transformer_module) for path, scale in loras],
        pack=_packable,
        pack_dtype=None if quantised is None else FORMATS[quantised],
        on_tensor=on_tensor,
    )
    return model.eval()
