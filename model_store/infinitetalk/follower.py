"""A follower of a ``crew``: started by the leader for one GPU, it computes what it is told until the leader is gone.

python -m model_store.infinitetalk.follower FD      # of its end of the pipe
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.crew import Member
from model_store.infinitetalk.parts import load_transformer
from model_store.weights import WeightCache


def main() -> None:
    """Load, meet the others, and follow."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    pipe = Connection(int(sys.argv[1]))
    try:
        variant, rank, processes, meeting, choice, weights = pipe.recv()
    except EOFError:  # it has ended before this process had started
        return
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread of its own, so that the leader's end is noticed in the middle of an exchange, too.
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    try:
        transformer, device = load_transformer(variant, choice, rank, cache=WeightCache(weights))
    except InfiniteTalkError as error:
        pipe.send(error)
        orders.get()
        return
    pipe.send("loaded")
    member = Member(transformer, device, rank, processes, meeting)
    while True:
        orders.get().follow(member)


def _listen(pipe: Connection, orders: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            orders.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
