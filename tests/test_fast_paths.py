"""Every fast path against its slow twin: the plain rollout, compiled layers, recorded passes."""

import gc
import logging
import weakref
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.plain import PlainScene
from longlive_core import speed
from longlive_core.bench.limits import block_flops
from longlive_core.compiling import Compiled, new_size
from longlive_core.config import (
    TINY_WAN,
    ModelConfig,
    Policy,
    Preset,
    SigmaConfig,
    WanAutoencoderConfig,
    WindowConfig,
)
from longlive_core.model import attention, compiled, even, fastest, layers
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.fastest import AttentionShape
from longlive_core.model.graphs import GraphedModel
from longlive_core.model.layers import FeedForward
from longlive_core.reasons import reason_of
from longlive_core.rollout.noise import SeededNoise
from longlive_core.rollout.rollout import Block, Hook, Switch, commit, denoise, recache, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.rollout.sigmas import shifted_sigmas
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.compiled import compile_decoder
from longlive_core.vae.tiny import TinyAutoencoder

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
        text, embeds = model.read_text(old), old
        for block in range(9):
            if block == 6:
                text, embeds = model.read_text(new), new
                recache(scene, text, Policy.RECACHE)
                plain.recache(embeds)
            ours = denoise(scene, text, noise, SIGMAS, block, Hook())
            commit(scene, text, Block(block, ours, opens_scene=False), Hook())
            theirs = plain.run_block([noise(block, step) for step in range(4)], SIGMAS, embeds)
            assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m, b=block: f"block {b}: {m}")


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: operators with their very tensors, done again on the same addresses.

    Like a graph it knows no Python: what a pass read from objects while recorded stays as it was.
    """

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.steps.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for function, args, kwargs, out in self.steps:
            again = function(*args, **kwargs)
            tree_map(self._settle, tuple(zip(flat(out), flat(again), strict=True)), is_leaf=is_pair)

    @staticmethod
    def _settle(pair) -> None:
        old, new = pair
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def flat(out) -> list[torch.Tensor]:
    return [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor)]


def is_pair(value) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], torch.Tensor)


class Recorder:
    """Records on tapes and counts."""

    def __init__(self):
        self.calls = Counter()

    def __call__(self, run):
        self.calls["recorded"] += 1
        with Tape() as tape:
            out = run()

        def replay() -> None:
            self.calls["replayed"] += 1
            tape.replay()

        return replay, out


@pytest.mark.parametrize("window", WINDOWS, ids=["absolute", "endless", "odd"])
def test_recorded_passes_give_the_same_latents(model, window) -> None:
    """Bit for bit, over two prompt switches and every place of the ring."""
    recorder = Recorder()
    graphed = GraphedModel(model, recorder)
    with torch.no_grad():
        assert torch.equal(latents(graphed, window, 30), latents(model, window, 30))
    assert recorder.calls["recorded"] == graphed.num_recordings >= 5 * 2
    assert recorder.calls["replayed"] > 60


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("window", WINDOWS, ids=["absolute", "endless", "odd"])
def test_recorded_passes_see_what_a_prompt_leaves_to_be_seen(model, window, policy) -> None:
    """After a cut the ring is written where it was before, but holds a new scene."""

    def script(block: int) -> Switch | None:
        return {0: prompts(1, 1)(0), 14: Switch(prompts(1, 1)(1).embeds, policy)}.get(block)

    graphed = GraphedModel(model, Recorder())
    with torch.no_grad():
        plain = latents(model, window, 26, script)
        assert torch.equal(latents(graphed, window, 26, script), plain)
    assert graphed.num_recordings


def test_a_second_video_does_not_replay_the_first_ones_cache(model) -> None:
    graphed = GraphedModel(model, Recorder())
    with torch.no_grad():
        latents(graphed, WindowConfig(), 14)
        assert torch.equal(latents(graphed, WindowConfig(), 14), latents(model, WindowConfig(), 14))


def test_where_recording_fails_the_rollout_goes_on(model, caplog) -> None:
    def fails(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with torch.no_grad(), caplog.at_level(logging.WARNING, "longlive"):
        assert torch.equal(
            latents(GraphedModel(model, fails), WindowConfig(), 12), latents(model, WindowConfig(), 12)
        )
    assert [r.message for r in caplog.records] == [
        "no CUDA graphs here, every pass is launched step by step: "
        "operation not permitted when stream is capturing"
    ]


def test_compiled_layers_give_the_same_and_are_compiled_once(model) -> None:
    """100 blocks, ten prompt switches, growth, eviction: three graphs for three halves, none again."""
    from torch._dynamo.utils import counters

    def script(block: int) -> Switch | None:
        switch = prompts(10, 9)(block)
        if switch is not None:
            switch.embeds[:, 4 - block % 3 :] = 0  # prompts of two, three and four words
        return switch

    with torch.no_grad():
        plain = latents(model, WindowConfig(), 100, script)
        torch._dynamo.reset()
        counters.clear()
        said = compiled.compile_layers(model, 1, 3, TOKENS)
        if "not compiled" in said:
            pytest.skip(f"COMPILED LAYERS NOT TESTED: {said}")
        fast = latents(model, WindowConfig(), 100, script)
    assert counters["stats"]["unique_graphs"] == len(compiled.HALVES)
    assert not counters["graph_break"]
    assert_close(fast, plain, atol=1e-4, rtol=0)
    compiled.release_layers(model)
    with torch.no_grad():
        assert torch.equal(latents(model, WindowConfig(), 100, script), plain)


@pytest.mark.parametrize("lengths", [(4,), (3,), (2,), (1,), (0,), (1, 3), (0, 4)], ids=str)
def test_padding_folded_into_one_row_is_padding(model, lengths) -> None:
    embeds = torch.zeros(len(lengths), 4, 8)
    for rows, length in zip(embeds, lengths, strict=True):
        rows[:length] = torch.randn(length, 8)
    attention, x = model.layers[1].cross_attn, torch.randn(len(lengths), 5, 48)
    whole = model.read_text(embeds).layers[1]
    with torch.no_grad():
        folded = model.read_text(embeds).layers[1]
        assert_close(attention(x, folded), attention(x, whole), atol=1e-5, rtol=0)
    assert whole.keys.shape[1] == 4 and folded.keys.shape[1] == min(max(lengths) + 1, 4)


def test_without_a_compiler_the_layers_stay_plain(model, monkeypatch) -> None:
    def compiler(*_, **__):
        def fails(*_):
            raise RuntimeError("Compiler: cl is not found.\ntraceback")

        return fails

    monkeypatch.setattr(torch, "compile", compiler)
    said = compiled.compile_layers(model, 1, 3, TOKENS)
    assert said == (
        "not compiled, every operator runs by itself as with speed plain: Compiler: cl is not found."
    )
    with torch.no_grad():
        latents(model, WindowConfig(), 2)


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
    commit(scene, text, Block(index, latents, opens_scene=False), Hook())


@torch.no_grad()
def settled(model, window: WindowConfig) -> tuple[Scene, PlainScene]:
    """Both twins with a full window."""
    text, embeds = model.read_text(prompts(0, 1)(0).embeds), prompts(0, 1)(0).embeds
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
    text = model.read_text(prompts(0, 1)(0).embeds)
    with FlopCounterMode(display=False, custom_mapping=on_cpus) as counter, torch.no_grad():
        make_block(scene, text, 5)
    least = block_flops(Preset("small", model=CONFIG), WIDTH, HEIGHT)
    assert counter.get_total_flops() <= 1.01 * least.total
    assert counter.get_total_flops() >= 0.85 * least.total, "the commit pass leaves out a part of one layer"


def test_a_pass_takes_at_most_six_tenths_of_the_plain_operators(model) -> None:
    scene, plain = settled(model, WindowConfig())
    text, embeds = model.read_text(prompts(0, 1)(0).embeds), prompts(0, 1)(0).embeds
    x = SeededNoise(0, SHAPE)(5, 0)
    scene.open(scene.end, 3)
    with torch.no_grad(), Operators() as ours:
        scene.flow(x, SIGMAS[1], text)
    with torch.no_grad(), Operators() as theirs:
        plain.forward(x, SIGMAS[1], embeds, 15, 9)
    assert ours.work() <= 0.6 * theirs.work(), (ours.calls, theirs.calls)
    assert ours.calls.total() <= 0.6 * theirs.calls.total(), (ours.calls, theirs.calls)


SHAPES = AttentionShape(queries=6, keys=24, num_heads=2, head_dim=8)


def timed(seconds: dict[str, float], calls: list):
    """A timer that gives every backend its seconds, in the order they are tried."""
    order = iter(seconds.values())

    def timer(run) -> float:
        calls.append(run())
        return next(order)

    return timer


def test_the_fastest_attention_is_measured_once_and_remembered(tmp_path, monkeypatch) -> None:
    calls, memory = [], tmp_path / "cache" / "attention.json"
    monkeypatch.setattr(fastest, "attention_backend", lambda name: attention.sdpa)
    seconds = dict.fromkeys(attention.EXACT, 2.0) | {"sdpa-flash": 1.0}
    here = (torch.device("cpu"), torch.float32, memory)
    assert fastest.fastest_attention(SHAPES, *here, timed(seconds, calls)) == "sdpa-flash"
    assert len(calls) == len(attention.EXACT)
    assert fastest.fastest_attention(SHAPES, *here, timed(seconds, calls)) == "sdpa-flash"
    assert len(calls) == len(attention.EXACT), "measured only once"
    memory.write_text("{broken")
    assert fastest.fastest_attention(SHAPES, *here, timed(seconds, calls)) == "sdpa-flash"


def test_a_backend_that_fails_or_computes_something_else_is_not_chosen(tmp_path, monkeypatch) -> None:
    def fails(*_):
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    made = {"sdpa": attention.sdpa, "sdpa-flash": fails, "flash2": lambda q, k, v: q * 0}
    monkeypatch.setattr(fastest, "attention_backend", made.__getitem__)
    rows = fastest.measured(SHAPES, torch.device("cpu"), torch.float32, made, lambda run: 1.0)
    assert [(row.name, row.seconds) for row in rows] == [
        ("sdpa", 1.0),
        ("sdpa-flash", None),
        ("flash2", None),
    ]
    assert rows[1].reason == "no kernel image is available for execution on the device"
    assert "another" in rows[2].reason


def test_every_backend_that_can_run_here_is_sdpa(model) -> None:
    """On this device in its own precision; those that need a card say why they cannot."""
    for name in attention.BACKENDS:
        row = fastest.measured(SHAPES, torch.device("cpu"), torch.float32, [name])[0]
        assert row.seconds or row.reason, name
    assert fastest.measured(SHAPES, torch.device("cpu"), torch.float32, ["sdpa"])[0].seconds


@pytest.mark.parametrize("layers", speed.SPEEDS)
def test_whatever_speed_is_asked_for_the_video_is_made(model, layers, monkeypatch) -> None:
    monkeypatch.setattr(speed, "compile_layers", lambda *_: "not compiled, slower: no compiler")
    notes = []
    ready = speed.made_ready(model, speed.Speed(layers, "auto"), WindowConfig(), SHAPE, notes.append)
    assert ready is model, "no card here"
    said = {"plain": "", "graphs": "NVIDIA", "compiled": "no compiler"}[layers]
    assert said in str(notes) and bool(said) == bool(notes)


def test_a_model_is_made_ready_once_and_told_every_time(model, monkeypatch) -> None:
    work = []
    monkeypatch.setattr(speed, "compile_layers", lambda *_: work.append("") or "layers compiled in 9 s")
    compiled_once, again, other = [], [], []
    wanted = (model, speed.Speed("compiled"), WindowConfig())
    speed.made_ready(*wanted, SHAPE, compiled_once.append)
    speed.made_ready(*wanted, SHAPE, again.append)
    assert [note.split(";")[0] for note in compiled_once] == [
        "compiling the layers",
        "layers compiled in 9 s",
    ]
    assert again == compiled_once[1:] and len(work) == 1
    speed.made_ready(*wanted, (1, 4, 3, 8, 8), other.append)
    assert other == compiled_once and len(work) == 2


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


def test_tokens_widened_in_parts_are_those_widened_at_once(monkeypatch) -> None:
    ffn, x = FeedForward(8, 16), torch.randn(2, 7, 8)
    whole = ffn(x)
    monkeypatch.setattr(layers, "KEPT_BYTES", 4 * 16 * 6)
    with torch.no_grad():
        assert ffn.num_parts(x) == 3
        assert_close(ffn(x), whole)


def by_tracing(monkeypatch) -> None:
    """torch.compile without a compiler: its guards and graphs are real, its kernels are torch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def test_one_function_is_compiled_for_many_sizes(monkeypatch) -> None:
    by_tracing(monkeypatch)
    torch._dynamo.reset()

    def plus_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    plus = Compiled(plus_one, dynamic=False, fullgraph=True)
    for size in range(2, 22):
        with new_size():
            plus(torch.zeros(size))
    assert plus.failure is None


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch, caplog) -> None:
    """From the start, or from some call in mid-run on; told once."""
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
    doubled = Compiled(twice)
    with caplog.at_level(logging.WARNING, "longlive"):
        assert [doubled(x) for x in (1, 2, 3, 4)] == [-2, -4, 6, 8]
    assert doubled.failure == "no room for one more graph" and calls == [1, 2, 3]
    assert [r.message for r in caplog.records] == [
        "twice runs without a compiler: no room for one more graph"
    ]
    monkeypatch.setattr(torch, "compile", lambda *_, **__: {}["no Dynamo for this Python"])
    assert Compiled(twice)(5) == 10 and len(caplog.records) == 1, "at first it is the caller who tells"


def test_every_size_of_a_decoder_is_one_graph_and_none_is_too_many(monkeypatch) -> None:
    from torch._dynamo.utils import counters

    by_tracing(monkeypatch)
    torch._dynamo.reset()
    decoder = WanAutoencoder(replace(WanAutoencoderConfig(), width=8)).requires_grad_(False)
    with torch._dynamo.config.patch(recompile_limit=1):  # in place of torch's 8, which takes as many turns
        for width in range(4, 7):
            counters.clear()
            assert "decoder compiled" in compile_decoder(decoder, (1, 16, 3, 4, width)), width
            assert counters["stats"]["unique_graphs"] == 1


def test_compiling_keeps_no_module_alive(model, monkeypatch) -> None:
    by_tracing(monkeypatch)
    decoder = TinyAutoencoder(TINY_WAN).requires_grad_(False)
    small = CausalWan(CONFIG).eval()
    compiled.compile_layers(small, 1, 3, TOKENS)
    compile_decoder(decoder, (1, 16, 3, 4, 4))
    kept = weakref.ref(decoder.decoder.stem), weakref.ref(small.layers[0].ffn)
    torch._dynamo.reset()
    gc.collect()
    gc.disable()
    try:
        del decoder, small
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_recordings_are_dropped_when_the_host_moves_the_weights(model) -> None:
    """Between two blocks, as when a text encoder needs the room: what was there is garbage then."""
    made = []
    for is_moved in (False, True):
        torch.manual_seed(0)
        own = CausalWan(CONFIG).eval()
        graphed = GraphedModel(own, Recorder())
        blocks = rollout(graphed, prompts(2, 9), SeededNoise(0, SHAPE), SIGMAS, WindowConfig(), range(14))
        with torch.no_grad():
            found = []
            for block in blocks:
                found.append(block.latents)
                if is_moved and block.index == 10:
                    assert graphed.num_recordings
                    for weight in own.parameters():
                        old, weight.data = weight.data, weight.data.clone()
                        old.zero_()
        made.append(torch.cat(found, dim=2))
    assert torch.equal(*made)


@pytest.mark.parametrize("multiprocessors", [5, 7, 8, 16, 132])
def test_work_dealt_evenly_is_the_same_attention(multiprocessors, monkeypatch) -> None:
    monkeypatch.setattr(even, "multiprocessors", lambda device: multiprocessors)
    q, k, v = (torch.randn(1, length, 3, 16, dtype=torch.float64) for length in (700, 120, 120))
    out = even.Even(attention_with_sums, even.joined)(q, k, v)
    assert_close(out, attention.sdpa(q, k, v))


def test_work_is_dealt_into_full_rounds_and_a_short_one() -> None:
    """At 832x480: 37 tiles of 12 heads. What leaves no round half empty is not cut."""
    h100 = even.deal(4680, 18720, 12, 132)
    assert h100 == (33 * even.TILE, 5), "three rounds of 132, then 48 tiles in fifths: 240 fill two"
    assert even.deal(4680, 18720, 12, 128) == (32 * even.TILE, 2)
    assert even.deal(33 * even.TILE, 18720, 12, 132) is None
    assert even.deal(4680, 18720, 12, 444) is None
    assert even.deal(4680, 18719, 12, 132) is None, "a number of keys that nothing divides"


class Unrecordable:
    is_recordable = False


def test_attention_that_no_graph_can_hold_is_not_recorded(model, monkeypatch) -> None:
    monkeypatch.setattr(CausalWan, "device", torch.device("cuda"))
    monkeypatch.setattr(speed, "CudaRecorder", lambda device: None)
    notes, wanted = [], (model, speed.Speed("graphs"), WindowConfig(), SHAPE)
    assert isinstance(speed.made_ready(*wanted, notes.append), GraphedModel) and not notes
    model.layers[0].self_attn.attend = Unrecordable()
    assert speed.made_ready(*wanted, notes.append) is model
    assert "cannot be recorded" in notes[0]


def test_a_reason_is_the_line_that_says_something() -> None:
    error = RuntimeError("backend='inductor' raised:\nCompilerError: no cl\n\nmore")
    assert reason_of(error) == "CompilerError: no cl"
    assert reason_of(RuntimeError("")) == "RuntimeError" and len(reason_of(ValueError("x" * 999))) == 200


class Wrapped:
    def __init__(self, inner):
        self.inner = inner


def test_a_decoder_is_compiled_on_a_card_with_room(monkeypatch) -> None:
    """Ours alone, also when the host has wrapped it; the tiny one needs no room."""
    told, told_room, shape = [], [True], (1, 16, 3, 4, 4)
    monkeypatch.setattr(speed, "compile_decoder", lambda *_: "decoder compiled in 9 s")
    monkeypatch.setattr(speed, "runs_on_card", lambda decoder: True)
    monkeypatch.setattr(speed, "has_room_to_compile", lambda device: told_room[0])
    wan, tiny = WanAutoencoder(replace(WanAutoencoderConfig(), width=8)), TinyAutoencoder(TINY_WAN)

    def notes(decoder, layers: str, is_roomy: bool) -> str:
        told.clear()
        told_room[0] = is_roomy
        speed.ready_decoder(decoder, speed.Speed(layers), shape, told.append)
        return " | ".join(note.split(";")[0] for note in told)

    compiled = "compiling the decoder | decoder compiled in 9 s"
    assert notes(Wrapped(Wrapped(wan)), "compiled", True) == compiled
    assert notes(wan, "compiled", False) == "decoder compiled in 9 s", "it already is"
    assert notes(wan, "graphs", True) == ""
    assert "not compiled: on a card of less than 20 GiB" in notes(wan, "compiled", False)
    assert notes(tiny, "compiled", False) == compiled
    assert notes(object(), "compiled", True) == ""


def test_attention_is_as_it_was_loaded_where_nobody_asks_for_the_fastest(model, monkeypatch) -> None:
    monkeypatch.setattr(CausalWan, "device", torch.device("cuda"))
    monkeypatch.setattr(speed, "fastest_attention", lambda *_: "sdpa-flash")
    loaded = model.layers[0].self_attn.attend
    for wanted in ("auto", "sdpa", "auto"):
        speed.made_ready(model, speed.Speed("plain", wanted), WindowConfig(), SHAPE, str)
        is_loaded = [layer.self_attn.attend is loaded for layer in model.layers]
        assert is_loaded == [wanted == "sdpa"] * len(is_loaded)


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="plain, graphs, compiled"):
        speed.Speed("warp")
