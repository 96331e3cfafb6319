"""Clients nobody here wrote: curl, the openai package, BentoML's client, FFmpeg and a browser."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from pathlib import Path

import av
import bentoml
import openai
import pytest
from bentoml.exceptions import BentoMLException
from servers import ROOT, Client, Deployment, eventually

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other people's packages, which are met as they are


def pictures_of(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_lines_of_the_readme(deployment: Deployment, tmp_path: Path) -> None:
    env = {**os.environ, "API": deployment.url, "OUT": str(tmp_path), "MORE": "-F seconds=1.28 -F seed=5"}
    done = subprocess.run(
        ["bash", ROOT / "examples" / "api.sh"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "event: video.completed" in done.stdout
    assert "stream/video.m3u8" in done.stdout
    (video,) = tmp_path.glob("*.mp4")
    assert pictures_of(video.read_bytes()) == 32
    assert list(tmp_path.glob("*.jpg"))


@pytest.mark.parametrize("which", ["client", "s3_client"])
def test_openai(request: pytest.FixtureRequest, s3_deployment: Deployment, which: str, picture: Path, speech: Path) -> None:
    s3_deployment.crew(1)
    url = request.getfixturevalue(which).url
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none needed yet", max_retries=0)
    audio = client.files.create(file=speech, purpose="user_data")
    assert client.files.retrieve(audio.id).bytes == speech.stat().st_size
    video = client.videos.create(
        prompt="a calm speaker",
        input_reference=picture,
        size="128x128",  # type: ignore[arg-type] # the client's own names are of another model's sizes
        extra_body={"audio": audio.id, "consent": True, "metadata": {"order": "17"}},
    )
    assert video.status in ("queued", "in_progress")
    done = client.videos.poll(video.id, poll_interval_ms=100)
    assert (done.status, done.progress, done.prompt, done.size) == ("completed", 100, "a calm speaker", "128x128")
    assert video.id in [entry.id for entry in client.videos.list(limit=5)]
    assert pictures_of(client.videos.download_content(video.id).read()) == 160
    assert client.videos.download_content(video.id, variant="thumbnail").read().startswith(b"\xff\xd8")
    remix = client.videos.remix(video.id, prompt="a lively speaker")
    assert remix.remixed_from_video_id == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve(video.id)
    assert missing.value.code == "video_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="x", input_reference=picture, extra_body={"audio": audio.id})
    assert (refused.value.code, refused.value.param) == ("consent_required", "consent")
    client.videos.delete(remix.id)
    assert client.files.delete(audio.id).deleted


def test_bentoml(client: Client, deployment: Deployment, picture: Path, speech: Path) -> None:
    with bentoml.SyncHTTPClient(deployment.url) as bento:
        video = bento.generate(image=picture, audio=speech, consent=True, size="128x128", seconds=1.28, metadata={"a": "b"})
        assert client.wait(video["id"])["metadata"] == {"a": "b"}
        with pytest.raises(BentoMLException, match="consent_required"):
            bento.generate(image=picture, audio=speech)


@pytest.mark.parametrize("which", ["client", "s3_client"])
def test_ffmpeg_plays_while_it_is_made(request: pytest.FixtureRequest, s3_deployment: Deployment, which: str) -> None:
    s3_deployment.crew(1)
    client: Client = request.getfixturevalue(which)
    video_id = client.make(options={"frame_seconds": 0.02})
    assert client.failure(client.http.get(f"/v1/videos/{video_id}/stream.m3u8"))[:2] == (404, "stream_not_ready")
    client.wait_for_chunks(video_id, 1)
    url = f"{client.url}/v1/videos/{video_id}/stream.m3u8"
    seen: dict[str, list[float]] = {"video": [], "audio": []}
    unfinished_when_first_seen = False
    with av.open(url, options={"live_start_index": "0"}, timeout=30) as player:
        for frame in player.decode(player.streams.video[0], player.streams.audio[0]):
            kind = "video" if isinstance(frame, av.VideoFrame) else "audio"
            if not seen["video"]:
                unfinished_when_first_seen = client.get(video_id)["status"] == "in_progress"
            seen[kind].append(float(frame.time or 0))
    assert unfinished_when_first_seen, "it played before it was made"
    assert len(seen["video"]) == 160
    assert seen["video"] == sorted(seen["video"])
    assert abs(seen["audio"][-1] - seen["video"][-1]) < 0.2, "sound and picture end together"
    assert "#EXT-X-ENDLIST" in client.http.get(f"/v1/videos/{video_id}/stream/video.m3u8").text


PLAYER = """
<video muted></video><script>
window.seen = 0; window.ended = false;
const video = document.querySelector('video');
video.addEventListener('timeupdate', () => { window.seen = video.currentTime; });
video.addEventListener('ended', () => { window.ended = true; });
video.src = URL; video.play();
</script>
"""


@pytest.mark.browser
def test_a_browser_plays_while_it_is_made(client: Client, deployment: Deployment) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("there is no /usr/bin/chromium (Debian's package chromium)")
    video_id = client.make(options={"frame_seconds": 0.03})
    client.wait_for_chunks(video_id, 1)
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=str(chromium), args=[*flags, "--disable-background-networking"])
        try:
            page = browser.new_page()
            page.goto(f"{deployment.url}/livez")  # the same origin as the playlist
            page.set_content(PLAYER.replace("URL", f"'{deployment.url}/v1/videos/{video_id}/stream.m3u8'"))
            page.wait_for_function("window.seen > 0", timeout=30_000)
            assert client.get(video_id)["status"] == "in_progress", "it plays before it is made"
            page.wait_for_function("window.ended && window.seen > 1", timeout=60_000)
        finally:
            browser.close()


def test_a_reader_that_goes_away_takes_nothing_along(client: Client) -> None:
    video_id = client.make(options={"frame_seconds": 0.01})

    def glance() -> None:
        with client.twin() as reader, reader.http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            next(answer.iter_lines())

    threads = [threading.Thread(target=glance) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.wait(video_id)
    assert eventually(lambda: client.http.get("/readyz").status_code == 200, "the API goes on")
