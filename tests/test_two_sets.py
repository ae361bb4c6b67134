"""Models with spans of positions, long sinks, first-block steps and two sets of weights."""

import gc
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longlive_core.bench.random_model import random_pipeline, randomised
from longlive_core.config import PRESETS, RELATIVES, ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.memory import Setting, estimate
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.rope import rotate, rotation
from longlive_core.model.two_sets import TwoSetWan, transformer_of
from longlive_core.pipeline import Pipeline, Request
from longlive_core.resume import Restart, Snapshots
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, recache, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.checkpoints import load_transformer, may_have_two_sets, settle
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import MEMORY, foreign_name
from longlive_core.weights.quantize import dequantised, to_8_bits
from tests.test_steady_state import alive_tensor_bytes

TINY = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=4
)
WIDE = ModelConfig(
    dim=128, ffn_dim=64, num_heads=1, num_layers=2, latent_channels=16, text_dim=32, freq_dim=32
)
PROMPTS = torch.randn(3, 1, 4, 8, generator=torch.Generator().manual_seed(5))
SIGMAS = shifted_sigmas(SigmaConfig())
PAIR = "sgf-plus-chunkwise"
SPANNED = [name for name, preset in PRESETS.items() if preset.window.positions_latent_frames]


def loud(make: type[CausalWan], config: ModelConfig = TINY) -> CausalWan:
    """A random model whose past and prompt matter; two sets that differ."""
    torch.manual_seed(0)
    model = make(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def models() -> dict[bool, CausalWan]:
    return {has_two: loud(transformer_of(has_two)) for has_two in (False, True)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights of two sets under our names."""
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in TwoSetWan(WIDE).state_dict().items()}


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that SGF+ is published with."""
    theirs = {}
    for name, tensor in state.items():
        plain = name.removeprefix(MEMORY)
        official = foreign_name(plain, "wan")
        if plain != name:
            owner, _, leaf = official.rpartition(".")
            is_top = not official.startswith("blocks.")
            official = f"memory_{official}" if is_top else f"{owner}.memory_{leaf}"
        is_patch = plain == "patch_embedding.weight"
        theirs[official] = tensor.view(len(tensor), -1, 1, 2, 2).clone() if is_patch else tensor.clone()
    return theirs


def one_set(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(MEMORY)}


def write(path: Path, state: dict[str, Tensor], **metadata: str) -> Path:
    save_file(published(state), path, metadata)
    return path


# Files


def test_two_sets_load_bit_for_bit(tmp_path: Path, state) -> None:
    loaded = load_transformer(write(tmp_path / "sgf_plus.safetensors", state), precision="fp32")
    assert isinstance(loaded.transformer, TwoSetWan) and loaded.preset.name == PAIR
    ours = loaded.transformer.state_dict()
    assert ours.keys() == state.keys() and all(torch.equal(ours[name], state[name]) for name in state)


NAMES = {  # where a file lies and how it is called -> what it is
    "sgf_chunkwise.pt": "sgf-chunkwise",
    "sgf_framewise.pt": "sgf-framewise",
    "Self_Gradient_Forcing/chunkwise/ar/model.pt": "sgf-chunkwise",
    "Self_Gradient_Forcing/framewise/ar/model.pt": "sgf-framewise",
    "sgf_plus_chunkwise.pt": PAIR,
    "sgf_plus_framewise.pt": "sgf-plus-framewise",
    "Self_Gradient_Forcing_Plus/chunkwise/model.pt": PAIR,
    "Self_Gradient_Forcing_Plus/framewise/model.pt": "sgf-plus-framewise",
    "mine.pt": "longlive-1.3b",
    "causal-forcing++/framewise-2step.pt": "causal-forcing-2step",
    "causal_forcing_1step.pt": "causal-forcing-1step",
    "framewise.pt": "causal-forcing-framewise",
    "self_forcing_dmd.pt": "self-forcing",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_known_by_its_name_and_its_averaged_weights_run(name: str, tmp_path: Path, state) -> None:
    preset, path = RELATIVES[NAMES[name]], tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs = published(state if preset.has_two_sets else one_set(state))
    other = {key: tensor + 1 for key, tensor in theirs.items()}
    ema, plain = (theirs, other) if preset.has_ema else (other, theirs)
    torch.save({"generator": plain, "generator_ema": ema, "step": 7}, path)
    loaded = load_transformer(path, precision="fp32")
    assert loaded.preset.name == preset.name
    assert torch.equal(loaded.transformer.head.proj.weight, state["head.proj.weight"])


@pytest.mark.parametrize(("name", "preset"), [("mine.pt", PAIR), ("my_framewise.pt", "sgf-plus-framewise")])
def test_memory_weights_tell_sgf_plus_under_any_name(name: str, preset: str, tmp_path: Path, state) -> None:
    theirs = published(state)
    other = {key: tensor + 1 for key, tensor in theirs.items()}
    torch.save({"generator": other, "generator_ema": theirs}, tmp_path / name)
    loaded = load_transformer(tmp_path / name, precision="fp32")
    assert loaded.preset.name == preset
    assert torch.equal(loaded.transformer.memory.head.proj.weight, state["memory.head.proj.weight"])


def refusal(path: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_transformer(path, precision="fp32", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_preset_with_another_number_of_sets_is_one_sentence(tmp_path: Path, state) -> None:
    both, one = (write(tmp_path / f"{n}.safetensors", s) for n, s in (("x", state), ("y", one_set(state))))
    assert "holds two sets of weights and sgf-chunkwise has one; choose another family: sgf-plus-" in refusal(
        both, preset="sgf-chunkwise"
    )
    assert "holds one set of weights and sgf-plus-framewise has two" in refusal(
        one, preset="sgf-plus-framewise"
    )
    named = write(tmp_path / "sgf_plus_framewise.safetensors", one_set(state))
    assert "holds one set of weights and sgf-plus-framewise has two" in refusal(named)


def test_a_missing_twin_is_named(tmp_path: Path, state) -> None:
    whole = dict(state)
    del whole["memory.layers.1.ffn.2.bias"]
    path = write(tmp_path / "sgf_plus.safetensors", whole)
    assert "1 tensor missing (memory.layers.1.ffn.2.bias)" in refusal(path)


@pytest.mark.parametrize(
    "sections", [("generator", "generator_ema"), ("generator", "ema"), ("ema",)], ids=str
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_averaged_weights_run_also_from_flattened_sections(suffix, sections, tmp_path: Path, state) -> None:
    """Sections of a pickle become prefixes in safetensors; of two, none is mixed with the other."""
    names, path = published(state), tmp_path / f"sgf_plus_chunkwise{suffix}"
    filled = {s: {n: t + (s == "generator") for n, t in names.items()} for s in sections}
    flat = {f"{s}.model.{n}": t for s, tensors in filled.items() for n, t in tensors.items()}
    torch.save(filled, path) if suffix == ".pt" else save_file(flat, path)
    ours = load_transformer(path, precision="fp32").transformer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_the_same_weights_under_two_prefixes_are_refused(tmp_path: Path, state) -> None:
    names = published(state)
    save_file({**names, **{f"model.{n}": t + 1 for n, t in names.items()}}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors has the same weights under several prefixes"):
        load_transformer(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_two_sets_are_seen_without_loading(suffix: str, tmp_path: Path, state) -> None:
    found = {}
    for name, weights in (("both", state), ("one", one_set(state))):
        path = tmp_path / (name + suffix)
        theirs = published(weights)
        if suffix == ".pt":
            torch.save({"generator_ema": theirs}, path)
        else:
            save_file(theirs, path)
        found[name] = may_have_two_sets(path)
    assert found == {"both": True, "one": False}
    assert not may_have_two_sets(tmp_path / "nowhere.pt")


# Weights


def test_a_lora_changes_both_sets_alike(tmp_path: Path, state) -> None:
    path, target = write(tmp_path / "sgf_plus.safetensors", state), "layers.0.ffn.0.weight"
    rows, columns = state[target].shape
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    stem = "diffusion_model.blocks.0.ffn.0"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    loaded = load_transformer(path, [LoraChoice(tmp_path / "lora.safetensors", 0.5)], "fp32")
    assert "2 tensors change 1 weights; both sets of weights are changed alike" in loaded.notes[0]
    for name, tensor in loaded.transformer.state_dict().items():
        is_target = name.removeprefix(MEMORY) == target
        right = state[name] + 0.5 * (up @ down) if is_target else state[name]
        assert torch.equal(tensor, right), name


@pytest.mark.parametrize("precision", ["fp8", "int8", "fp8-fast"])
def test_both_sets_are_stored_in_8_bits_each_by_itself(precision: str, tmp_path: Path, state) -> None:
    path = write(tmp_path / "sgf_plus.safetensors", state)
    model = load_transformer(path, precision=precision).transformer
    settle(model, precision, torch.device("cpu"))
    for name in state:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if ".layers." not in f".{name}" or leaf != "weight" or not isinstance(module, nn.Linear):
            continue
        small, scale = to_8_bits(state[name], module.weight.dtype)
        assert module.weight.dtype.itemsize == 1
        assert torch.equal(dequantised(module.weight, module.scale), dequantised(small, scale)), name
        module.to("meta")
    assert model.layers[0].ffn[0].weight.is_meta and model.memory.layers[0].ffn[0].weight.is_meta


@pytest.mark.parametrize("name", ["sgf-chunkwise", PAIR])
def test_a_plan_counts_the_sets(name: str) -> None:
    preset = replace(RELATIVES[name], model=WIDE)
    with torch.device("meta"):
        model = transformer_of(preset.has_two_sets)(WIDE)
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    setting = Setting(64, 64, "fp32", "tiny", preset.window)
    needs = estimate(preset, setting, torch.device("cpu"))
    assert needs.weights == size
    text = preset.num_sets * WIDE.num_layers * 2 * WIDE.text_tokens * WIDE.dim * 4
    assert needs.text == text


# Videos


def latents_of(model: CausalWan, window: WindowConfig, blocks: range, sigmas=SIGMAS, **more) -> Tensor:
    """A video of 4x4 latents; `switches` are a prompt and a policy by block."""
    switches = {blocks.start: (0, Policy.RECACHE), **more.pop("switches", {})}
    script = {block: Switch(PROMPTS[prompt], policy) for block, (prompt, policy) in switches.items()}
    noise = SeededNoise(0, (1, 4, window.block_latent_frames, 4, 4))
    made = rollout(model, script.get, noise, sigmas, window, blocks, **more)
    return torch.cat([block.latents for block in made], dim=2)


class States(Hook):
    """Keeps the exact state after some blocks."""

    def __init__(self, wanted: set[int], prompts: dict[int, int]):
        self.wanted, self.prompts, self.states = wanted, prompts, {}

    def on_open(self, scene):
        self.scene = scene

    def on_commit(self, block, cache):
        prompt = self.prompts[max(start for start in self.prompts if start <= block)]
        if block in self.wanted:
            self.states[block] = self.scene.state(PROMPTS[prompt])


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "mini"])
def test_an_exact_state_is_continued_across_the_edges_of_window_and_span(name: str, models) -> None:
    """Stopped within a sink that is not whole, at the window's edge, at the span's, and behind a switch."""
    preset = RELATIVES[name]
    window, block = preset.window, preset.window.block_latent_frames
    edges = {window.window_latent_frames, window.positions_latent_frames or 0, window.sink_latent_frames}
    count = max(edges) // block + 4
    seams = {edge // block + shift for edge in edges for shift in (-2, -1, 0, 1)} & {*range(count - 1)}
    sigmas = shifted_sigmas(
        replace(preset.sigmas, steps=preset.sigmas.steps[:2], first_steps=(1000, 750, 500))
    )
    switches = {count - 3: (1, preset.on_switch), count - 2: (2, Policy.RECACHE)}
    model = models[preset.has_two_sets]
    states = States(seams, {0: 0, **{at: prompt for at, (prompt, _) in switches.items()}})
    whole = latents_of(model, window, range(count), sigmas, switches=switches, hook=states)
    assert states.states.keys() == seams and len(seams) > 3
    for seam, state in states.states.items():
        later = {at: switch for at, switch in switches.items() if at > seam}
        script = {at: Switch(PROMPTS[prompt], policy) for at, (prompt, policy) in later.items()}
        noise = SeededNoise(0, (1, 4, block, 4, 4))
        made = rollout(model, script.get, noise, sigmas, window, range(seam + 1, count), state)
        rest = torch.cat([one.latents for one in made], dim=2)
        assert torch.equal(rest, whole[:, :, (seam + 1) * block :]), seam


@pytest.mark.parametrize("frames", [1, 3, 4, 21, 40])
@pytest.mark.parametrize("has_two", [False, True])
def test_latents_continue_also_where_the_sink_is_longer_than_a_block(has_two, frames: int, models) -> None:
    """Committed block after block they leave what the video itself left; SGF's presets say so."""
    preset, model = RELATIVES["sgf-plus-framewise"], models[has_two]
    whole = latents_of(model, preset.window, range(frames + 3))
    past = whole[:, :, :frames]
    goes_on = partial(latents_of, model, preset.window, range(frames, frames + 3))
    assert preset.commits_past and torch.equal(goes_on(past=past.split(1, dim=2)), whole[:, :, frames:])
    assert torch.isfinite(goes_on(past=past)).all()


def keys_of_sink(window: WindowConfig, model: CausalWan) -> Tensor:
    """The first layer's keys of a refreshed sink two blocks later, not rotated."""
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(1, 4, 3, 4, 4)
    scene = Scene(model, like, window, 0)
    text = model.encode_text(PROMPTS[0])
    for first in range(0, 27, 3):
        if first == 21:
            recache(scene, text, Policy.REFRESH)
        latents = torch.randn(like.shape, generator=generator)
        scene.open(first, 3)
        scene.fill_cache(latents, text)
        scene.append(latents)
    keys = scene.cache.layers[0].keys.data[:, : 3 * 4]
    at = scene.cache.sink_position
    return rotate(keys, rotation(torch.arange(at, at + 3), 2, 2, TINY.head_dim) * torch.tensor((1.0, -1.0)))


@torch.no_grad()
def test_a_refreshed_sink_stands_where_the_old_one_did(models) -> None:
    """Its keys, rotated back by the sink's position, are those of its latents whatever the span."""
    near, far = (
        keys_of_sink(WindowConfig(endless=True, positions_latent_frames=n), models[False]) for n in (12, 21)
    )
    torch.testing.assert_close(near, far, atol=1e-4, rtol=0)


def test_first_steps_are_for_the_first_block_of_a_scene(models) -> None:
    class Steps(Hook):
        def __init__(self):
            self.counts = {}

        def on_step(self, block, step, flow, clean):
            self.counts[block] = step + 1

    preset, steps, more, scene = RELATIVES["causal-forcing-1step"], Steps(), Steps(), Steps()
    sigmas, switches = shifted_sigmas(preset.sigmas), {3: (1, Policy.CUT), 5: (2, Policy.KEEP)}
    first = latents_of(models[False], preset.window, range(7), sigmas, switches=switches, hook=steps)
    assert steps.counts == {0: 4, 1: 1, 2: 1, 3: 4, 4: 1, 5: 1, 6: 1}
    latents_of(models[False], preset.window, range(7, 9), sigmas, past=first, hook=more)
    assert more.counts == {7: 4, 8: 1}, "with latents given it is the first block that is made"
    script = {0: Switch(PROMPTS[0]), 2: Switch(PROMPTS[1], Policy.CUT, first[:, :, :1])}
    noise = SeededNoise(0, (1, 4, 1, 4, 4))
    list(rollout(models[False], script.get, noise, sigmas, preset.window, range(5), hook=scene))
    assert scene.counts == {0: 4, 1: 1, 3: 4, 4: 1}, "also where a later scene begins with an image"


class Recaches(Hook):
    def __init__(self):
        self.blocks = []

    def on_recache(self, block, cache):
        self.blocks.append(block)


def tiny_pipeline(name: str) -> Pipeline:
    preset = replace(RELATIVES[name], model=replace(TINY, latent_channels=16), width=32, height=32)
    return random_pipeline(torch.device("cpu"), torch.float32, preset=preset)


@pytest.mark.parametrize(("name", "blocks"), [("longlive-1.3b", [2, 3]), ("sgf-chunkwise", [3]), (PAIR, [3])])
def test_a_cue_without_a_policy_does_what_the_model_was_made_for(name: str, blocks: list[int]) -> None:
    schedule = PromptSchedule.parse("0 a\n1s => b\n2s => recache: c\n")
    pipeline, hook = tiny_pipeline(name), Recaches()
    plan = pipeline.plan(Request(schedule, 3.0))
    for _ in pipeline.blocks(plan, hook):
        pass
    assert hook.blocks == blocks


@pytest.mark.parametrize("name", ["sgf-chunkwise", PAIR])
def test_a_run_that_was_broken_off_goes_on_from_a_snapshot_and_recorded_blocks(name: str) -> None:
    schedule = PromptSchedule.parse("0 a\n1s => b\n3s cut: c\n")
    pipeline, states = tiny_pipeline(name), []
    plan = pipeline.plan(Request(schedule, 4.0))
    whole = list(pipeline.run(plan, snapshots=Snapshots(lambda block: block == 2, states.append)))
    recorded = {chunk.block.index: chunk.block.latents for chunk in whole[:4]}
    for state in (states[0], None):
        rest = pipeline.run(plan, restart=Restart(recorded.get, state))
        for one, other in zip(whole[state.num_blocks if state else 0 :], rest, strict=True):
            assert torch.equal(one.block.latents, other.block.latents)
            assert torch.equal(one.frames, other.frames)


@pytest.mark.parametrize("name", SPANNED)
def test_positions_and_windows_beyond_the_span_are_refused(name: str) -> None:
    pipeline = tiny_pipeline(name)
    ask = Request(PromptSchedule.single("x"), 2.0)
    assert pipeline.plan(ask).window.endless
    with pytest.raises(ValueError, match=r"absolute positions go beyond the \d\d that .*; choose auto or"):
        pipeline.plan(replace(ask, positions="absolute"))
    span = pipeline.preset.window.positions_latent_frames
    for window in (span + 1, None):
        with pytest.raises(ValueError, match=rf"larger than the {span} positions .*; choose {span} or fewer"):
            replace(pipeline.preset.window, window_latent_frames=window)
    shorter = replace(pipeline.preset.window, window_latent_frames=9)
    assert pipeline.plan(replace(ask, window=shorter)).window == shorter


def test_240_seconds_frame_wise_at_constant_memory() -> None:
    """963 blocks of one token; tensors alive and Python objects after 60 blocks and after nearly all."""
    window, noise = RELATIVES["sgf-plus-framewise"].window, SeededNoise(0, (1, 4, 1, 2, 2))
    model, sigmas = loud(TwoSetWan, replace(TINY, num_layers=1)), shifted_sigmas(SigmaConfig((1000,)))
    made = rollout(model, lambda b: None if b else Switch(PROMPTS[0]), noise, sigmas, window, range(963))

    def held_after(blocks: int) -> tuple[int, int]:
        for _ in islice(made, blocks):
            pass
        return alive_tensor_bytes(), len(gc.get_objects())

    (early, few), (late, many) = held_after(60), held_after(902)
    last = next(made)
    assert last.index == 962 and torch.isfinite(last.latents).all()
    assert late == early and abs(many - few) < 500


def test_a_second_set_compiles_nothing(models, monkeypatch) -> None:
    from functools import partial

    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    graphs, window = {}, RELATIVES[PAIR].window
    for has_two, model in models.items():
        torch._dynamo.reset()
        counters.clear()
        eager = latents_of(model, window, range(8), switches={5: (1, Policy.KEEP)})
        assert model.compile_layers(True)
        fast = latents_of(model, window, range(8), switches={5: (1, Policy.KEEP)})
        assert model.compile_failure is None and not counters["graph_break"]
        graphs[has_two] = counters["stats"]["unique_graphs"]
        model.compile_layers(False)
        torch.testing.assert_close(fast, eager, atol=1e-4, rtol=0)
    assert 0 < graphs[True] <= graphs[False]


def test_two_random_sets_of_true_size_differ() -> None:
    model = tiny_pipeline(PAIR).model
    assert isinstance(model, TwoSetWan)
    assert not torch.equal(model.head.proj.weight, model.memory.head.proj.weight)
    assert randomised(model) is model
