"""The vendored networks, ready to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from zipfile import ZipFile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

MODELS = files("model_store.portrait") / "models"


@cache
def _network(name: str) -> Interpreter:
    """``name`` is a file of ``models/``, or ``bundle/member`` of one that is a zip of several."""
    bundle, _, member = name.partition("/")
    with (MODELS / bundle).open("rb") as stream:
        content = ZipFile(stream).read(member) if member else stream.read()
    with _hushed():
        network = Interpreter(model_content=content, num_threads=1)
        network.allocate_tensors()
    return network


@contextmanager
def _hushed() -> Iterator[None]:
    """LiteRT greets on the process's stderr when its first network is made, below Python and without a switch."""
    if sys.stderr is not None:
        sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def run(name: str, value: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All outputs of a network for one input, in the network's own order."""
    network = _network(name)
    network.set_tensor(network.get_input_details()[0]["index"], value)
    network.invoke()
    return [network.get_tensor(output["index"]) for output in network.get_output_details()]
