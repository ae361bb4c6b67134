"""8 bits: fp8 and int8 products against plain arithmetic, the loss in latents, and where they run."""

import importlib.util
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.plain_products import attend_by, multiply_by, plain, plain_attention, plain_unscaled
from longlive_core.config import LONGLIVE_1_3B, ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.fast import int8, optional, products
from longlive_core.fast.int8 import PRODUCT, int8_linear, int8_trial
from longlive_core.fast.optional import GAIN, Source, Trial, tried
from longlive_core.fast.products import FP8, fp8_linear, quantise
from longlive_core.geometry import tokens_per_frame
from longlive_core.memory import Setting, smaller, transformer_bytes, weight_bytes
from longlive_core.model.attention import sdpa
from longlive_core.model.cache import QuantisedBuffer
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Linear
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Switch, rollout
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.quantize import (
    PRECISIONS,
    layer_linears,
    pass_linears,
    precision_of,
    quantize,
    to_8_bits,
    use_products,
)

_spec = importlib.util.spec_from_file_location("golden_runs", Path(__file__).with_name("test_golden.py"))
golden_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_runs)

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
AGREE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}  # kernel and plain: order of sums; one or two roundings
LOSS = {FP8: 0.04, torch.int8: 0.01}  # relative rms of one linear: 3 bits of mantissa; 127 steps to the peak
CONFIG = ModelConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=16, text_tokens=8, freq_dim=16)


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


def needs_fp8_products(device: str, dtype: torch.dtype) -> None:
    """Skip where this torch has no such product: CPUs have none in 2.6, and GPUs before RTX 40 and H100."""
    one, small = torch.ones((), device=device), torch.ones(16, 16, device=device).to(FP8)
    try:
        torch._scaled_mm(small, small.t(), one, one, out_dtype=dtype)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"torch {torch.__version__} multiplies no fp8 here: {str(error)[:80]}")


@pytest.fixture(scope="session")
def kitchen() -> None:
    """Skip where comfy-kitchen cannot be imported."""
    try:
        PRODUCT.load()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("rows", [(40,), (2, 24), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fp8_product_is_plain_arithmetic(dtype, rows, device) -> None:
    if device == "cuda" and dtype == torch.float32:
        pytest.skip("needs bf16")
    needs_fp8_products(device, dtype)
    x, _, small, scale, bias = operands(rows, dtype, FP8, device)
    ours = fp8_linear(x, small, scale, bias)
    assert ours.dtype == dtype and ours.shape == (*rows, 80)
    assert relative(ours, plain_unscaled(x, small, scale, bias)) < AGREE[dtype]


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("rows", [(40,), (2, 24), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_int8_product_is_plain_arithmetic(dtype, rows, device, kitchen) -> None:
    """On a CPU comfy-kitchen's eager code."""
    x, _, small, scale, bias = operands(rows, dtype, torch.int8, device)
    ours = int8_linear(x, small, scale, bias)
    assert ours.dtype == dtype and ours.shape == (*rows, 80)
    limit = AGREE[dtype] if dtype == torch.float32 else 1e-2  # it divides tokens by their scale in bf16
    assert relative(ours, plain(x, small, scale, bias)) < limit


@pytest.mark.parametrize("dtype", [FP8, torch.int8], ids=["fp8", "int8"])
def test_plain_arithmetic_is_near_the_exact_one(dtype) -> None:
    x, weight, small, scale, bias = operands((2, 24), torch.float32, dtype)
    exact, ours = F.linear(x, weight, bias), plain(x, small, scale, bias)
    assert relative(ours, exact) < LOSS[dtype]
    by_token = (ours - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert by_token.max() < 1.5 * LOSS[dtype], "a scale a token: small tokens are as exact as large ones"


@pytest.mark.parametrize("dtype", [FP8, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16, torch.float16])
def test_quantising_neither_overflows_nor_divides_by_zero(dtype, wide) -> None:
    rows = torch.tensor([[0.0] * 4, [6e4, -6e4, 1.0, 0.0], [1e-6, 1e-7, 0.0, -1e-6], [3.0, -2.0, 1.0, 0.5]])
    small, scale = quantise(rows.to(wide), dtype)
    back = small.float() * scale
    assert torch.isfinite(back).all() and not back[0].any()
    peaks = rows.to(wide).float().abs().amax(1)
    assert_close(back.abs().amax(1), peaks, atol=0, rtol=1e-5)
    assert ((back - rows.to(wide).float()).abs() <= peaks[:, None] / 16).all()


def test_quantize_changes_the_layers_matrices_and_nothing_else(model) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    quantize(model, torch.int8)
    linears = layer_linears(model)
    assert len(linears) == CONFIG.num_layers * 10
    for name, weight in model.state_dict().items():
        if name.removesuffix(".weight") in linears:
            assert weight.dtype == torch.int8
            scale = linears[name.removesuffix(".weight")].scale
            assert relative(weight.float() * scale[:, None], before[name]) < LOSS[torch.int8]
        else:
            assert torch.equal(weight, before[name])


@pytest.mark.parametrize(("precision", "product"), [("fp8-fast", fp8_linear), ("int8-fast", int8_linear)])
def test_8_bit_products_are_of_every_pass_and_nothing_else(precision, product, model, monkeypatch) -> None:
    quantize(model, PRECISIONS[precision].stored)
    monkeypatch.setattr("longlive_core.weights.quantize.lacks_fp8_products", lambda device: None)
    found_by(monkeypatch, Trial(0.5, 0.011))
    (note,) = use_products(model, precision, torch.device("cuda"))
    assert f"the layers' matrices are multiplied in {precision.partition('-')[0]}" in note
    fast = {name for name, linear in layer_linears(model).items() if linear.product is product}
    assert fast == set(pass_linears(model)) and len(fast) == CONFIG.num_layers * 8
    outside = (m for n, m in model.named_modules() if isinstance(m, Linear) and not n.startswith("layers"))
    assert not any(linear.product for linear in outside)


def found_by(monkeypatch, found: Trial) -> list:
    """A trial of int8 products that finds this; returns the shapes that it was asked to try."""
    asked = []

    def trial(shapes, dtype, device) -> Trial:
        asked.extend(shapes)
        return found

    monkeypatch.setattr("longlive_core.weights.quantize.int8_trial", trial)
    return asked


@pytest.mark.parametrize(("speed", "runs"), [(0.9, False), (1.0, False), (GAIN, True), (2.0, True)])
def test_int8_is_multiplied_in_int8_only_where_that_is_faster(speed, runs, model, monkeypatch) -> None:
    quantize(model, torch.int8)
    asked = found_by(monkeypatch, Trial(speed, 0.011))
    (note,) = use_products(model, "int8", torch.device("cuda"))
    assert {linear.product for linear in pass_linears(model).values()} == {int8_linear if runs else None}
    assert f"{speed:.2f} times as fast as dequantised here, 1.1% rms" in note
    assert ("multiplied in int8 by comfy-kitchen" if runs else "dequantised at their use; as int8") in note
    assert sorted(asked) == [(64, 64)] * 6 + [(64, 128), (128, 64)], "the matrices of one layer"


def test_a_cpu_never_chooses_int8_products_by_itself(model, monkeypatch) -> None:
    quantize(model, torch.int8)
    asked = found_by(monkeypatch, Trial(9.0, 0.0))
    assert use_products(model, "int8", torch.device("cpu")) == () and not asked
    assert not any(linear.product for linear in layer_linears(model).values())


def test_without_comfy_kitchen_a_sentence_says_what_to_install(model, monkeypatch) -> None:
    quantize(model, torch.int8)
    int8_trial.cache_clear()
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    (note,) = use_products(model, "int8-fast", torch.device("cpu"))
    assert note.startswith("comfy_kitchen.int8_linear cannot be imported (")
    assert note.endswith(
        "; pip install comfy-kitchen; the weights are stored in int8 and dequantised at their use"
    )
    linear, x = model.layers[0].ffn[0], torch.randn(3, 64)
    assert_close(linear(x), F.linear(x, linear.weight * linear.scale[:, None], linear.bias))


def test_a_package_that_fails_when_imported_or_lacks_a_function_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "for_another_torch.py").write_text("raise ValueError('unsupported type list[int]')")
    for module, reason in (
        ("for_another_torch", "list.int"),
        ("json", "no attribute 'kernel'"),
        ("x.y", "x"),
    ):
        with pytest.raises(ValueError, match=f"{module}.kernel cannot be imported .*{reason}.*; install it"):
            Source(module, "kernel", "install it").load()


def test_int8_asked_for_on_a_cpu_runs(model, kitchen) -> None:
    quantize(model, torch.int8)
    (note,) = use_products(model, "int8-fast", torch.device("cpu"))
    assert "multiplied in int8 by comfy-kitchen" in note
    linear, x = model.layers[0].ffn[0], torch.randn(1, 24, 64)
    assert relative(linear(x), plain(x, linear.weight, linear.scale, linear.bias)) < AGREE[torch.float32]
    assert relative(linear(x), F.linear(x, linear.weight * linear.scale[:, None], linear.bias)) < 0.02


def test_a_trial_is_made_once_a_process(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(int8, "tried", lambda *_: made.append(_) or Trial(1.0, 0.0))
    int8_trial.cache_clear()
    for _ in range(2):
        int8_trial(((8, 16), (16, 8)), torch.float32, torch.device("cpu"))
    int8_trial.cache_clear()
    assert len(made) == 1


def test_a_trial_compares_the_best_of_some_times_and_the_results(monkeypatch) -> None:
    right, calls = torch.randn(100, dtype=torch.bfloat16), []
    times = {"ours": iter((5, 1, 2, 2, 2)), "usual": iter((9, 9, 3, 9, 9))}

    def seconds(function, device) -> float:
        function()
        return next(times[calls[-1]])

    def named(name: str, result: Tensor):
        return lambda: calls.append(name) or result

    monkeypatch.setattr(optional, "seconds", seconds)
    found = tried(named("ours", 1.01 * right), named("usual", right), torch.device("cpu"))
    assert found.speed == 3 and found.loss == pytest.approx(0.01, rel=0.2) and found.is_faster
    assert calls[-2:] == ["ours", "usual"], "in turn"


def test_without_fp8_products_weights_are_dequantised(model) -> None:
    exact = model.layers[0].ffn[0].weight.clone()
    quantize(model, FP8)
    (note,) = use_products(model, "fp8-fast", torch.device("cpu"))
    assert note == "this CPU has no fp8 products; the weights are stored in fp8 and dequantised at their use"
    linear, x = model.layers[0].ffn[0], torch.randn(3, 64)
    dequantised = linear.weight.float() * linear.scale[:, None]
    assert relative(dequantised, exact) < LOSS[FP8]
    assert_close(linear(x), F.linear(x, dequantised, linear.bias))


@pytest.mark.parametrize(("capability", "runs"), [((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_too_old_for_fp8_is_named(capability, runs, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX 3090")
    reason = products.lacks_fp8_products(torch.device("cuda"))
    expected = "NVIDIA RTX 3090 has compute capability 8.6, and fp8 products need 8.9 (RTX 40, H100)"
    assert reason == (None if runs else expected)


def test_an_fp8_product_is_one_graph(model, monkeypatch) -> None:
    needs_fp8_products("cpu", torch.float32)
    quantize(model, FP8)
    monkeypatch.setattr("longlive_core.weights.quantize.lacks_fp8_products", lambda device: None)
    use_products(model, "fp8-fast", torch.device("cpu"))
    assert_one_graph(model.layers[0].ffn[0])


def test_an_int8_product_is_one_graph(model, kitchen) -> None:
    quantize(model, torch.int8)
    use_products(model, "int8-fast", torch.device("cpu"))
    assert_one_graph(model.layers[0].ffn[0])


def assert_one_graph(linear: Linear) -> None:
    x = torch.randn(1, 24, 64)
    assert linear.product
    assert_close(torch.compile(linear, backend="aot_eager", fullgraph=True)(x), linear(x))


def golden(
    dtype: torch.dtype | None = None, product=None, attend=sdpa, has_small_cache=False
) -> list[Tensor]:
    """Latents by block of the golden scenario with a late switch."""
    recorded = golden_runs.Recorded(Path(__file__).parent / "golden" / "dit_switch_late_global.safetensors")
    model = deepcopy(recorded.model())  # which is shared
    if dtype:
        quantize(model, dtype)
        multiply_by(product, model)
    attend_by(attend, model)
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
        (0.03, {"dtype": FP8, "product": plain}),
        (0.03, {"dtype": FP8, "product": plain_unscaled}),
        (0.007, {"dtype": torch.int8, "product": plain}),
        (0.006, {"has_small_cache": True}),
    ],
    ids=["fp8-fast", "fp8-fast unscaled", "int8", "fp8 cache"],
)
def test_latents_stay_near_and_errors_do_not_pile_up(limit, options, exact_golden) -> None:
    """Every block of a rollout with a switch is as near to fp32 as docs/precision.md says, also the last."""
    errors = [relative(*pair) for pair in zip(golden(**options), exact_golden, strict=True)]
    assert 0 < max(errors) < limit
    assert errors[-1] < 1.5 * errors[0]


def test_latents_stay_near_with_int8_attention(exact_golden) -> None:
    """The first block attends to itself only; the others lose a little more."""
    errors = [relative(*pair) for pair in zip(golden(attend=plain_attention), exact_golden, strict=True)]
    assert 0 < errors[0] < 0.002 and max(errors) < 0.006
    assert errors[-1] < max(errors[1:-1])


def test_int8_attention_in_plain_arithmetic_is_near_the_exact_one() -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 48, generator=random) for length in (37, 101, 101))
    k = k + 3 * torch.randn(48, generator=random)  # as keys have a mean of their own
    ours = plain_attention(q, k, v)
    assert ours.shape == q.shape and 0 < relative(ours, sdpa(q, k, v)) < 0.05


@pytest.mark.parametrize("precision", ["fp8-fast", "int8", "int8-fast"])
def test_files_load_into_8_bits(precision, model, tmp_path) -> None:
    from safetensors.torch import save_file

    from longlive_core.weights.names import foreign_name

    save_file({foreign_name(n, "wan"): t for n, t in model.state_dict().items()}, tmp_path / "m.safetensors")
    loaded = load_transformer(tmp_path / "m.safetensors", precision=precision, num_heads=2).transformer
    for name, linear in layer_linears(loaded).items():
        exact = model.get_submodule(name).weight
        assert linear.weight.dtype == PRECISIONS[precision].stored and not linear.product
        assert relative(linear.weight.float() * linear.scale[:, None], exact) < LOSS[linear.weight.dtype]


@pytest.mark.parametrize(
    ("num_bytes", "dtype", "name"),
    [
        *((4, torch.float32, "fp32"), (2, torch.bfloat16, "bf16"), (2, torch.float16, "fp16")),
        *(
            (1, FP8, "fp8"),
            (1, torch.float8_e5m2, "fp8"),
            (1, torch.int8, "int8"),
            (8, torch.float64, "fp32"),
        ),
        *((1.49, None, "fp8"), (1.5, None, "bf16"), (2.99, None, "bf16"), (3.0, None, "fp32")),
    ],
)
def test_a_precision_is_known_by_its_dtype_or_size(num_bytes, dtype, name) -> None:
    assert precision_of(num_bytes, dtype) == name


def test_the_plan_knows_8_bits() -> None:
    few = replace(LONGLIVE_1_3B.model, num_layers=4)
    kinds = ("bf16", "fp8", "fp8-fast", "int8", "int8-fast")
    weights = {precision: weight_bytes(few, precision, torch.bfloat16) for precision in kinds}
    assert len({weights[kind] for kind in kinds[1:]}) == 1 and weights["fp8"] < 0.6 * weights["bf16"]
    preset = replace(LONGLIVE_1_3B, model=replace(CONFIG, num_heads=1))
    settings = [Setting(64, 64, window=WindowConfig(has_small_cache=small)) for small in (False, True)]
    cache = [transformer_bytes(preset, setting, torch.bfloat16)[0] for setting in settings]
    heads = 2 * CONFIG.num_layers * 12 * tokens_per_frame(8, 8)
    assert cache[0] - cache[1] == heads * (2 * 64 - (64 + 4)), "8 bits, and a scale a head"
    assert {setting.precision for setting in smaller(Setting(832, 480, "int8"))} == {"int8"}


def test_a_quantised_buffer_gives_back_what_went_in() -> None:
    like, wide = torch.empty(0, dtype=torch.bfloat16), torch.randn(2, 6, 3, 32).bfloat16()
    buffer, last, first = QuantisedBuffer(like, (2, 12, 3, 32)), torch.arange(6, 12), torch.arange(6)
    buffer.write(last, wide)
    back = buffer.first(12)[:, 6:]
    assert back.dtype == torch.bfloat16 and relative(back, wide) < LOSS[FP8]
    buffer.write(last, back)
    again = buffer.first(12)[:, 6:]
    assert relative(again, back) < 3e-3, "in and out again changes no more than bf16's rounding"
    loud = wide.clone()
    loud[:, 0, 0] *= 1000
    buffer.write(first, loud)
    assert torch.equal(buffer.first(6)[:, 1:], back[:, 1:]), "a loud token spoils only itself"


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
