"""Two processes that share the tokens of one forward predict what one process predicts alone."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

import tiny_transformer as tiny  # noqa: E402
import torch.distributed as dist  # noqa: E402

from model_store.infinitetalk.attention import Attention  # noqa: E402
from model_store.infinitetalk.parallel import SequenceShare, share_tokens  # noqa: E402
from model_store.infinitetalk.step_skipping import KeptBlocks  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"),
    pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked"),
]
SECONDS = 60
QUICK = Attention(eight_bit=True, keep=0.9)
PROCESSES = 2


def process(rank: int, meeting: str, results: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    try:
        model, given = tiny.transformer(), tiny.inputs()
        share_tokens(model)
        kept = KeptBlocks()
        whole = model(timestep=700.0, **given, kept=kept)
        skipped = model(timestep=700.0, **given, kept=kept, skip=True)
        quick = model(timestep=700.0, **given, how=QUICK)
        tokens = torch.arange(12 * 3).view(12, 3)
        share = SequenceShare()
        part = share.split(tokens, frames=2)
        try:
            model(timestep=700.0, **tiny.inputs(people=2))
            refused = ""
        except ValueError as error:
            refused = str(error)
        results.send((whole.numpy(), skipped.numpy(), quick.numpy(), part.numpy(), share.join(part, frames=2).numpy(), refused))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:  # type: ignore[type-arg]
    meeting: Path = tmp_path_factory.mktemp("meeting") / "point"
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        context.Process(target=process, args=(rank, f"file://{meeting}", pipes[rank][1]), daemon=True)
        for rank in range(PROCESSES)
    ]
    for one in processes:
        one.start()
    try:
        found = []
        for receiver, _ in pipes:
            assert receiver.poll(SECONDS), "a process does not answer"
            found.append(receiver.recv())
        return found
    finally:
        for one in processes:
            one.join(5)
            one.kill()


def test_two_processes_predict_what_one_does(results: list[tuple]) -> None:  # type: ignore[type-arg]
    wanted = tiny.transformer()(timestep=700.0, **tiny.inputs())
    for whole, skipped, quick, *_ in results:
        assert tiny.relative_error(torch.from_numpy(whole), wanted) < 1e-5
        assert tiny.relative_error(torch.from_numpy(skipped), wanted) < 1e-5
        # Keys are grouped otherwise than in one process, so 8 bits round them otherwise; both are close to what is exact.
        assert 1e-5 < tiny.relative_error(torch.from_numpy(quick), wanted) < 0.02


def test_every_process_has_a_part_of_every_frame(results: list[tuple]) -> None:  # type: ignore[type-arg]
    tokens = torch.arange(12 * 3).view(2, 6, 3)
    for rank, (_, _, _, part, joined, _) in enumerate(results):
        assert torch.equal(torch.from_numpy(part), tokens[:, 3 * rank : 3 * rank + 3].flatten(0, 1))
        assert torch.equal(torch.from_numpy(joined), tokens.flatten(0, 1))


def test_several_voices_are_refused(results: list[tuple]) -> None:  # type: ignore[type-arg]
    assert all("several voices" in refused for *_, refused in results)
