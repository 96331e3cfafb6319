"""All models of one variant, loaded, and the words and speech that they turn into vectors."""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from model_store.catalogue import component
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk import memory, tiny_random
from model_store.infinitetalk.checkpoints import Checkpoints
from model_store.infinitetalk.offload import BlockOffload
from model_store.infinitetalk.options import MEMORY_VARIABLE, TINY
from model_store.infinitetalk.speech_encoder import SpeechEncoder
from model_store.infinitetalk.stream import Models
from model_store.infinitetalk.text_encoder import TextEncoder
from model_store.infinitetalk.transformer import TransformerConfig
from model_store.weights import WeightCache

OnLoaded = Callable[[int, int], None]
"""Called with what is loaded and what there is, in tensors of the transformer."""

_PROMPTS_KEPT = 16
_OLDEST = (8, 0)

logger = logging.getLogger(__name__)


class Parts:
    """What a variant performs with; made by :func:`load_parts`.

    Args:
        variant: its name.
        models: what the streaming loop computes with.
        speech: hears.
        text: gives the text encoder; asked once, when the first prompt comes.
    """

    def __init__(self, variant: str, models: Models, speech: SpeechEncoder, text: Callable[[], TextEncoder]) -> None:
        self.variant, self.models, self.speech = variant, models, speech
        self._load_text = text
        self._text: TextEncoder | None = None
        self._prompts: OrderedDict[str, Tensor] = OrderedDict()

    def words(self, text: str) -> Tensor:
        """Vectors of a prompt, ``[n, 4096]``; those of the latest prompts are kept."""
        if text not in self._prompts:
            self._text = self._text or self._load_text()
            self._prompts[text] = self._text.embed(text)
            if len(self._prompts) > _PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(text)
        return self._prompts[text]


def gpu() -> torch.device:
    """The GPU that a real variant runs on.

    Raises:
        InfiniteTalkError: ``gpu_missing``, ``gpu_unsupported``.
    """
    instead = f"For a trial of everything but the picture there is the variant {TINY}; for real videos the portrait engine."
    if not torch.cuda.is_available():
        raise InfiniteTalkError(
            "gpu_missing",
            f"The infinitetalk engine needs an NVIDIA GPU, and torch {torch.__version__} finds none here: run it on a machine "
            f"that has one, with its driver and a CUDA build of torch. {instead}",
        )
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST:
        raise InfiniteTalkError(
            "gpu_unsupported",
            f"The GPU is a {torch.cuda.get_device_name()} of compute capability {capability[0]}.{capability[1]}, and 8.0 "
            f"(Ampere) or newer is needed. {instead}",
        )
    return torch.device("cuda", torch.cuda.current_device())


def load_parts(variant: str, on_loaded: OnLoaded = lambda done, total: None, cache: WeightCache | None = None) -> Parts:
    """A variant's models, ready.

    Args:
        variant: a catalogue's variant, or ``tiny-random``.
        on_loaded: progress; may raise to stop.
        cache: where the weights lie.

    Raises:
        InfiniteTalkError: ``gpu_missing``, ``gpu_unsupported``, ``gpu_memory_short``, ``host_memory_short``,
            ``weights_missing``, or as ``loading`` does.
    """
    if variant == TINY:
        logger.warning("%s: the weights are random, and what they make is noise", TINY)
        # Sums in one order whatever the number of cores, so that another machine resumes exactly; and quickest for this size.
        torch.set_num_threads(1)
        on_loaded(0, 1)
        models = Models(tiny_random.transformer(), tiny_random.vae(), tiny_random.image_encoder())
        return Parts(variant, models, tiny_random.speech_encoder(), tiny_random.text_encoder)
    device = gpu()
    cache = cache or WeightCache()
    _require_adapter(cache)
    need = memory.needs()
    blocks = TransformerConfig().num_layers
    choice = memory.choose(torch.cuda.mem_get_info(device)[0], need, blocks, os.environ.get(MEMORY_VARIABLE) or None)
    logger.warning("%s on %s: %s", variant, torch.cuda.get_device_name(device), choice.reason)
    checkpoints = Checkpoints(cache, device)
    try:
        vae, image, speech = checkpoints.vae(), checkpoints.image_encoder(), checkpoints.speech_encoder()
        if choice.mode == "offload":
            _require_host_memory(need.weights)
            transformer = Checkpoints(cache, "cpu").transformer(variant, on_tensor=on_loaded)
            BlockOffload(transformer, device, choice.resident)
        else:
            quantised = "fp8" if choice.mode == "fp8" else None
            transformer = checkpoints.transformer(variant, quantised=quantised, on_tensor=on_loaded)
    except torch.OutOfMemoryError as error:
        release()
        raise InfiniteTalkError(
            "gpu_memory_short",
            f"The GPU's memory was too small for the weights ({choice.reason}): end what else runs on it, or set "
            f"{MEMORY_VARIABLE}=offload.",
        ) from error
    text = checkpoints if choice.text_on_gpu else Checkpoints(cache, "cpu")
    return Parts(variant, Models(transformer, vae, image), speech, text.text_encoder)


def release() -> None:
    """Give memory that nothing refers to any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _require_adapter(cache: WeightCache) -> None:
    """Say at once, before anything large is read, that weights were never fetched."""
    cache.files(component("adapter-single"))


def _require_host_memory(needed: int) -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > total * 0.9:
        raise InfiniteTalkError(
            "host_memory_short",
            f"{needed / 1e9:.0f} GB of host memory are needed to keep the blocks outside the GPU; this machine has "
            f"{total / 1e9:.0f} GB ({available / 1e9:.0f} GB free): use a machine with more, or a larger GPU.",
        )
