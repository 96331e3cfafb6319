"""What a checkpoint holds: the motion latents and the running scene, as safetensors bytes.

The latents are those of the last corrected frames, computed once and stored in fp32, so a resumed run continues from the very
same numbers; noise follows from the seed and the frame number, so no generator has a state.
"""

from __future__ import annotations

import json
import struct

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.stream import State

_LATENT_CHANNELS = 16


def state_to_bytes(state: State, variant: str) -> bytes:
    """A state of a variant's run; the same state gives the same bytes."""
    tensors = {} if state.motion is None else {"motion": state.motion.float().cpu().contiguous()}
    return save(tensors, {"made": json.dumps({"scene": state.scene, "variant": variant}, sort_keys=True)})


def state_from_bytes(data: bytes, variant: str, size: tuple[int, int]) -> State:
    """The inverse of :func:`state_to_bytes`.

    Args:
        data: from a checkpoint.
        variant: of the run that goes on.
        size: height and width that it works at.

    Raises:
        InfiniteTalkError: ``checkpoint_damaged``; ``checkpoint_mismatch`` when it belongs to another variant or size.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        made = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["made"])
        scene, made_by = int(made["scene"]), str(made["variant"])
        motion = load(data).get("motion")  # the last chunk's checkpoint has none: nothing follows
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise InfiniteTalkError(
            "checkpoint_damaged", "The checkpoint cannot be read: start the video again from its first chunk."
        ) from error
    wanted = (_LATENT_CHANNELS, size[0] // 8, size[1] // 8)
    fits = motion is not None and (motion.shape[0], *motion.shape[2:]) == wanted and motion.dtype == torch.float32
    if made_by != variant or not fits:
        raise InfiniteTalkError(
            "checkpoint_mismatch",
            f"The checkpoint belongs to another request (variant {made_by}): continue with what the video began with, or "
            "start it again.",
        )
    return State(scene, motion)
