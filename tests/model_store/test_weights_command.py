"""`infinitetalk models` as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store.catalogue import component
from service.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["models", *words])
    out, err = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder laid out as the hub, with a speech encoder of no use but of the right form."""
    part = component("speech-encoder")
    path = tmp_path / "mirror" / part.repository / part.files[0].path
    path.parent.mkdir(parents=True)
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return tmp_path / "mirror"


def test_pull_list_verify(capsys: pytest.CaptureFixture[str], mirror: Path, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "cache"))
    code, out, _ = run(capsys, "pull", "speech-encoder", "--source", str(mirror), *cache)
    assert (code, "speech-encoder: complete in" in out) == (0, True)
    code, out, _ = run(capsys, "list", "--json", *cache)
    states = {entry["name"]: entry["state"] for entry in json.loads(out)}
    assert (code, states["speech-encoder"], states["base"]) == (0, "here", "absent")
    code, out, _ = run(capsys, "list", *cache)
    assert code == 0
    assert "65.6" in out
    assert run(capsys, "verify", "speech-encoder", *cache)[0] == 0

    next((tmp_path / "cache").rglob("model.safetensors")).write_bytes(b"damaged")
    code, out, err = run(capsys, "verify", "speech-encoder", *cache)
    assert code == 6
    assert "TencentGameMate/chinese-wav2vec2-base/model.safetensors is damaged" in err
    code, out, _ = run(capsys, "verify", "speech-encoder", "--json", *cache)
    assert (code, json.loads(out)["problems"][0]["code"]) == (6, "weights_damaged")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pull", "nothing"), 2, "no component 'nothing'"),
        (("pull", "--variant", "3-step"), 2, "no variant '3-step'"),
        (("pull", "vae", "--source", "/nowhere"), 2, "not a folder"),
        (("verify", "vae"), 6, "Wan2.1_VAE.pth is missing"),
    ],
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    got, out, err = run(capsys, *words, "--cache", str(tmp_path))
    assert got == code
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
