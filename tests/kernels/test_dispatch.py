"""Which implementation serves a call, what is said about it, and life without Triton."""

import importlib.util
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed (extra: gpu)", allow_module_level=True)

import torch

import kernels
from kernels import dispatch, self_attention
from kernels.dispatch import OVERRIDE, Option, architecture_of, choose
from kernels.self_attention import flash_attention_3

FAST, SLOW, BROKEN = Option("fast", "quick"), Option("slow", "sure"), Option("broken", "new", "it is missing a part")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_89"),
        ((12, 0), "sm_89"),
    ],
)
def test_capabilities_find_their_settings(capability: tuple[int, int], architecture: str | None) -> None:
    assert architecture_of(capability) == architecture


def test_the_first_that_can_serve_does_and_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        assert choose("thing", (BROKEN, FAST, SLOW)) == "fast"
        assert choose("thing", (BROKEN, FAST, SLOW)) == "fast"
    assert [record.getMessage() for record in caplog.records] == ["thing runs on fast: not broken: it is missing a part"]


@pytest.mark.parametrize(
    ("override", "chosen"), [("slow", "slow"), ("thing=slow", "slow"), ("other=slow", "fast"), ("odd", "fast")]
)
def test_the_override_names_one(monkeypatch: pytest.MonkeyPatch, override: str, chosen: str) -> None:
    monkeypatch.setenv(OVERRIDE, override)
    assert choose("thing", (FAST, SLOW)) == chosen


@pytest.mark.parametrize(("override", "complaint"), [("thing=odd", "it has fast, broken"), ("thing=broken", "missing a part")])
def test_an_override_that_cannot_be_met_is_an_error(monkeypatch: pytest.MonkeyPatch, override: str, complaint: str) -> None:
    monkeypatch.setenv(OVERRIDE, override)
    with pytest.raises(ValueError, match=complaint):
        choose("thing", (FAST, BROKEN))


def test_cpu_tensors_take_the_reference_and_compile_whole() -> None:
    def block(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        total, h = kernels.residual_gate_norm(x, x, gate)
        return kernels.attention(h, h, kernels.gelu_tanh(total), 2)

    x, gate = torch.randn(6, 16), torch.randn(16)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, gate), block(x, gate), atol=1e-6)


def test_everything_imports_and_runs_without_triton() -> None:
    program = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch, kernels
x = torch.randn(4, 32)
assert kernels.attention(x, x, x, 2).shape == (4, 32)
print(kernels._triton.HAVE_TRITON)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, check=False, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr[-2000:]


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        ("blocks.0.self_attn.q", "eight_bit"),
        ("blocks.39.ffn.2", "eight_bit"),
        ("blocks.3.cross_attn.o", "eight_bit"),
        ("blocks.3.cross_attn.k_img", "bf16"),
        ("blocks.3.audio_cross_attn.proj", "eight_bit"),
        ("blocks.3.audio_cross_attn.kv_linear", "bf16"),
        ("time_projection.1", "bf16"),
        ("head.head", "bf16"),
        ("a.layer.nobody.knows", "bf16"),
    ],
)
def test_layers_have_their_precision(layer: str, precision: str) -> None:
    assert kernels.layer_precision(layer) == precision


@pytest.mark.parametrize(("operator", "more"), [("gelu_tanh", ()), ("quantise_rows", (True, torch.int8))])
def test_the_reference_answers_in_the_layout_the_compiler_was_told(operator: str, more: tuple[object, ...]) -> None:
    turned = torch.randn(8, 3).t()
    torch.library.opcheck(getattr(torch.ops.infinite_talk, operator).default, (turned, *more), test_utils=("test_faketensor",))


def test_fp8_scores_are_not_sent_to_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    qk = kernels.reference.quantise_qk(torch.randn(9, 128), torch.randn(7, 128), 2, torch.float8_e4m3fn)
    arguments = (*qk, torch.randn(7, 128).half(), None, None, None, None, 2, None, torch.float16)
    with dispatch.pretend("sm_80"):
        out, _ = torch.ops.infinite_talk.eight_bit_attention(*arguments)
        assert out.isfinite().all()
        monkeypatch.setenv(OVERRIDE, "eight_bit_attention=triton")
        with pytest.raises(ValueError, match=r"sm_80 has no fp8|Triton is not installed"):
            torch.ops.infinite_talk.eight_bit_attention(*arguments)


def test_cudnn_that_fails_when_it_is_run_is_left_alone_from_then_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in for a cuDNN that takes an attention on and finds no plan; a real one needs a GPU."""
    by_torch, calls = self_attention._sdpa, []

    def no_plan(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("cuDNN Frontend error: no execution plans\nsupport the graph")
        return by_torch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(self_attention, "_sdpa", no_plan)
    monkeypatch.setattr(self_attention, "_cudnn_failures", {})
    q, k, v = torch.randn(9, 128), torch.randn(7, 128), torch.randn(7, 128)
    with caplog.at_level(logging.WARNING):
        got = self_attention.cudnn_or_fa2(q, k, v, 2, None)
    assert torch.allclose(got, kernels.reference.attention(q, k, v, 2), atol=1e-5)
    assert "no execution plans" in caplog.text
    assert "no execution plans" in str(self_attention.cudnn_obstacle(q, k, 2))


def test_running_out_of_memory_is_not_blamed_on_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("2 GiB wanted")

    monkeypatch.setattr(self_attention, "_sdpa", no_memory)
    q = torch.randn(9, 128)
    with pytest.raises(torch.OutOfMemoryError):
        self_attention.cudnn_or_fa2(q, q, q, 2, None)
    assert self_attention.cudnn_obstacle(q, q, 2) == "cuDNN is not available"


def test_old_cudnn_serves_whole_tiles_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper GPU is pretended: what is tried is the rule."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    odd, whole = (types.SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.bfloat16, shape=(n, 128)) for n in (120, 256))
    for version, expected in ((91_002, "9.15.1"), (91_501, None)):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        for q, k in ((odd, whole), (whole, odd)):
            said = self_attention.cudnn_obstacle(q, k, 1)
            assert said is None if expected is None else expected in str(said)
        assert self_attention.cudnn_obstacle(whole, whole, 1) is None


def test_flash_attention_3_is_an_error_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "attention=fa3")
    with pytest.raises(ValueError, match="flash_attn_interface"):
        torch.ops.infinite_talk.attention(*(torch.randn(8, 128) for _ in range(3)), 2, None)


@pytest.mark.parametrize("with_lse", [False, True])
def test_flash_attention_3_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch, with_lse: bool) -> None:
    """A stand-in with the package's own signature and layout, [batch, tokens, heads, channels]; the package needs a GPU."""

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None = None) -> object:
        heads = [x.transpose(1, 2) for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads, scale=softmax_scale).transpose(1, 2)
        return (out, None) if with_lse else out

    package = types.ModuleType("flash_attn_interface")
    package.__dict__["flash_attn_func"] = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    q, k, v = torch.randn(9, 128), torch.randn(7, 128), torch.randn(7, 128)
    for scale in (None, 0.3):
        got = flash_attention_3(q, k, v, 2, scale)
        assert torch.allclose(got, kernels.reference.attention(q, k, v, 2, scale), atol=1e-5)
