"""The bench without a GPU: cases that compute what they claim, bars that are judged, settings that can be tried."""

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed (extra: gpu)", allow_module_level=True)

from kernels.bench import __main__ as bench
from kernels.bench import measure as timing
from kernels.bench.case import Bar, Case, Shape
from kernels.bench.cases import CASES
from kernels.bench.measure import Accuracy, Result, Row, measure
from kernels.bench.verdict import verdicts
from kernels.settings import ARCHITECTURES, Launch, kernel_names

SMALL = Shape("small", 3, 8, 13)  # 312 tokens: more than a sample, three groups of keys
LIMITS: dict[timing.Rate, float] = {"bytes": 1e12, "bf16": 1e12, "int8": 1e12, "fp8": 1e12}
NO_PEER_NEEDED = (
    "torch.compile",
    "sdpa flash",
    "sdpa cudnn",
    "2 x sdpa cudnn + add",
    "flex",
)  # minutes to compile, or no CPU at all


def with_bar(case: Case, bar: Bar) -> Case:
    return Case(case.name, case.rate, case.work, case.build, bar, case.absent)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_compute_what_their_truth_says(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the reference answers, so that what is tried here is the case: data, sample, truth and peers."""
    monkeypatch.setattr(timing, "milliseconds", lambda call: 1.0)
    build = case.build

    def without_compilers(shape: Shape, device: str) -> timing.Built:
        built = build(shape, device)
        peers = {name: call for name, call in built.peers.items() if name not in NO_PEER_NEEDED}
        return timing.Built(built.ours, peers, built.sample, built.exact, built.alike)

    bar = Bar(cosine=case.bar.cosine, relative_l1=case.bar.relative_l1)
    result = measure(Case(case.name, case.rate, case.work, without_compilers, bar), SMALL, LIMITS, "cpu")
    assert [row.obstacle for row in result.rows] == [None] * len(result.rows)
    assert all(verdict.met for verdict in verdicts(result)), list(verdicts(result))


class OutOfResources(Exception):
    """Triton's errors are no RuntimeErrors, and some errors say nothing."""


@pytest.mark.parametrize("error", [OutOfResources("shared memory\n(of which there is little)"), AssertionError(), RuntimeError()])
def test_what_fails_is_a_row_and_not_the_end(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "milliseconds", lambda call: 1.0)

    def fail(*_: object) -> timing.Built:
        raise error

    def peer_fails(*_: object) -> timing.Built:
        return timing.Built(lambda: None, {"peer": fail, "other": lambda: None})

    said = "shared memory" if str(error) else type(error).__name__
    case = CASES[0]
    rows = measure(Case("", case.rate, case.work, fail), SMALL, LIMITS, "cpu").rows
    assert [row.obstacle for row in rows] == [said]
    rows = measure(Case("", case.rate, case.work, peer_fails), SMALL, LIMITS, "cpu").rows
    assert [row.obstacle for row in rows] == [None, said, None]


def test_a_run_that_is_cut_short_leaves_its_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way of a GPU's bench on a CPU: its clock, its name and its ceilings are stand-ins."""
    measured = 0

    def cut_short(case: Case, shape: Shape, limits: dict[timing.Rate, float]) -> Result:
        nonlocal measured
        measured += 1
        if measured == 3:
            raise KeyboardInterrupt
        return Result(case, shape, (Row("ours", 1.0), Row("torch.compile", 2.0)))

    monkeypatch.setattr(bench, "measure", cut_short)
    monkeypatch.setattr(bench, "served", lambda case: True)
    monkeypatch.setattr(bench, "ceilings", lambda: LIMITS)
    monkeypatch.setattr(bench, "versions", lambda: "today")
    monkeypatch.setattr(bench, "HAVE_TRITON", True)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr("sys.argv", ["bench", "--save"])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    (saved,) = (tmp_path / "results").iterdir()
    text = saved.read_text()
    assert saved.name.startswith("nvidia-x-")
    assert [case.name in text for case in CASES[:3]] == [True, True, False]
    assert "2.00 times torch.compile | met" in text
    capsys.readouterr()


def result(bar: Bar, *rows: Row, rounding: float | None = None) -> Result:
    return Result(with_bar(CASES[0], bar), SMALL, rows, rounding)


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (1.3, False)])
def test_speed_is_judged_beside_the_fastest_peer_that_ran(ours: float, met: bool) -> None:
    bar = Bar(times=((("slow", "quick", "absent"), 1.2),))
    rows = (Row("ours", ours), Row("slow", 9.0), Row("quick", 1.25), Row("absent", obstacle="not here"), Row("other", 0.1))
    (verdict,) = verdicts(result(bar, *rows))
    assert verdict.met is met
    assert "quick" in verdict.found


def test_what_cannot_be_judged_is_said() -> None:
    bar = Bar(times=((("absent",), 1.2),))
    (verdict,) = verdicts(result(bar, Row("ours", 1.0), Row("absent", obstacle="not here")))
    assert (verdict.found, verdict.met) == ("none of them ran", None)
    (verdict,) = verdicts(result(bar, Row("ours", obstacle="not on this device: no fp8")))
    assert verdict.met is None


@pytest.mark.parametrize(("error", "met"), [(1.9e-3, True), (2.1e-3, False)])
def test_bf16_may_err_twice_as_much_as_torch(error: float, met: bool) -> None:
    ours = Row("ours", 1.0, accuracy=Accuracy(1.0, 0.0, 0.0, None, error))
    (verdict,) = verdicts(result(Bar(), ours, rounding=1e-3))
    assert verdict.met is met
    torch_s = Row("sdpa", 1.0, accuracy=Accuracy(1.0, 0.0, 0.0, None, 1e-3))
    (verdict,) = verdicts(result(Bar(), ours, torch_s, rounding=9.0))
    assert verdict.met is met


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra: gpu)")
def test_every_kernel_can_be_tuned() -> None:
    from kernels.bench.tune import CASE_OF, candidates, setting_text  # noqa: PLC0415 - needs Triton

    assert set(CASE_OF) == set(kernel_names())
    assert set(CASE_OF.values()) <= {case.name for case in CASES}
    for kernel in kernel_names():
        for architecture in ARCHITECTURES:
            tried = candidates(kernel, architecture)
            assert len(set(tried)) == len(tried) > 1
            assert all(eval(setting_text(launch), {"Launch": Launch}) == launch for launch in tried)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra: gpu)")
def test_a_candidate_that_spills_is_named_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kernels.bench import tune  # noqa: PLC0415 - needs Triton

    monkeypatch.setattr("sys.argv", ["tune", "--only", "flash_16bit"])
    monkeypatch.setattr(tune, "ARCHITECTURES", ("sm_80",))
    monkeypatch.setattr(tune, "candidates", lambda *_: [Launch(num_warps=4, num_stages=2, block_m=128, block_n=64)])
    assert tune.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("shipped" in line and "spills" not in line for line in lines)
    assert any("num_warps=4" in line and "spills registers" in line for line in lines)
