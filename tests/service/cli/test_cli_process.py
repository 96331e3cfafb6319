"""The real command in a process of its own: what it makes, what it says, and what signals leave behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"

_SLOW = """
import signal, sys
from pathlib import Path
# Background jobs are started deaf to SIGINT, and what nohup starts to SIGHUP; a terminal's foreground job hears both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from model_store import registry
from service.cli.main import main
from tests.engines import PatternEngine
class Slow(PatternEngine):
    frame_seconds = 0.02
    def stream(self, request, checkpoint=None, on_progress=None):
        def listen(progress):
            if progress.chunk == 1 and progress.done == 5:
                Path(sys.argv[1]).touch()
            on_progress(progress)
        return super().stream(request, checkpoint, listen)
registry.BUILT_IN = {"pattern": "__main__:Slow"}
main(sys.argv[2:])
"""


def command(*words: str, output: Path, engine: str = "pattern") -> list[str]:
    photo, voice = EXAMPLES / "astronaut.png", EXAMPLES / "en_allison.wav"
    return ["animate", str(photo), str(voice), "-o", str(output), "--engine", engine, "--size", "192x128", *words]


def environment(folder: Path) -> dict[str, str]:
    """Temporary files go where the test sees them."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "100"}


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.engines", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(folder),
        cwd=folder,
        check=False,
    )


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_video_is_made(tmp_path: Path) -> None:
    output = tmp_path / "talking.mp4"
    done = run(*command("--start", "1", "--seconds", "2.5", "--seed", "7", "--json", output=output), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result.pop("elapsed_seconds") > 0
    assert result == {
        "status": "completed",
        "output": str(output),
        "engine": "pattern",
        "width": 192,
        "height": 128,
        "frames": 63,  # 62.5, rounded up
        "seconds": 2.52,
        "seed": 7,
    }
    with av.open(str(output)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, audio.rate) == (192, 128, 16_000)
        assert sum(1 for _ in container.decode(video=0)) == 63
        assert float(video.duration * video.time_base) == float(audio.duration * audio.time_base) == 2.52
        assert "pattern" in container.metadata["comment"]
    assert left(tmp_path) == ["talking.mp4", "temporary"]

    again = run(*command("--start", "1", "--seconds", "2.5", "--seed", "7", output=tmp_path / "again.mp4"), folder=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("\n") == 1
    assert "AI-generated" in again.stdout
    assert "consent" in again.stdout
    assert (tmp_path / "again.mp4").read_bytes() == output.read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "earlier"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True), (signal.SIGHUP, 143, False)],
)
def test_a_signal_leaves_nothing_behind(number: signal.Signals, code: int, earlier: bool, tmp_path: Path) -> None:
    output, marker = tmp_path / "talking.mp4", tmp_path / "marker"
    if earlier:
        output.write_bytes(b"earlier")
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(marker), *command("--seconds", "20", output=output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    deadline = time.monotonic() + 30
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (code, "", "error: Stopped; nothing was left behind.\n")
    assert left(tmp_path) == ["marker", *(["talking.mp4"] if earlier else []), "temporary"]
    if earlier:
        assert output.read_bytes() == b"earlier"


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    wish = command("--seconds", "2", "--size", "640x640", output=tmp_path / "talking.mp4")
    arguments = [sys.executable, "-m", "tests.engines", *wish]
    done = subprocess.run(
        # No file may grow beyond 140 kB: the temporary speech (128 kB) fits, the fragments do not.
        ["bash", "-c", 'ulimit -f 140; exec "$@"', "bash", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path),
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert re.fullmatch(r"error: There is no space left to write 'talking.mp4': .*\n", done.stderr)
    assert left(tmp_path) == ["temporary"]


def test_a_terminal_sees_frames_speed_and_time_left(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "marker"), *command("--seconds", "3", output=tmp_path / "talking.mp4")],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env={**environment(tmp_path), "TERM": "xterm-256color"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(screen, 65_536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(screen)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    done = [int(match) for match in re.findall(r"(\d+)/75 frames", plain)]
    assert done == sorted(done)  # never backwards
    assert len(set(done)) > 3
    assert re.search(r"performing .*\d+\.\d fps +\d+:\d\d", plain)
    assert out.count("\n") == 1


def test_help_tells_all_and_loads_little(tmp_path: Path) -> None:
    top = run("--help", folder=tmp_path)
    assert top.returncode == 0
    for word in ("animate", "doctor", "--version"):
        assert word in top.stdout
    shown = run("animate", "-h", folder=tmp_path)
    assert shown.returncode == 0
    for word in (
        "--output",
        "--engine",
        "--resolution",
        "--size",
        "--seed",
        "--expressiveness",
        "--start",
        "--seconds",
        "Exit codes",
        "Consent",
    ):
        assert word in shown.stdout
    heavy = ("numpy", "av", "PIL", "cv2", "soxr", "torch", "bentoml")
    code = f"import sys, service.cli.main; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(tmp_path), cwd=ROOT
    )
    assert loaded.stdout.strip() == "[]"


def test_version(tmp_path: Path) -> None:
    done = run("--version", folder=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"infinitetalk \d+\.\d+\.\d+\n", done.stdout)


def test_doctor_tells_what_can_run(tmp_path: Path) -> None:
    done = run("doctor", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["can_run"] is True
    found = {(finding["topic"], finding["name"]): finding for finding in report["findings"]}
    assert found["engine", "pattern"]["ok"] is True
    assert found["codec", "libx264"]["ok"] is True
    assert found["machine", "cores"]["detail"] == str(len(os.sched_getaffinity(0)))
    assert {"python", "cores", "memory", "disk"} <= {name for topic, name in found if topic == "machine"}
    shown = run("doctor", folder=tmp_path)
    assert shown.returncode == 0
    assert re.search(r"ok +engine pattern", shown.stdout)
    assert "This machine can make videos." in shown.stdout
