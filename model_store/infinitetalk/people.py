"""Several people in one picture: where each is, and which voice each region of the picture listens to.

Speech and picture are bound by position (MultiTalk, arXiv:2505.22647): every video token gets a place on a line, near the
place of the person it depicts, and that person's speech tokens sit there too; a 1-D rotary embedding does the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_RANGE = 24
"""Length of the line that two people share, in rotary positions."""

CLASS_INTERVAL = 4
"""Length of each person's stretch: the first has [0, 4], the second [20, 24]."""

BACKGROUND = CLASS_RANGE / 2
"""The place of what is nobody."""

_SPACING = CLASS_RANGE - CLASS_INTERVAL  # people beyond the two of training keep the trained distance to their neighbour
_EPSILON = 1e-8


def token_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks at latent size brought to the token grid by nearest neighbour; overlaps are kept.

    Args:
        masks: ``[P + 1, h, w]``, one a person, then the background; above zero is inside.
        height, width: the token grid, h/2 and w/2.

    Returns:
        0 or 1, float32 ``[P + 1, height * width]``.
    """
    resized = F.interpolate(masks.unsqueeze(0).float(), size=(height, width), mode="nearest").squeeze(0)
    return (resized > 0).float().flatten(1)


def query_positions(class_map: Tensor) -> Tensor:
    """The place of every video token.

    A token belongs to the class that it attends to most. A person's token lies in that person's stretch, the further
    along the more it attends; a background token lies at :data:`BACKGROUND`.

    Args:
        class_map: how much each token attends to each class, ``[P + 1, N]``, the background last.

    Returns:
        float32 ``[N]``.
    """
    people = class_map[:-1].float()
    low, high = people.amin(1, keepdim=True), people.amax(1, keepdim=True)
    starts = torch.arange(len(people), device=class_map.device, dtype=torch.float32).mul(_SPACING).unsqueeze(1)
    scaled = (people - low) / (high - low + _EPSILON) * CLASS_INTERVAL + starts
    places = torch.cat((scaled, torch.full_like(scaled[:1], BACKGROUND)))
    return places.gather(0, class_map.argmax(0, keepdim=True)).squeeze(0)


def key_positions(people: int, tokens: int, device: torch.device) -> Tensor:
    """The place of every speech token of one latent frame: the middle of its speaker's stretch (2, 22, ...).

    Returns:
        float32 ``[people * tokens]``.
    """
    middles = torch.arange(people, device=device, dtype=torch.float32) * _SPACING + CLASS_INTERVAL / 2
    return middles.repeat_interleave(tokens)
