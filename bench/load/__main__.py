"""``python -m bench.load [--seconds N] [--rate N]``: a table of latencies; nothing else should run on the machine."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import soundfile
from PIL import Image

from bench.load.users import RATE

ROOT = Path(__file__).resolve().parents[2]
PORT, PEER_PORT = 3210, 3211


@contextmanager
def process(command: list[str], url: str, log: Path, **env: str) -> Iterator[None]:
    """A server that answers at ``url`` until the block ends."""
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(url, timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline or server.poll() is not None:
                raise SystemExit(f"{command[0]} did not start: see {log}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait(60)


def locust(user: str, users: int, seconds: int, host: str, folder: Path, **env: str) -> list[dict[str, str]]:
    """The rows of locust's statistics, one for each kind of request."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "bench/load/users.py"), *user.split(), "--headless"]
    command += [
        "-u",
        str(users),
        "-r",
        str(max(1, users // 5)),
        "-t",
        f"{seconds}s",
        "--host",
        host,
        "--csv",
        str(folder / "load"),
    ]
    command += ["--only-summary", "--reset-stats", "--loglevel", "WARNING"]
    with (folder / "locust.log").open("ab") as out:
        subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, stdout=out, stderr=out, check=False, timeout=seconds + 60)
    with (folder / "load_stats.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["Name"] != "Aggregated"]


def show(what: str, rows: list[dict[str, str]]) -> None:
    """A line for each kind of request."""
    for row in rows:
        rate, failed = float(row["Requests/s"]), int(row["Failure Count"])
        figures = "  ".join(f"{row[share]:>6}" for share in ("50%", "95%", "99%", "99.9%", "100%"))
        print(f"{what:<28}{row['Name']:<8}{rate:>8.1f}/s  {figures}  {failed:>6} failed", flush=True)


def main() -> None:
    """Measure the peer, the API at rest, and the API while a video renders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=200)
    arguments = parser.parse_args()
    users = round(1.05 * arguments.rate / RATE)  # what an answer takes comes on top of the pause between two
    print(f"{'':<28}{'':<8}{'rate':>10}  {'p50':>6}  {'p95':>6}  {'p99':>6}  {'p99.9':>6}  {'most':>6}  (ms)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (128, 128), (90, 60, 50)).save(folder / "small.png")
        soundfile.write(folder / "small.wav", np.sin(np.arange(16_000) * 0.2) * 0.3, 16_000)
        small = {"LOAD_PICTURE": str(folder / "small.png"), "LOAD_SPEECH": str(folder / "small.wav")}
        peer = [sys.executable, "-m", "bentoml", "serve", "bench.load.hello:Hello", "--port", str(PEER_PORT)]
        quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
        host = f"http://127.0.0.1:{PEER_PORT}"
        with process(peer, f"{host}/livez", folder / "peer.log", **quiet):
            show("bare BentoML", locust("Caller", users, arguments.seconds, host, folder))
        host = f"http://127.0.0.1:{PORT}"
        serve = [sys.executable, "-m", "service.cli.main", "serve"]
        own = {"INFINITETALK_PORT": str(PORT), "INFINITETALK_DATA_DIR": str(folder / "data"), **quiet}
        with process(serve, f"{host}/readyz", folder / "serve.log", **own):
            voice, rate = soundfile.read(ROOT / "examples/en_allison.wav")
            soundfile.write(folder / "long.wav", np.tile(voice, 8), rate)
            files = {"image": (ROOT / "examples/astronaut.png").read_bytes(), "audio": (folder / "long.wav").read_bytes()}
            form = {"consent": "true", "size": "1280x720"}
            video = str(httpx.post(f"{host}/v1/videos", data=form, files=files, timeout=60).json()["id"])
            address = f"{host}/v1/videos/{video}"
            while httpx.get(address, timeout=60).json()["chunks_done"] == 0:
                time.sleep(0.5)
            for user in ("Reader", "Reader Submitter"):
                rows = locust(user, users, arguments.seconds, host, folder, LOAD_VIDEO=video, **small)
                show("API, while a video renders", rows)
            if httpx.get(address, timeout=60).json()["status"] != "in_progress":
                raise SystemExit("The video ended before the measurement did: the figures are of a machine at rest.")
            httpx.post(f"{address}/cancel", timeout=60)
            time.sleep(5)
            show("API, at rest", locust("Reader", users, arguments.seconds, host, folder, LOAD_VIDEO=video, **small))


if __name__ == "__main__":
    main()
