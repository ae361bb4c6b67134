"""Every fast path against its slow twin: the plain rollout, compiled layers, attention in parts."""

import gc
import shutil
import sys
import weakref
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plain import PlainScene
from longlive_core.bench.limits import block_flops
from longlive_core.config import MAX_TOKENS, ModelConfig, Policy, Preset, SigmaConfig, WindowConfig
from longlive_core.fast import attention as hopper
from longlive_core.fast.compiled import Compiled, known_speed
from longlive_core.fast.optional import Trial
from longlive_core.model import attention, layers
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import FeedForward
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, commit, denoise, recache, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.files import first_line

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=4
)
SHAPE = (1, 4, 3, 8, 12)
TOKENS = 24  # a latent frame
WIDTH, HEIGHT = 96, 64
SIGMAS = shifted_sigmas(SigmaConfig())
WINDOWS = [WindowConfig(), WindowConfig(endless=True), WindowConfig(3, 1, 7)]


@pytest.fixture
def model() -> CausalWan:
    torch.manual_seed(0)
    return CausalWan(CONFIG).eval()


def prompts(num_switches: int, every: int):
    """A script that changes the prompt `num_switches` times."""
    generator = torch.Generator().manual_seed(1)
    embeds = [torch.randn(1, 4, 8, generator=generator) for _ in range(num_switches + 1)]

    def script(block: int) -> Switch | None:
        turn, rest = divmod(block, every)
        return Switch(embeds[turn]) if not rest and turn <= num_switches else None

    return script


def latents(model, window: WindowConfig, count: int, script=None) -> torch.Tensor:
    script = script or prompts(2, 9)
    made = rollout(model, script, SeededNoise(0, SHAPE), SIGMAS, window, range(count))
    return torch.cat([block.latents for block in made], dim=2)


def test_our_rollout_is_the_plain_one(model) -> None:
    """Blocks through growth and eviction, a recache of a full window, and the blocks behind it."""
    window = WindowConfig()
    noise, script = SeededNoise(0, SHAPE), prompts(1, 1)
    old, new = script(0).embeds, script(1).embeds
    with torch.no_grad():
        scene = Scene(model, torch.empty(SHAPE), window, 0)
        plain = PlainScene(model, torch.empty(SHAPE), window)
        text, embeds = model.encode_text(old), old
        for block in range(9):
            if block == 6:
                text, embeds = model.encode_text(new), new
                recache(scene, text, Policy.RECACHE)
                plain.recache(embeds)
            ours = denoise(scene, text, noise, SIGMAS, block, Hook())
            commit(scene, text, ours)
            theirs = plain.run_block([noise(block, step) for step in range(4)], SIGMAS, embeds)
            assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m, b=block: f"block {b}: {m}")


def many_switches(block: int) -> Switch | None:
    """Ten switches, the first ones while the window grows, to prompts of two, three and four words."""
    starts = [0, 1, 2, 3, 5, 9, 20, 33, 47, 61, 80]
    if block not in starts:
        return None
    switch = prompts(10, 1)(starts.index(block))
    switch.embeds[:, 4 - block % 3 :] = 0
    return switch


def by_tracing(monkeypatch) -> None:
    """torch.compile without a compiler: its guards and graphs are real, its kernels are torch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("window", WINDOWS, ids=["absolute", "endless", "odd"])
def test_a_window_in_parts_is_the_window_at_once(model, window) -> None:
    """A recache and a block in parts of tokens; all K and V are in the cache before any part attends."""
    with torch.no_grad():
        whole = latents(model, window, 20, many_switches)
        for model.max_tokens in (3 * TOKENS, 50):
            parts = latents(model, window, 20, many_switches)
            assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("window", "max_tokens"),
    [*((window, MAX_TOKENS) for window in WINDOWS), (WINDOWS[1], 3 * TOKENS)],
    ids=["absolute", "endless", "odd", "parts"],
)
def test_compiled_layers_are_few_graphs_and_none_is_compiled_again(
    model, window, max_tokens, monkeypatch
) -> None:
    """100 blocks, ten prompt switches, growth, eviction; a recache at once, or in parts."""
    from torch._dynamo.utils import counters

    by_tracing(monkeypatch)
    torch._dynamo.reset()
    counters.clear()
    model.max_tokens = max_tokens
    with torch.no_grad():
        eager = latents(model, window, 100, many_switches)
        model.compile_layers(True)
        fast = latents(model, window, 100, many_switches)
        graphs = counters["stats"]["unique_graphs"]
        latents(model, window, 100, many_switches)
    assert model.compile_failure is None and not counters["graph_break"]
    assert 0 < graphs <= 12 and counters["stats"]["unique_graphs"] == graphs
    assert_close(fast, eager, atol=1e-4, rtol=0)
    model.compile_layers(False)
    with torch.no_grad():
        assert torch.equal(latents(model, window, 20, many_switches), eager[:, :, :60])


def test_compiled_layers_give_the_same(model) -> None:
    if not shutil.which("g++"):
        pytest.skip("COMPILED LAYERS NOT TESTED: torch.compile needs a C++ compiler")
    window = WindowConfig(window_latent_frames=6)
    torch._dynamo.reset()
    with torch.no_grad():
        eager = latents(model, window, 12)
        assert model.compile_layers(True), "compiling is still to come"
        assert not model.compile_layers(True)
        assert_close(latents(model, window, 12), eager, atol=1e-4, rtol=0)
    assert model.compile_failure is None


@pytest.mark.parametrize("lengths", [(4,), (3,), (2,), (1,), (0,), (1, 3), (0, 4)], ids=str)
def test_padding_folded_into_one_row_is_padding(model, lengths) -> None:
    embeds = torch.zeros(len(lengths), 4, 8)
    for rows, length in zip(embeds, lengths, strict=True):
        rows[:length] = torch.randn(length, 8)
    attention, x = model.layers[1].cross_attn, torch.randn(len(lengths), 5, 48)
    whole = model.encode_text(embeds).layers[1]
    with torch.no_grad():
        folded = model.encode_text(embeds).layers[1]
        assert_close(attention(x, folded), attention(x, whole), atol=1e-5, rtol=0)
    assert whole.keys.shape[1] == 4 and folded.keys.shape[1] == min(max(lengths) + 1, 4)


def test_without_a_compiler_the_layers_run_eagerly(model, monkeypatch) -> None:
    def compiler(*_, **__):
        def fails(*_):
            raise RuntimeError("Compiler: cl is not found.\ntraceback")

        return fails

    monkeypatch.setattr(torch, "compile", compiler)
    notes = Notes()
    pipeline = load_pipeline("mini", speed="compiled")
    plan = pipeline.plan(Request(PromptSchedule.single("a red circle"), 3.0))
    list(pipeline.blocks(plan, notes))
    assert [note.split(":")[0] for note in notes.said] == [
        "compiling the layers",
        "not compiled, layers run eagerly",
    ]
    assert notes.said[1].endswith("Compiler: cl is not found.")


class Notes(Hook):
    """Keeps the sentences for the user."""

    def __init__(self):
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


class Operators(TorchDispatchMode):
    """Counts the operators that run, less those that only look at the same memory in another way."""

    VIEWS = (
        *("view", "_unsafe_view", "transpose", "unbind", "slice", "select", "expand", "permute", "split"),
        *("unsqueeze", "t", "unflatten", "view_as_complex", "view_as_real", "detach", "alias", "squeeze"),
    )

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    def work(self) -> int:
        return sum(count for name, count in self.calls.items() if name not in self.VIEWS)


def make_block(scene: Scene, text, index: int) -> None:
    """Denoised and committed."""
    latents = denoise(scene, text, SeededNoise(0, SHAPE), SIGMAS, index, Hook())
    commit(scene, text, latents)


@torch.no_grad()
def settled(model, window: WindowConfig) -> tuple[Scene, PlainScene]:
    """Both twins with a full window."""
    text, embeds = model.encode_text(prompts(0, 1)(0).embeds), prompts(0, 1)(0).embeds
    scene = Scene(model, torch.empty(SHAPE), window, 0)
    plain = PlainScene(model, torch.empty(SHAPE), window)
    noise = SeededNoise(0, SHAPE)
    for block in range(5):
        make_block(scene, text, block)
        plain.run_block([noise(block, step) for step in range(4)], SIGMAS, embeds)
    return scene, plain


def test_a_steady_block_computes_no_more_than_the_arithmetic_asks(model) -> None:
    """Torch's own counter against benchmarks/limits.py, five passes and nothing else."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention_flops(q, k, v, *_, **__) -> int:
        return sdpa_flop_count(q, k, v)

    on_cpus = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    scene, _ = settled(model, WindowConfig())
    text = model.encode_text(prompts(0, 1)(0).embeds)
    with FlopCounterMode(display=False, custom_mapping=on_cpus) as counter, torch.no_grad():
        make_block(scene, text, 5)
    least = block_flops(Preset("small", model=CONFIG), WIDTH, HEIGHT)
    assert counter.get_total_flops() <= 1.01 * least.total
    assert counter.get_total_flops() >= 0.85 * least.total, "the commit pass leaves out a part of one layer"


def test_a_pass_takes_at_most_six_tenths_of_the_plain_operators(model) -> None:
    scene, plain = settled(model, WindowConfig())
    text, embeds = model.encode_text(prompts(0, 1)(0).embeds), prompts(0, 1)(0).embeds
    x = SeededNoise(0, SHAPE)(5, 0)
    scene.open(scene.end, 3)
    with torch.no_grad(), Operators() as ours:
        scene.flow(x, SIGMAS[1], text)
    with torch.no_grad(), Operators() as theirs:
        plain.forward(x, SIGMAS[1], embeds, 15, 9)
    assert ours.work() <= 0.6 * theirs.work(), (ours.calls, theirs.calls)
    assert ours.calls.total() <= 0.6 * theirs.calls.total(), (ours.calls, theirs.calls)


def test_an_old_speed_is_compiled_and_an_unknown_one_is_refused() -> None:
    assert known_speed("plain") == ("plain", None) and known_speed("compiled") == ("compiled", None)
    speed, note = known_speed("graphs")
    assert speed == "compiled" and "graphs was replaced by compiled" in note
    with pytest.raises(ValueError, match="unknown speed 'warp'; choose one of plain, compiled"):
        known_speed("warp")


def test_an_old_attention_is_auto_and_an_unknown_one_is_refused() -> None:
    for old in ("sdpa-cudnn", "sdpa-flash", "flash-even"):
        name, note = attention.known_attention(old)
        assert name == "auto" and old in note
        assert attention.attention_backend(old) is attention.sdpa
    with pytest.raises(ValueError, match="unknown attention backend 'nobody'; choose one of auto, sdpa"):
        attention.attention_backend("nobody")


def test_attention_of_a_gpu_is_refused_elsewhere(monkeypatch) -> None:
    for name in set(attention.BACKENDS) - {"sdpa"}:
        with pytest.raises(ValueError, match="needs an NVIDIA GPU; choose sdpa here"):
            attention.attention_backend(name, "cpu")
    for name in attention.PACKAGES:
        monkeypatch.setitem(sys.modules, attention.PACKAGES[name].module, None)
        remedy = attention.PACKAGES[name].remedy
        with pytest.raises(ValueError, match=f"cannot be imported .*; {remedy}, or choose sdpa"):
            attention.from_package(name, CPU)


@pytest.fixture
def no_choice_yet():
    """Attention is chosen again in this test, and after it."""
    kept = attention.fastest_exact, attention.from_package
    for chosen in kept:
        chosen.cache_clear()
    yield
    for chosen in kept:
        chosen.cache_clear()


LAYOUTS = {
    "flash2": lambda q, k, v: attention.sdpa(q, k, v),
    "flash3": lambda q, k, v: (attention.sdpa(q, k, v), None),  # with the log-sum-exp
    "sage": lambda q, k, v, tensor_layout: attention.sdpa(q, k, v) if tensor_layout == "NHD" else None,
    "int8": torch.nn.functional.scaled_dot_product_attention,  # [B, N, L, D]
}


@pytest.mark.parametrize("name", attention.PACKAGES)
def test_a_package_gets_its_layout_and_what_it_cannot_take_goes_to_sdpa(name, monkeypatch, no_choice_yet):
    """Masks and fp32 never reach its kernel. The trial is of a block at true size."""
    package, calls, sizes = attention.PACKAGES[name], [], []

    def kernel(*args, **options):
        calls.append(name)
        return LAYOUTS[name](*args, **options)

    def tried(ours, usual, device) -> Trial:
        sizes.extend(tuple(t.shape) for t in ours.args)
        assert usual.func is attention.sdpa and ours.args[0].dtype == torch.float16
        return Trial(2.0, 0.01)

    monkeypatch.setitem(sys.modules, package.module, SimpleNamespace(**{package.function: kernel}))
    monkeypatch.setattr(attention, "tried", tried)
    attend, found = attention.from_package(name, CPU)
    assert found == Trial(2.0, 0.01) and sizes == [(1, 4680, 12, 128), *[(1, 18720, 12, 128)] * 2]
    q, k, v = (torch.randn(1, length, 3, 16).half() for length in (5, 7, 7))
    assert torch.equal(attend(q, k, v), attention.sdpa(q, k, v)) and calls == [name]
    mask = torch.zeros(5, 7, dtype=torch.bool).fill_diagonal_(True)
    assert torch.equal(attend(q, k, v, mask), attention.sdpa(q, k, v, mask))
    exact = [t.float() for t in (q, k, v)]
    assert torch.equal(attend(*exact), attention.sdpa(*exact)) and calls == [name]


def test_a_kernel_that_fails_is_refused_before_a_video_begins(monkeypatch, no_choice_yet) -> None:
    def kernel(q, k, v):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=kernel))
    monkeypatch.setattr(attention, "tried", lambda ours, usual, device: ours())
    with pytest.raises(ValueError, match=r"'flash2' does not run here \(FlashAttention only .*; choose sdpa"):
        attention.from_package("flash2", CPU)


def test_comfy_kitchen_without_int8_attention_is_too_old(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(int8_linear=None))
    with pytest.raises(ValueError, match=r'pip install "comfy-kitchen>=0\.2\.30", or choose sdpa'):
        attention.from_package("int8", CPU)


@pytest.mark.parametrize(
    ("speeds", "usual", "chosen"),
    [
        ({}, "sdpa", "sdpa"),
        ({"flash2": 1.04}, "sdpa", "sdpa"),
        ({"flash2": 1.2}, "sdpa", "flash2"),
        ({"flash2": 1.2, "flash3": 1.5}, "sdpa", "flash3"),
        ({"flash2": 1.5, "flash3": 1.2}, "sdpa", "flash2"),
        ({"flash2": 1.12}, "cudnn-even", "cudnn-even"),
        ({"flash3": 1.3}, "cudnn-even", "flash3"),
        ({"sage": 9.0, "int8": 9.0}, "sdpa", "sdpa"),
    ],
    ids=str,
)
def test_auto_takes_flash_attn_only_where_it_is_faster(speeds, usual, chosen, monkeypatch, no_choice_yet):
    """Against what would run without it; never a kernel that rounds to 8 bits. Measured once a process."""
    asked, notes = [], []

    def from_package(name, device):
        asked.append(name)
        if name not in speeds:
            raise ValueError("missing")
        return name, Trial(speeds[name], 0.0)

    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(attention, "is_hopper", lambda device: usual == "cudnn-even")
    monkeypatch.setattr(attention, "from_package", from_package)
    found = Trial(1.1 if usual == "cudnn-even" else 1.0, 0.0)
    monkeypatch.setattr(attention, "trial", lambda attend, device: found)
    for _ in range(2):
        attend = attention.attention_backend("auto", "cuda", notes.append)
    names = {attention.sdpa: "sdpa"}.get(attend, attend)
    assert names == chosen or (chosen == "cudnn-even" and isinstance(attend, hopper.HopperAttention))
    said = [f"attention auto: {chosen}, {speeds.get(chosen, 0):.2f} times as fast as sdpa here"]
    assert notes == (said * 2 if chosen in speeds else []) and len(asked) == 2


def test_a_named_package_says_what_it_gains_and_loses(monkeypatch) -> None:
    notes = []
    monkeypatch.setattr(attention, "from_package", lambda name, device: (name, Trial(0.8, 0.034)))
    assert attention.attention_backend("int8", "cuda", notes.append) == "int8"
    assert notes == ["attention int8: 0.80 times as fast as sdpa here, 3.40% rms from it"]


def attention_with_sums(q, k, v):
    """Plain attention [B, N, L, D] and the log-sum-exp of every query."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def test_a_host_may_put_its_own_linears_in_place_of_ours() -> None:
    torch.manual_seed(0)
    ours = FeedForward(8, 16)
    theirs = FeedForward(8, 16)
    theirs[0], theirs[2] = (torch.nn.Linear(*reversed(linear.weight.shape)) for linear in (ours[0], ours[2]))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8)
    assert_close(theirs(x), ours(x))


def test_tokens_in_chunks_are_those_at_once(monkeypatch) -> None:
    ffn, x = FeedForward(8, 16), torch.randn(2, 7, 8)
    whole = ffn(x)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 4 * 16 * 6)
    with torch.no_grad():
        assert ffn.num_chunks(x) == 3
        assert_close(ffn(x), whole)


def test_one_function_is_compiled_for_many_sizes(monkeypatch) -> None:
    by_tracing(monkeypatch)
    torch._dynamo.reset()

    def plus_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    plus = Compiled(plus_one, CPU)
    for size in range(2, 22):
        plus(torch.zeros(size))
    assert plus.failure is None


def test_what_cannot_be_compiled_runs_eagerly(monkeypatch) -> None:
    """From the start, or from some call in mid-run on."""
    calls = []

    def compiler(function, **_):
        def compiled(x):
            calls.append(x)
            if x == 3:
                raise RuntimeError("raised:\nno room for one more graph")
            return -function(x)

        return compiled

    def twice(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(torch, "compile", compiler)
    doubled = Compiled(twice, CPU)
    assert [doubled(x) for x in (1, 2, 3, 4)] == [-2, -4, 6, 8]
    assert first_line(doubled.failure) == "no room for one more graph" and calls == [1, 2, 3]


def test_too_little_memory_is_no_failure_of_the_compiler(monkeypatch) -> None:
    def compiler(function, **_):
        def compiled(x):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    doubled = Compiled(lambda x: 2 * x, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        doubled(1)
    assert doubled.failure is None


def test_too_little_memory_in_other_words_is_no_failure_of_the_compiler(monkeypatch) -> None:
    """CUDA's libraries raise plain errors; once memory was freed, the layers are compiled again."""
    words = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"

    def short_of_memory(x):
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    doubled = Compiled(short_of_memory, CPU)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        doubled(1)
    assert doubled.failure is None


def test_a_failure_of_the_compiler_keeps_no_tensors_alive(monkeypatch) -> None:
    def compiler(function, **_):
        def compiled(x):
            made = 2 * x
            kept.append(weakref.ref(made))
            raise RuntimeError("no compiler")

        return compiled

    kept, x = [], torch.zeros(3)
    kept.append(weakref.ref(x))
    monkeypatch.setattr(torch, "compile", compiler)
    same = Compiled(lambda x: x + 1, CPU)
    same(x)
    del x
    gc.collect()
    assert same.failure and not any(tensor() is not None for tensor in kept)


def test_compiling_keeps_no_model_alive(monkeypatch) -> None:
    by_tracing(monkeypatch)
    small = CausalWan(CONFIG).eval()
    small.compile_layers(True)
    with torch.no_grad():
        latents(small, WindowConfig(), 2)
    kept = weakref.ref(small.layers[0].ffn)
    torch._dynamo.reset()
    gc.collect()
    gc.disable()
    try:
        del small
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("multiprocessors", [5, 7, 8, 16, 132])
def test_attention_in_parts_is_the_same_attention(multiprocessors, monkeypatch) -> None:
    monkeypatch.setattr(hopper, "with_sums", attention_with_sums)
    monkeypatch.setattr(hopper, "HALVES", (torch.float64,))
    q, k, v = (torch.randn(1, length, 3, 16, dtype=torch.float64) for length in (700, 120, 120))
    out = hopper.HopperAttention(multiprocessors)(q, k, v)
    assert_close(out, attention.sdpa(q, k, v))


def test_tiles_are_split_into_full_rounds_and_a_short_one() -> None:
    """At 832x480: 37 tiles of 12 heads. What leaves no round half empty is not cut."""
    h100 = hopper.split(4680, 18720, 12, 132)
    assert h100 == (33 * hopper.TILE, 5), "three rounds of 132, then 48 tiles in fifths: 240 fill two"
    assert hopper.split(4680, 18720, 12, 128) == (32 * hopper.TILE, 2)
    assert hopper.split(33 * hopper.TILE, 18720, 12, 132) is None
    assert hopper.split(4680, 18720, 12, 444) is None
    assert hopper.split(4680, 18719, 12, 132) is None, "a number of keys that nothing divides"


def test_the_first_line_of_an_error_is_no_heading() -> None:
    error = RuntimeError("backend='inductor' raised:\nCompilerError: no cl\n\nmore")
    assert first_line(error) == "CompilerError: no cl"
    assert first_line(RuntimeError("")) == "RuntimeError" and len(first_line(ValueError("x" * 999))) == 200
