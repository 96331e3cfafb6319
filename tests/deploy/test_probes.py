"""The chart's commands, variables, secrets, ports and probes, tried on running processes: only addresses are this machine's.

The trial's MinIO cannot be had here: nothing of it was run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import trustme
from servers import Deployment, Process, eventually, free_ports

from service.embedded import valkey_binary
from tests.deploy.test_chart import POOL, containers, render


def environment(container: dict[str, Any], ports: dict[str, str], folder: Path) -> dict[str, str]:
    """The container's variables, with free ports, and this machine's folders of secrets and of what a pod knows of itself."""
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    del given["INFINITETALK_S3_ENDPOINT"]  # the objects lie in a folder here
    moved = {name: ports.get(value, value) if name.endswith("_PORT") else value for name, value in given.items()}
    if "INFINITETALK_POD_DIR" in given:
        pod = folder.parent / "pod"
        pod.mkdir()
        for name in ("name", "namespace", "token"):
            (pod / name).write_text(name)
        trustme.CA().cert_pem.write_to_path(pod / "ca.crt")
        # As in every pod; nobody is there, and a worker must not mind.
        moved |= {"INFINITETALK_POD_DIR": str(pod), "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "9"}
    return {**moved, "INFINITETALK_SECRETS_DIR": str(folder)}


def program(command: list[str]) -> list[str]:
    """The container's command here; `infinitetalk` as a module, so that it is this tree's."""
    name, *words = command
    assert name == "infinitetalk"
    return [sys.executable, "-m", "service.cli.main", *words]


def test_probes_find_what_the_chart_says(tmp_path: Path) -> None:
    """API and worker as the chart starts them answer on every port and path that it names, and become ready."""
    pools = {"portrait-interactive": {**POOL, "engine": "portrait", "jobClass": "interactive", "gpus": 0}}
    found = {container["name"]: container for container in containers(render({"pools": pools}))}
    numbers = [str(port["containerPort"]) for container in found.values() for port in container["ports"]]
    ports = dict(zip(numbers, map(str, free_ports(len(numbers))), strict=True))
    deployment = Deployment(tmp_path / "plain")  # for its Valkey, and so that its folder is shared
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "INFINITETALK_REDIS_URL").write_text(deployment.env["INFINITETALK_REDIS_URL"])
    base = {name: value for name, value in deployment.env.items() if not name.startswith("INFINITETALK_")}
    base |= {"INFINITETALK_DATA_DIR": deployment.env["INFINITETALK_DATA_DIR"], "INFINITETALK_MIN_FREE_BYTES": "0"}
    processes: list[Process] = []
    try:
        for name, container in found.items():
            env = {**base, **environment(container, ports, secrets)}
            if name == "api":  # the image's own command, which the chart leaves as it is
                command = [sys.executable, "-m", "bentoml", "serve", "service.bento:InfiniteTalk", "--port", ports["3000"]]
            else:
                command = program(container["command"])
            processes.append(Process(name, command, tmp_path / f"{name}.log", env))
        for container in found.values():
            named = {port["name"]: ports[str(port["containerPort"])] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                action = container[probe]["httpGet"]
                url = f"http://127.0.0.1:{named[action['port']]}{action['path']}"
                eventually(lambda url=url: _answers(url), f"{container['name']}'s {probe}")
            assert "infinitetalk_queue_up 1.0" in httpx.get(f"http://127.0.0.1:{named['metrics']}/metrics", timeout=10).text
        assert httpx.get(f"http://127.0.0.1:{ports['3000']}/v1/videos", timeout=10).status_code == 200
    finally:
        for process in processes:
            process.end()
        deployment.end()
        shutil.rmtree(secrets)


def test_the_trials_valkey_takes_its_password_from_the_secret(tmp_path: Path) -> None:
    (container,) = [item for item in containers(render({"valkey": {"enabled": True}})) if item["name"] == "valkey"]
    shell, flag, script = container["command"]
    (port,) = free_ports(1)
    for name in ("secrets", "data", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets" / "password").write_text("seven words of wisdom".replace(" ", "-"))
    (tmp_path / "bin" / "valkey-server").symlink_to(valkey_binary())
    for place in ("/secrets", "/data"):
        script = script.replace(place, f"{tmp_path}{place}")
    script = script.replace("port 6379", f"port {port}")
    process = Process("valkey", [shell, flag, script], tmp_path / "log", {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    try:
        client = redis.Redis(port=port, password="seven-words-of-wisdom", socket_timeout=5)
        eventually(lambda: _pings(client), "Valkey answers")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, socket_timeout=5).ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=10, check=True).stdout
        assert "seven-words" not in commands
    finally:
        process.end()


def test_the_pull_is_a_command_that_there_is(tmp_path: Path) -> None:
    """It reads its token and keys from the mounted files, and asks the source for the first checkpoint."""
    pool = {"pools": {"big": POOL}, "modelCache": {"claim": {"create": True}, "pull": {"enabled": True, "source": str(tmp_path)}}}
    (container,) = [item for item in containers(render(pool)) if item["name"] == "pull-base"]
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    env = {**os.environ, **environment(container, {}, secrets), "INFINITETALK_MODELS": str(tmp_path / "models")}
    command = [*program(container["command"]), "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "source" in json.loads(done.stdout or done.stderr)["error"]["message"], done.stderr


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
