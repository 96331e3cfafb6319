"""A worker that works asks Kubernetes to take an idle one first: it raises the deletion cost of its own pod (KEP-2255).

What it needs lies in a folder that the chart mounts into the pod: ``name`` and ``namespace`` of the pod, a ``token`` that is
renewed while it runs, and ``ca.crt``. Kubernetes treats the cost as a wish, and so does this: work never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path

import httpx

from model_store.errors import InfiniteTalkError

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
BUSY, IDLE = 100, 0

SETTLE_SECONDS = 5.0
"""How long a worker must have been idle before it says so; jobs one after another make no calls between them."""

CALL_SECONDS = 5.0
RETRY_SECONDS = 5.0

_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"

logger = logging.getLogger(__name__)


class DeletionCost:
    """Keeps one annotation of this process's pod true.

    Args:
        folder: holds ``name``, ``namespace``, ``token`` and ``ca.crt``.

    Raises:
        InfiniteTalkError: ``settings_invalid``, where this is no pod, or the folder is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        missing = [file for file in ("name", "namespace", "token", "ca.crt") if not (folder / file).is_file()]
        missing += [name for name in (_HOST, _PORT) if name not in os.environ]
        if missing:
            raise InfiniteTalkError(
                "settings_invalid",
                f"INFINITETALK_POD_DIR is {str(folder)!r}, but {', '.join(missing)} cannot be found: mount what the chart mounts "
                "there, or leave the variable away.",
            )
        self._folder = folder
        self._cost = IDLE
        self._changed = asyncio.Event()
        self._changed.set()  # an earlier process in the same pod may have died at work

    def set_busy(self, busy: bool) -> None:
        """Say whether the worker has work; returns at once."""
        self._cost = BUSY if busy else IDLE
        self._changed.set()

    async def run(self) -> None:
        """Tell Kubernetes of every change, until cancelled; what fails is tried again."""
        told: int | None = None
        failing = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            if told is not None and self._cost == IDLE:
                await asyncio.sleep(SETTLE_SECONDS)
            cost = self._cost
            if cost == told:
                continue
            try:
                await self._tell(cost)
            except (httpx.HTTPError, OSError, ValueError) as error:
                if not failing:
                    logger.warning("this pod's deletion cost cannot be set, and KEDA may take it while it works: %s", error)
                failing = True
                self._changed.set()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                told, failing = cost, False

    async def _tell(self, cost: int) -> None:
        name, namespace, token = ((self._folder / file).read_text().strip() for file in ("name", "namespace", "token"))
        host, port = os.environ[_HOST], os.environ[_PORT]
        trust = ssl.create_default_context(cafile=self._folder / "ca.crt")
        async with httpx.AsyncClient(verify=trust, timeout=CALL_SECONDS, trust_env=False) as client:
            answer = await client.patch(
                f"https://{f'[{host}]' if ':' in host else host}:{port}/api/v1/namespaces/{namespace}/pods/{name}",
                json={"metadata": {"annotations": {ANNOTATION: str(cost)}}},
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            )
            answer.raise_for_status()
