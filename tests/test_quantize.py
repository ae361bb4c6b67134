"""8 bits: kernels against plain arithmetic, the loss in latents, and what is chosen on which machine."""

import importlib.util
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from longlive_core.config import LONGLIVE_1_3B, ModelConfig, SigmaConfig, WindowConfig
from longlive_core.geometry import tokens_per_frame
from longlive_core.memory import Setting, smaller, transformer_bytes, weight_bytes
from longlive_core.model import linear8
from longlive_core.model.cache import SmallBuffer
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Linear
from longlive_core.model.linear8 import FP8, plain, plain_unscaled, shrink
from longlive_core.rollout.noise import SeededNoise
from longlive_core.rollout.rollout import Switch, rollout
from longlive_core.rollout.sigmas import shifted_sigmas
from longlive_core.schedule.schedule import Policy
from longlive_core.weights import arithmetic
from longlive_core.weights.arithmetic import KERNELS, Kernel, Machine, Work, choose, settle_arithmetic
from longlive_core.weights.checkpoints import PRECISIONS, load_transformer
from longlive_core.weights.quantize import layer_linears, multiply_with, pass_linears, quantize, to_8_bits

_spec = importlib.util.spec_from_file_location("golden_runs", Path(__file__).with_name("test_golden.py"))
golden_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_runs)

ALL_KERNELS = [kernel for kernels in KERNELS.values() for kernel in kernels]
KERNEL_NAMES = [kernel.multiply.__name__ for kernel in ALL_KERNELS]
CARD = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card"))
AGREE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}  # kernel and plain: order of sums; one or two roundings
LOSS = {FP8: 0.04, torch.int8: 0.01}  # relative rms of one linear: 3 bits of mantissa; 127 steps to the peak
CONFIG = ModelConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=16, text_tokens=8, freq_dim=16)
WORK = Work((((64, 64), 6), ((128, 64), 1), ((64, 128), 1)), torch.float32)
HOPPER = Machine(torch.device("cpu"), "NVIDIA H100", (9, 0))
AMPERE = Machine(torch.device("cpu"), "NVIDIA RTX 3090", (8, 6))


def relative(ours: Tensor, right: Tensor) -> float:
    """Relative rms error."""
    return float((ours.double() - right.double()).norm() / right.double().norm())


def operands(rows: tuple[int, ...], dtype: torch.dtype, weights: torch.dtype, device: str = "cpu"):
    """x [*rows, 96] with tokens of very different size, the exact weight [80, 96], its 8 bits, and a bias."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, 96, generator=random) * torch.logspace(-2, 2, rows[-1])[:, None]
    weight, bias = torch.randn(80, 96, generator=random), torch.randn(80, generator=random)
    x, bias = x.to(device, dtype), bias.to(device, dtype)
    return x, weight.to(device), *to_8_bits(weight.to(device), weights), bias


@pytest.fixture
def model() -> CausalWan:
    torch.manual_seed(0)
    return CausalWan(CONFIG).eval().requires_grad_(False)


@pytest.mark.parametrize("device", ["cpu", CARD])
@pytest.mark.parametrize("rows", [(40,), (2, 24), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ALL_KERNELS, ids=KERNEL_NAMES)
def test_a_kernel_is_plain_arithmetic(kernel: Kernel, dtype, rows, device) -> None:
    """The kernel call is all that differs; rows too few for the integer product are padded."""
    if device == "cuda" and dtype == torch.float32:
        pytest.skip("on cards the arithmetic beside 8 bits is bf16")
    x, _, small, scale, bias = operands(rows, dtype, kernel.weights, device)
    ours = kernel.multiply(x, small, scale, bias)
    assert ours.dtype == dtype and ours.shape == (*rows, 80)
    assert relative(ours, kernel.meaning(x, small, scale, bias)) < AGREE[dtype]


@pytest.mark.parametrize("dtype", [FP8, torch.int8], ids=["fp8", "int8"])
def test_plain_arithmetic_is_near_the_exact_one(dtype) -> None:
    x, weight, small, scale, bias = operands((2, 24), torch.float32, dtype)
    exact, ours = F.linear(x, weight, bias), plain(x, small, scale, bias)
    assert relative(ours, exact) < LOSS[dtype]
    by_token = (ours - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert by_token.max() < 1.5 * LOSS[dtype], "a scale a token: small tokens are as exact as large ones"


@pytest.mark.parametrize("dtype", [FP8, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16, torch.float16])
def test_shrinking_neither_overflows_nor_divides_by_zero(dtype, wide) -> None:
    rows = torch.tensor([[0.0] * 4, [6e4, -6e4, 1.0, 0.0], [1e-6, 1e-7, 0.0, -1e-6], [3.0, -2.0, 1.0, 0.5]])
    small, scale = shrink(rows.to(wide), dtype)
    back = small.float() * scale
    assert torch.isfinite(back).all() and not back[0].any()
    peaks = rows.to(wide).float().abs().amax(1)
    assert_close(back.abs().amax(1), peaks, atol=0, rtol=1e-5)
    assert ((back - rows.to(wide).float()).abs() <= peaks[:, None] / 16).all()


def test_quantize_changes_the_layers_matrices_and_nothing_else(model) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    quantize(model, torch.int8, linear8.int8)
    linears = layer_linears(model)
    assert len(linears) == CONFIG.num_layers * 10
    for name, weight in model.state_dict().items():
        if name.removesuffix(".weight") in linears:
            assert weight.dtype == torch.int8
            scale = linears[name.removesuffix(".weight")].scale
            assert relative(weight.float() * scale[:, None], before[name]) < LOSS[torch.int8]
        else:
            assert torch.equal(weight, before[name])
    fast = {name for name, linear in linears.items() if linear.multiply}
    assert fast == set(pass_linears(model)) and len(fast) == CONFIG.num_layers * 8
    outside = (m for n, m in model.named_modules() if isinstance(m, Linear) and not n.startswith("layers"))
    assert not any(linear.multiply for linear in outside)


def test_without_a_kernel_weights_are_widened(model) -> None:
    exact = model.layers[0].ffn[0].weight.clone()
    quantize(model, FP8, linear8.fp8_by_rows)
    multiply_with(model, None)
    linear, x = model.layers[0].ffn[0], torch.randn(3, 64)
    widened = linear.weight.float() * linear.scale[:, None]
    assert relative(widened, exact) < LOSS[FP8]
    assert_close(linear(x), F.linear(x, widened, linear.bias))


@pytest.mark.parametrize("kernel", ALL_KERNELS, ids=KERNEL_NAMES)
def test_a_layer_with_a_kernel_is_one_graph(kernel: Kernel, model) -> None:
    quantize(model, kernel.weights, kernel.multiply)
    linear, x = model.layers[0].ffn[0], torch.randn(1, 24, 64)
    traced = torch.compile(linear, backend="aot_eager", fullgraph=True)
    assert_close(traced(x), linear(x))


@pytest.mark.parametrize("kernel", ALL_KERNELS, ids=KERNEL_NAMES)
def test_a_kernel_may_be_compiled_with_what_stands_around_it(kernel: Kernel) -> None:
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    x, _, *matrix = operands((2, 24), torch.float32, kernel.weights)
    plainly = arithmetic.products(kernel.multiply, x, [tuple(matrix)])
    compiled = torch.compile(arithmetic.products, dynamic=False)
    assert relative(compiled(kernel.multiply, x, [tuple(matrix)]), plainly) < AGREE[torch.bfloat16]


def test_kernels_for_compiled_layers_are_timed_compiled(monkeypatch) -> None:
    """And where nothing can be compiled, as they stand."""
    compiled = []

    def compiler(function, **_):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    swift = seconds_by({"fp8_unscaled": 0.5})
    assert choose("fp8-fast", WORK, HOPPER, seconds=swift).multiply is linear8.fp8_unscaled and not compiled
    assert choose("fp8-fast", WORK, HOPPER, seconds=swift, is_compiled=True).multiply is linear8.fp8_unscaled
    assert compiled == [arithmetic.products]

    def no_compiler(*_, **__):
        def fails(*_):
            raise RuntimeError("Compiler: cl is not found.")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)

    def seconds(call) -> float:
        call()
        return swift(call)

    assert (
        choose("fp8-fast", WORK, HOPPER, seconds=seconds, is_compiled=True).multiply is linear8.fp8_unscaled
    )


def golden(dtype: torch.dtype | None = None, multiply=None, has_small_cache=False) -> list[Tensor]:
    """Latents by block of the golden scenario with a late switch."""
    recorded = golden_runs.Recorded(Path(__file__).parent / "golden" / "dit_switch_late_global.safetensors")
    model = recorded.model()
    if dtype:
        quantize(model, dtype, multiply)
    window = replace(recorded.window(), has_small_cache=has_small_cache)
    blocks = range(recorded.frames // recorded.block)
    made = rollout(model, recorded.script, recorded.noise, recorded.sigmas(), window, blocks)
    return [block.latents for block in made]


@pytest.fixture(scope="module")
def exact_golden() -> list[Tensor]:
    return golden()


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        (0.03, {"dtype": FP8, "multiply": plain}),
        (0.03, {"dtype": FP8, "multiply": plain_unscaled}),
        (0.007, {"dtype": torch.int8, "multiply": plain}),
        (0.006, {"has_small_cache": True}),
    ],
    ids=["fp8-fast", "fp8-fast unscaled", "int8", "fp8 cache"],
)
def test_latents_stay_near_and_errors_do_not_pile_up(limit, options, exact_golden) -> None:
    """Every block of a rollout with a switch is as near to fp32 as docs/precision.md says, also the last."""
    errors = [relative(*pair) for pair in zip(golden(**options), exact_golden, strict=True)]
    assert 0 < max(errors) < limit
    assert errors[-1] < 1.5 * errors[0]


def seconds_by(speed: dict[str, float]):
    """A stopwatch that knows how long each kernel takes; the wide arithmetic takes 1 a matrix."""

    def seconds(call) -> float:
        return speed.get(call.__defaults__[0].__name__, 1.0)

    return seconds


@pytest.mark.parametrize(
    ("speed", "chosen"),
    [
        ({"fp8_by_rows": 0.5, "fp8_unscaled": 0.8}, linear8.fp8_by_rows),
        ({"fp8_by_rows": 0.9, "fp8_unscaled": 0.8}, linear8.fp8_unscaled),
        ({"fp8_by_rows": 1.5, "fp8_unscaled": 1.2}, None),
    ],
)
def test_the_fastest_is_chosen_and_slower_than_wide_is_said(speed, chosen) -> None:
    found = choose("fp8-fast", WORK, HOPPER, seconds=seconds_by(speed))
    assert found.multiply is chosen
    if chosen:
        assert f"{1 / speed[chosen.__name__]:.2g} times as fast as in fp32" in found.note
    else:
        assert "0.83 times the speed of fp32 on NVIDIA H100; so weights stay in 8 bits" in found.note


def test_a_card_too_old_for_fp8_is_told_and_takes_int8() -> None:
    found = choose("fp8-fast", WORK, AMPERE, seconds=seconds_by({}))
    assert found.multiply is None
    assert "needs a card of compute capability 8.9" in found.note and "8.6, try int8" in found.note
    found = choose("int8", WORK, AMPERE, seconds=seconds_by({"int8": 0.5}))
    assert found.multiply is linear8.int8


def failing(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    raise RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul\nand a long stack"
    )


def wrong(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return -plain(x, weight, scale, bias)


def not_finite(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, weight, scale, bias) * math.nan


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(failing, "CUBLAS_STATUS_NOT_SUPPORTED"), (wrong, "off by 200%"), (not_finite, "off by inf%")],
)
def test_a_kernel_that_fails_or_is_wrong_gives_way_to_the_next(bad, reason) -> None:
    kernels = [Kernel(bad, FP8), Kernel(linear8.fp8_unscaled, FP8, linear8.plain_unscaled)]
    swift = {"fp8_unscaled": 0.5, bad.__name__: 0.1}
    found = choose("fp8-fast", WORK, HOPPER, kernels, seconds_by(swift))
    assert found.multiply is linear8.fp8_unscaled
    found = choose("fp8-fast", WORK, HOPPER, kernels[:1], seconds_by(swift))
    assert found.multiply is None and "does not run on NVIDIA H100" in found.note
    assert reason in found.note and "\n" not in found.note


def test_no_memory_to_measure_is_no_crash() -> None:
    def no_memory(call) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = choose("int8", WORK, HOPPER, seconds=no_memory)
    assert found.multiply is None and "out of memory" in found.note


def test_this_machine_is_measured_once_and_the_model_told(model, monkeypatch) -> None:
    asked = []

    def seconds(call) -> float:
        asked.append(call)
        return seconds_by({"int8": 0.25})(call)

    monkeypatch.setattr(arithmetic, "choose", partial(choose, seconds=seconds))
    arithmetic.choose_here.cache_clear()
    quantize(model, torch.int8)
    notes = [settle_arithmetic(model, "int8", torch.device("cpu")) for _ in range(2)]
    arithmetic.choose_here.cache_clear()
    assert notes[0] == notes[1] == ("int8: the layers' matrices run 4 times as fast as in fp32",)
    assert len(asked) == 2, "two kernels, once"
    assert all(linear.multiply is linear8.int8 for linear in pass_linears(model).values())
    assert settle_arithmetic(model, "bf16", torch.device("cpu")) == ()


def test_the_work_of_a_layer_is_its_matrices() -> None:
    with torch.device("meta"):
        work = Work.of(CausalWan(replace(LONGLIVE_1_3B.model, num_layers=2)))
    assert dict(work.shapes) == {(1536, 1536): 6, (8960, 1536): 1, (1536, 8960): 1}


@pytest.mark.parametrize("precision", ["fp8-fast", "int8"])
def test_files_load_into_8_bits(precision, model, tmp_path) -> None:
    from safetensors.torch import save_file

    from longlive_core.weights.names import foreign_name

    save_file({foreign_name(n, "wan"): t for n, t in model.state_dict().items()}, tmp_path / "m.safetensors")
    loaded = load_transformer(tmp_path / "m.safetensors", precision=precision, num_heads=2).transformer
    for name, linear in layer_linears(loaded).items():
        exact = model.get_submodule(name).weight
        assert linear.weight.dtype == PRECISIONS[precision] and linear.multiply is None
        assert relative(linear.weight.float() * linear.scale[:, None], exact) < LOSS[linear.weight.dtype]


def test_the_plan_knows_8_bits() -> None:
    few = replace(LONGLIVE_1_3B.model, num_layers=4)
    kinds = ("bf16", "fp8", "fp8-fast", "int8")
    weights = {precision: weight_bytes(few, precision, torch.bfloat16) for precision in kinds}
    assert weights["fp8"] == weights["fp8-fast"] == weights["int8"] < 0.6 * weights["bf16"]
    preset = replace(LONGLIVE_1_3B, model=replace(CONFIG, num_heads=1))
    settings = [Setting(64, 64, window=WindowConfig(has_small_cache=small)) for small in (False, True)]
    cache = [transformer_bytes(preset, setting, torch.bfloat16)[0] for setting in settings]
    heads = 2 * CONFIG.num_layers * 12 * tokens_per_frame(8, 8)
    assert cache[0] - cache[1] == heads * (2 * 64 - (64 + 4)), "8 bits, and a scale a head"
    assert {setting.precision for setting in smaller(Setting(832, 480, "int8"))} == {"int8"}


def test_a_small_buffer_gives_back_what_went_in() -> None:
    like, wide = torch.empty(0, dtype=torch.bfloat16), torch.randn(2, 6, 3, 32).bfloat16()
    buffer = SmallBuffer(like, (2, 12, 3, 32))
    buffer[:, 6:12] = wide
    back = buffer[:, 6:12]
    assert back.dtype == torch.bfloat16 and relative(back, wide) < LOSS[FP8]
    buffer[:, 6:12] = back
    assert relative(buffer[:, 6:12], back) < 3e-3, "in and out again changes no more than bf16's rounding"
    loud = wide.clone()
    loud[:, 0, 0] *= 1000
    buffer[:, :6] = loud
    assert torch.equal(buffer[:, 1:6], back[:, 1:]), "a loud token spoils only itself"


@pytest.mark.parametrize(
    ("window", "policy"),
    [
        (WindowConfig(), Policy.RECACHE),
        (WindowConfig(3, 1, 7), Policy.REFRESH),
        (WindowConfig(endless=True), Policy.RECACHE),
        (WindowConfig(endless=True), Policy.CUT),
    ],
    ids=["12/3", "7/1", "endless", "endless, cut"],
)
def test_a_small_cache_serves_every_window_and_switch(window, policy, model) -> None:
    random, shape = torch.Generator().manual_seed(1), (2, 16, 3, 4, 4)
    prompts = torch.randn(2, 1, 8, 16, generator=random)
    script = {0: Switch(prompts[0]), 5: Switch(prompts[1], policy)}.get

    def latents(window: WindowConfig) -> Tensor:
        made = rollout(model, script, SeededNoise(0, shape), shifted_sigmas(SigmaConfig()), window, range(8))
        return torch.cat([block.latents for block in made], dim=2)

    error = relative(latents(replace(window, has_small_cache=True)), latents(window))
    assert 0 < error < 0.05
