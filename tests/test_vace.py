"""VACE files of every kind on a transformer; videos with control: switches, cuts, states, given frames."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch._dynamo.utils import counters

from longlive_core.config import LONGLIVE_1_3B, MINI, ModelConfig
from longlive_core.control import Control
from longlive_core.fast.compiled import COMPILED
from longlive_core.memory import Setting, estimate, vace_weight_bytes
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.two_sets import TwoSetWan
from longlive_core.model.vace import Vace
from longlive_core.pipeline import Pipeline, Request, load_pipeline
from longlive_core.resume import Ending, VideoState
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name
from longlive_core.weights.quantize import compute_dtype
from longlive_core.weights.vace import graft
from tests.test_fast_paths import by_tracing

TINY = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=4, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=16
)
PLACES = {4: (0, 2), 6: (0, 2, 4)}  # of as many layers
SIZE = 32
PROMPTS = "0s a red circle on blue drifts left\n0.5s a green square on blue drifts left"


def random_vace(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of VACE layers, under our names."""
    torch.manual_seed(seed)
    state = Vace(config, PLACES[config.num_layers]).state_dict()
    return {name: torch.randn_like(weight) * weight.std().clamp_min(0.02) for name, weight in state.items()}


def published(state: dict[str, Tensor], spelling: str = "wan", prefix: str = "") -> dict[str, Tensor]:
    """Under the names and in the shapes that VACE is published with."""
    theirs = {}
    for name, weight in state.items():
        is_patch = name == "patch_embedding.weight"
        shaped = weight.view(len(weight), -1, 1, 2, 2) if is_patch else weight
        theirs[prefix + foreign_name(f"vace.{name}", spelling)] = shaped.clone()
    return theirs


def write(path: Path, state: dict[str, Tensor], **spelled: str) -> Path:
    save_file(published(state, **spelled), path)
    return path


def whole_model(config: ModelConfig) -> dict[str, Tensor]:
    """The transformer's part of the published file, of other weights than ours."""
    state = CausalWan(config).state_dict()
    patch = state.pop("patch_embedding.weight")
    theirs = {foreign_name(name, "wan"): weight.clone() for name, weight in state.items()}
    return theirs | {"patch_embedding.weight": patch.view(len(patch), -1, 1, 2, 2).clone()}


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model.", "_orig_mod.", "module."])
@pytest.mark.parametrize("spelling", ["wan", "diffusers"])
def test_every_spelling_is_grafted_bit_for_bit(spelling: str, prefix: str, tmp_path: Path) -> None:
    state, model = random_vace(TINY), CausalWan(TINY)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tensors = published(state, spelling, prefix) | {f"{prefix}{n}": t for n, t in whole_model(TINY).items()}
    save_file(tensors, tmp_path / "whole.safetensors")
    alone = write(tmp_path / "alone.safetensors", state, spelling=spelling, prefix=prefix)
    for file in (tmp_path / "whole.safetensors", alone):
        graft(model, file, "fp32")
        assert model.vace.places == (0, 2)
        ours = model.vace.state_dict()
        assert ours.keys() == state.keys() and all(torch.equal(ours[name], state[name]) for name in state)
        assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_the_published_file_has_439_tensors_of_735_million_parameters() -> None:
    config = ModelConfig()
    with torch.device("meta"):
        vace = Vace(config, range(0, 30, 2))
    weights = vace.state_dict().values()
    assert len(weights) == 439 and sum(weight.numel() for weight in weights) == 734_975_232
    assert vace_weight_bytes(config, "bf16", torch.bfloat16) == 2 * 734_975_232


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_matrices_are_stored_small(precision: str, tmp_path: Path) -> None:
    model, file = CausalWan(TINY), write(tmp_path / "vace.safetensors", random_vace(TINY))
    graft(model, file, precision)
    sizes = {name: weight.element_size() for name, weight in model.vace.named_parameters()}
    assert (
        sizes["layers.0.before_proj.weight"]
        == sizes["layers.1.after_proj.weight"]
        == (2 if precision == "bf16" else 1)
    )
    assert sizes["layers.1.norm3.weight"] > 1


def test_places_of_a_config_count(tmp_path: Path) -> None:
    model, file = CausalWan(TINY), write(tmp_path / "vace.safetensors", random_vace(TINY))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"vace_layers": [1, 3]}))
    graft(model, file, "fp32")
    assert model.vace.places == (1, 3)
    for wrong in ([0], [2, 1], [0, 4], [0, 0], "02", [0, 1.5]):
        config.write_text(json.dumps({"vace_layers": wrong}))
        with pytest.raises(ValueError, match="correct vace_layers in the config"):
            graft(model, file, "fp32")


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model, file = CausalWan(TINY), tmp_path / "x.safetensors"
    larger = {
        name: torch.zeros(5120, 1) for name in ("vace_patch_embedding.weight", "vace_blocks.0.norm3.weight")
    }
    wan22 = {name: weight[:3072].clone() for name, weight in larger.items()}
    incomplete = published(random_vace(TINY))
    del incomplete["vace_blocks.1.after_proj.weight"]
    cases = {
        "is a Wan text-to-video transformer without VACE layers": whole_model(TINY),
        "is VACE of width 5120, as of Wan 14B or Wan 2.2, not 48": larger,
        "is VACE of width 3072, as of Wan 14B or Wan 2.2, not 48": wan22,
        r"1 tensor missing \(vace.layers.1.after_proj.weight\)": incomplete,
    }
    for reason, tensors in cases.items():
        save_file(tensors, file)
        with pytest.raises(ValueError, match=reason) as error:
            graft(model, file, "fp32")
        assert "\n" not in str(error.value) and "longlive download vace-1.3b" in str(error.value)
    assert model.vace is None


def test_a_lora_changes_vace_layers(tmp_path: Path) -> None:
    state, model = random_vace(TINY), CausalWan(TINY)
    file, lora = write(tmp_path / "vace.safetensors", state), tmp_path / "lora.safetensors"
    up, down = torch.randn(48, 2), torch.randn(2, 48)
    stem = "diffusion_model.vace_blocks.1.after_proj"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, lora)
    (note,) = graft(model, file, "fp32", loras=(LoraChoice(lora),))
    changed = state["layers.1.after_proj.weight"] + up @ down
    assert torch.allclose(model.vace.layers[1].after_proj.weight, changed, atol=1e-6)
    assert "2 tensors change 1 weights" in note


# Videos, by Mini


def controlled(tmp_path: Path, is_silent: bool = False) -> Pipeline:
    """Mini with random VACE layers; silent ones give hints of zero."""
    state = random_vace(MINI.model)
    for name in state if is_silent else ():
        state[name] *= "after_proj" not in name
    return load_pipeline(vace=write(tmp_path / "vace.safetensors", state))


def clip(num_frames: int, seed: int = 3) -> Tensor:
    """Frames [F, H, W, 3] in [0, 1] of random squares."""
    coarse = torch.rand(num_frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, SIZE).movedim(1, -1)


def made(pipeline: Pipeline, seconds: float = 1.2, ending: Ending | None = None, **request) -> Tensor:
    """The latents of a video."""
    schedule = PromptSchedule.parse(request.pop("prompts", PROMPTS))
    plan = pipeline.plan(Request(schedule, seconds, width=SIZE, height=SIZE, **request))
    return torch.cat([chunk.block.latents for chunk in pipeline.run(plan, ending=ending)], dim=2)


def test_silent_hints_and_scale_0_change_nothing_bit_for_bit(tmp_path: Path) -> None:
    silent, mini = controlled(tmp_path, is_silent=True), load_pipeline()
    plain = made(mini)
    assert torch.equal(made(silent, control=Control(clip(30))), plain)
    assert torch.equal(made(silent), plain)
    loud = controlled(tmp_path)
    calls = []
    loud.model.vace.layers[0].register_forward_hook(lambda *call: calls.append(call))
    assert torch.equal(made(loud, control=Control(clip(30), scale=0)), plain) and not calls
    assert not torch.equal(made(loud, control=Control(clip(30))), plain) and calls


def test_masks_references_and_scale_count(tmp_path: Path) -> None:
    pipeline, frames = controlled(tmp_path), clip(30)
    images = (torch.rand(20, 30, 3), torch.rand(40, 16, 4))
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 16:40, 16:40] = 1
    variants = (
        Control(frames),
        Control(frames, scale=0.5),
        Control(frames, mask),
        Control(frames, references=images[:1]),
        Control(references=images),
        Control(clip(60, seed=4)),
    )
    videos = [made(pipeline, 1.2, control=control) for control in variants]
    for index, video in enumerate(videos):
        assert video.isfinite().all()
        assert not any(torch.equal(video, other) for other in videos[:index])
    pieces = Control(iter(frames.split(7)), iter(mask.expand(30, -1, -1).split(11)))
    assert torch.equal(made(pipeline, 1.2, control=pieces), videos[2])


def test_what_is_missing_is_gray_and_made(tmp_path: Path) -> None:
    pipeline, frames, mask = controlled(tmp_path), clip(12), torch.zeros(12, SIZE, SIZE)
    padded = torch.cat((frames, torch.full((40, SIZE, SIZE, 3), 0.5)))
    masks = torch.cat((mask, torch.ones(40, SIZE, SIZE)))
    short = made(pipeline, 1.2, control=Control(frames, mask))
    assert torch.equal(short, made(pipeline, 1.2, control=Control(padded, masks)))
    assert torch.equal(short, made(pipeline, 1.2, control=Control(frames, mask[:1])))


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS.replace("0.5s", "0.5s cut:")], ids=["switch", "cut"])
def test_a_state_continues_control_bit_for_bit(prompts: str, tmp_path: Path) -> None:
    pipeline, frames = controlled(tmp_path), clip(60)
    whole = made(pipeline, 3.0, control=Control(frames), prompts=prompts)
    ending = Ending()
    first = made(pipeline, 1.6, ending, control=Control(frames), prompts=prompts)
    ending.state.save(tmp_path / "state.safetensors")
    state = VideoState.load(tmp_path / "state.safetensors")
    later = replace(PromptSchedule.parse("0s a green square on blue drifts left"))
    plan = pipeline.plan(Request(later, 1.4, state=state, control=Control(iter(frames.split(50)))))
    rest = torch.cat([chunk.block.latents for chunk in pipeline.run(plan)], dim=2)
    assert torch.equal(torch.cat((first, rest), dim=2), whole)
    for control in (None, Control(frames, scale=0)):
        with pytest.raises(ValueError, match="was made with control; give the same"):
            pipeline.plan(Request(later, 1.4, state=state, control=control))


def test_control_with_given_and_earlier_latents(tmp_path: Path) -> None:
    """What is given is context that is kept; a past longer than the window gives its newest part."""
    pipeline, frames = controlled(tmp_path), clip(30)
    video = made(pipeline, 4.0)
    for request in ({"given": video[:, :, :1]}, {"past": video[:, :, :7]}, {"past": video}):
        latents = made(
            pipeline, 1.0, control=Control(frames), prompts="0s a red circle drifts left", **request
        )
        assert latents.isfinite().all()


def test_missing_parts_are_named(tmp_path: Path) -> None:
    pipeline, plain = controlled(tmp_path), load_pipeline()
    plain.model.vace = None
    with pytest.raises(ValueError, match="longlive download vace"):
        made(plain, 1.0, control=Control(clip(20)))
    with pytest.raises(ValueError, match="frames of shape"):
        made(pipeline, 1.0, control=Control(clip(20)[:, :16]))
    with pytest.raises(ValueError, match="frames of shape"):
        made(pipeline, 1.0, control=Control(clip(20), torch.ones(1, 8, SIZE)))
    with pytest.raises(ValueError, match="cannot encode"):
        made(replace(pipeline, encoder=None), 1.0, control=Control(clip(20)))


def test_settings_name_the_control(tmp_path: Path) -> None:
    pipeline = controlled(tmp_path)
    control = Control(clip(20), references=(torch.rand(8, 8, 3),), scale=1.4)
    plan = pipeline.plan(Request(PromptSchedule.parse("a red circle"), 1.0, control=control))
    assert pipeline.settings(plan)["control"] == {"scale": 1.4, "references": 1}


def test_two_sets_of_weights_take_hints_too(tmp_path: Path) -> None:
    """SGF+: the set that denoises and the set that fills the cache, each with text and time of its own."""
    mini = load_pipeline()
    mini.model.vace = None
    torch.manual_seed(1)
    pair = TwoSetWan(MINI.model)
    pair.load_state_dict(mini.model.state_dict(), strict=False)
    pair.memory.load_state_dict(mini.model.state_dict())
    graft(pair, write(tmp_path / "vace.safetensors", random_vace(MINI.model)), "fp32")
    twin = replace(mini, model=pair.requires_grad_(False))
    graft(mini.model, tmp_path / "vace.safetensors", "fp32")
    control = Control(clip(30))
    assert torch.equal(made(twin, control=control), made(mini, control=control))


def test_compiled_layers_are_few_graphs_with_vace_too(tmp_path: Path, monkeypatch) -> None:
    """As test_fast_paths counts them: real guards and graphs, torch's kernels; growth and a switch."""
    by_tracing(monkeypatch)
    torch._dynamo.reset()
    counters.clear()
    pipeline = controlled(tmp_path)
    eager = made(pipeline, 2.0, control=Control(clip(30)))
    compiled = replace(pipeline, speed=COMPILED)
    fast = made(compiled, 2.0, control=Control(clip(30)))
    graphs = counters["stats"]["unique_graphs"]
    made(compiled, 2.0, control=Control(clip(30)))
    assert pipeline.model.compile_failure is None and not counters["graph_break"]
    assert 0 < graphs <= 14 and counters["stats"]["unique_graphs"] == graphs
    assert torch.allclose(fast, eager, atol=1e-4)


def test_a_plan_counts_control() -> None:
    device = torch.device("cuda")
    plain = estimate(LONGLIVE_1_3B, Setting(832, 480), device)
    with_control = estimate(LONGLIVE_1_3B, Setting(832, 480, has_control=True), device)
    for part in ("weights", "kv_cache", "text", "working", "encoder_past"):
        assert getattr(with_control, part) > getattr(plain, part), part


def test_the_estimate_of_weights_is_what_is_stored(tmp_path: Path) -> None:
    file = write(tmp_path / "vace.safetensors", random_vace(MINI.model))
    for precision in ("fp32", "fp8", "int8", "bf16"):
        model = load_pipeline().model
        graft(model, file, precision)
        stored = [*model.vace.parameters(), *model.vace.buffers()]
        compute = compute_dtype(precision, torch.device("cpu"))
        assert vace_weight_bytes(MINI.model, precision, compute) == sum(weight.nbytes for weight in stored)
