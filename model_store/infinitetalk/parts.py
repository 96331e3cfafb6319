"""All models of one variant, loaded, and the words and speech that they turn into vectors."""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from model_store.catalogue import component
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk import memory, tiny_random
from model_store.infinitetalk.checkpoints import Checkpoints
from model_store.infinitetalk.crew import Crew
from model_store.infinitetalk.offload import BlockOffload
from model_store.infinitetalk.options import GPUS_VARIABLE, MEMORY_VARIABLE, TINY
from model_store.infinitetalk.speech_encoder import SpeechEncoder
from model_store.infinitetalk.stream import Models
from model_store.infinitetalk.text_encoder import TextEncoder
from model_store.infinitetalk.transformer import InfiniteTalkTransformer, TransformerConfig
from model_store.weights import WeightCache

OnLoaded = Callable[[int, int], None]
"""Called with what is loaded and what there is, in tensors of the transformer."""

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
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

    def close(self) -> None:
        """End the other processes, where there are any."""
        if self.models.crew is not None:
            self.models.crew.close()

    def words(self, text: str) -> Tensor:
        """Vectors of a prompt, ``[n, 4096]``; those of the latest prompts are kept."""
        if text not in self._prompts:
            self._text = self._text or self._load_text()
            self._prompts[text] = self._text.embed(text)
            if len(self._prompts) > _PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(text)
        return self._prompts[text]


def require_gpu() -> None:
    """Have a GPU that a real variant can run on.

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
    oldest = min(range(torch.cuda.device_count()), key=torch.cuda.get_device_capability)
    capability = torch.cuda.get_device_capability(oldest)
    if capability < _OLDEST:
        raise InfiniteTalkError(
            "gpu_unsupported",
            f"The GPU is a {torch.cuda.get_device_name(oldest)} of compute capability {capability[0]}.{capability[1]}, and 8.0 "
            f"(Ampere) or newer is needed. {instead}",
        )


def load_parts(variant: str, on_loaded: OnLoaded = lambda done, total: None, cache: WeightCache | None = None) -> Parts:
    """A variant's models, ready.

    Args:
        variant: a catalogue's variant, or ``tiny-random``.
        on_loaded: progress; may raise to stop.
        cache: where the weights lie; the usual place unless given.

    Raises:
        InfiniteTalkError: ``gpu_missing``, ``gpu_unsupported``, ``gpus_invalid``, ``gpus_missing``, ``gpus_not_ready``,
            ``gpu_memory_short``, ``host_memory_short``, ``weights_missing``, or as ``loading`` does.
    """
    cache = cache or WeightCache()
    processes, choice = _processes(variant), None
    if variant == TINY:
        logger.warning("%s: the weights are random, and what they make is noise", TINY)
    else:
        _require_adapter(cache)
        choice = _choose(variant, processes)
    crew = Crew(variant, processes, choice, cache.folder) if processes > 1 else None
    try:
        transformer, device = load_transformer(variant, choice, 0, on_loaded, cache)
        parts = _parts(variant, transformer, device, choice, cache, crew)
        if crew is not None:
            crew.join(transformer, device, lambda: on_loaded(1, 1))
    except BaseException:
        if crew is not None:
            crew.close()
        raise
    return parts


def load_transformer(
    variant: str,
    choice: memory.Choice | None,
    rank: int,
    on_loaded: OnLoaded = lambda done, total: None,
    cache: WeightCache | None = None,
) -> tuple[InfiniteTalkTransformer, torch.device]:
    """The transformer of one process, and where it computes.

    Args:
        variant: a catalogue's variant, or ``tiny-random``.
        choice: how the weights are kept; None for ``tiny-random``.
        rank: which GPU.
        on_loaded: progress; may raise to stop.
        cache: where the weights lie; the usual place unless given.

    Raises:
        InfiniteTalkError: ``gpu_memory_short``, ``weights_missing``, or as ``loading`` does.
    """
    if choice is None:
        # Sums in one order whatever the number of cores, so that another machine resumes exactly; and quickest for this size.
        torch.set_num_threads(1)
        on_loaded(0, 1)
        return tiny_random.transformer(), torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    cache = cache or WeightCache()
    with _memory_named(choice):
        if choice.mode == "offload":
            transformer = Checkpoints(cache, "cpu").transformer(variant, on_tensor=on_loaded)
            BlockOffload(transformer, device, choice.resident)
        else:
            quantised = None if choice.mode == "whole" else _eight_bit_format(choice, rank)
            transformer = Checkpoints(cache, device).transformer(variant, quantised=quantised, on_tensor=on_loaded)
            if choice.mode == "eight_bit":
                transformer.multiply_in_eight_bits()
    return transformer, device


def _eight_bit_format(choice: memory.Choice, rank: int) -> str:
    """fp8, unless there are to be products that the GPU has no fp8 for (Ampere)."""
    return "int8" if choice.mode == "eight_bit" and torch.cuda.get_device_capability(rank) < (8, 9) else "fp8"


def _parts(
    variant: str,
    transformer: InfiniteTalkTransformer,
    device: torch.device,
    choice: memory.Choice | None,
    cache: WeightCache,
    crew: Crew | None,
) -> Parts:
    """The leader's parts."""
    if choice is None:
        models = Models(transformer, tiny_random.vae(), tiny_random.image_encoder(), crew)
        return Parts(variant, models, tiny_random.speech_encoder(), tiny_random.text_encoder)
    checkpoints = Checkpoints(cache, device)
    with _memory_named(choice):
        models = Models(transformer, checkpoints.vae(choice.room), checkpoints.image_encoder(), crew)
        speech = checkpoints.speech_encoder()
    text = checkpoints if choice.text_on_gpu else Checkpoints(cache, "cpu")
    return Parts(variant, models, speech, text.text_encoder)


def _processes(variant: str) -> int:
    """How many processes compute together, one a GPU; ``tiny-random`` has as many on the CPU as are asked for."""
    asked = os.environ.get(GPUS_VARIABLE) or None
    if asked is not None and not (asked.isdecimal() and int(asked) > 0):
        raise InfiniteTalkError("gpus_invalid", f"{GPUS_VARIABLE} is {asked!r}: set it to a number from 1 on, or not at all.")
    if variant == TINY:
        return int(asked or 1)
    require_gpu()
    visible = torch.cuda.device_count()
    if asked is not None and int(asked) > visible:
        raise InfiniteTalkError(
            "gpus_missing", f"{GPUS_VARIABLE} asks for {asked} GPUs, and {visible} can be seen: set it to {visible} at most."
        )
    return int(asked or visible)


def _choose(variant: str, processes: int) -> memory.Choice:
    """How the weights are kept, on all GPUs alike."""
    need = memory.needs()
    free = min(torch.cuda.mem_get_info(number)[0] for number in range(processes))
    choice = memory.choose(free, need, TransformerConfig().num_layers, os.environ.get(MEMORY_VARIABLE) or None)
    if choice.mode == "offload":
        _require_host_memory(memory.host_bytes(need, TransformerConfig().num_layers, choice, processes))
    names = ", ".join(sorted({torch.cuda.get_device_name(number) for number in range(processes)}))
    logger.warning("%s on %d GPU%s (%s): %s", variant, processes, "s" if processes > 1 else "", names, choice.reason)
    return choice


@contextmanager
def _memory_named(choice: memory.Choice) -> Iterator[None]:
    """Say what to do where the GPU's memory is too small."""
    try:
        yield
    except torch.AcceleratorError as error:
        if "out of memory" not in str(error):
            raise
        raise InfiniteTalkError(
            "host_memory_short",
            f"The driver could not pin host memory for the blocks that visit the GPU ({choice.reason}): use a machine with more "
            "of it, allow this process to lock more (ulimit -l), or use a larger GPU.",
        ) from error
    except torch.OutOfMemoryError as error:
        release()
        raise InfiniteTalkError(
            "gpu_memory_short",
            f"The GPU's memory was too small for the weights ({choice.reason}): end what else runs on it, or set "
            f"{MEMORY_VARIABLE}=offload.",
        ) from error


def release() -> None:
    """Give memory that nothing refers to any more back: the GPU's, and what was pinned of the host's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None)  # younger than the oldest torch allowed
        if empty_host_cache is not None:
            empty_host_cache()


def _require_adapter(cache: WeightCache) -> None:
    """Say at once, before anything large is read, that weights were never fetched."""
    cache.files(component("adapter-single"))


def _require_host_memory(needed: int) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no control groups, or no limit ("max")
        total = min(total, int(_CONTAINER_LIMIT.read_text()))
    if needed > total * 0.95:
        raise InfiniteTalkError(
            "host_memory_short",
            f"{needed / 1e9:.0f} GB of host memory are needed to keep the blocks outside the GPU; this machine or container has "
            f"{total / 1e9:.0f} GB: give it more, or use a larger GPU.",
        )
