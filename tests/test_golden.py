"""Our rollout against tensors of the reference implementation (LongLive v1.0, fp32, CPU).

`pytest tests/test_golden.py --golden-dir DIR` runs every file of another folder: sizes, windows, switches and
batch come from each file's tensors and metadata. Weights and noise that a folder lacks regenerate from the
seed. The last tests here read goldens of other sizes, made while they run.
"""

import importlib.util
import json
import math
import re
import tempfile
from collections import defaultdict
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from longlive_core.config import ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.geometry import PATCH
from longlive_core.model.causal_wan import CausalWan, sinusoid
from longlive_core.model.rope import axis_sizes, rotate, rotation
from longlive_core.rollout.noise import TIMESTEP_SCALE, clean_of, renoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name, from_wan

ATOL = 1e-4
STILL = 1e-3  # radians; a step along an axis turns the first pair of the axis by one
LORAS = {"1": "tiny_lora", "2": "tiny_lora_alpha"}  # by the number in a scenario's metadata
KV = re.compile(r"kv\.(block|recache_at_frame)(\d+)\.layer(\d+)\.([kv])\.(slotmean|full)")
FLOW = re.compile(r"flow\.block(\d+)\.step(\d+)")
ROPE = re.compile(r"rope(\d+)\.start(\d+)")
SINUSOID = re.compile(r"sinusoid\.(\d+)")
SEEDED_PROMPT = re.compile(r"normal\(seed, ?'(\w+)', ?\(([\d, ]+)\)\) ?\* ?([\d.]+), rows >= (\d+) zeroed")
BACKWARD = torch.tensor((1.0, -1.0))  # turns a rotation (cosine, sine) around
_spec = importlib.util.spec_from_file_location("seeded", Path(__file__).parent / "golden" / "seeded.py")
seeded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded)


def close(ours: torch.Tensor, golden: torch.Tensor, what: str) -> None:
    assert_close(ours, golden, atol=ATOL, rtol=0, msg=lambda m: f"{what}: {m}")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as golden:
        return golden.metadata() or {}


def present(file: Path) -> Path:
    """The file, or the test is skipped."""
    if not file.exists():
        pytest.skip(f"no {file.name} in {file.parent}")
    return file


def model_config(text: str) -> ModelConfig:
    names = {"in_dim": "latent_channels", "text_len": "text_tokens"}
    sizes = {names.get(name, name): size for name, size in json.loads(text).items()}
    return ModelConfig(**{f.name: sizes[f.name] for f in fields(ModelConfig) if f.name in sizes})


def seeded_model(config: ModelConfig, seed: int) -> CausalWan:
    """The reference's seeded weights: a pure function of its own parameter names and shapes."""
    model = CausalWan(config)
    state = {}
    for name, parameter in model.named_parameters():
        official = foreign_name(name, "wan")
        shape = tuple(parameter.shape)
        if name == "patch_embedding.weight":
            shape = (config.dim, config.latent_channels, 1, PATCH, PATCH)
        state[official] = seeded.dit_param(seed, official, shape)
    model.load_state_dict(from_wan(state))
    return model


@lru_cache(maxsize=3)
def golden_model(folder: Path, lora: str) -> CausalWan:
    """The model of a folder's scenarios, shared by all of them; `lora` is "0" or one of the folder's."""
    inputs = metadata(folder / "dit_inputs.safetensors")
    model = seeded_model(model_config(inputs["set_model"]), int(inputs["seed"]))
    if (folder / "dit_weights.safetensors").exists():
        model.load_state_dict(from_wan(load_file(folder / "dit_weights.safetensors")))
    if lora != "0":
        model = with_lora(model, present(folder / f"{LORAS.get(lora, lora)}.safetensors"))
    return model.requires_grad_(False).eval()


def with_lora(model: CausalWan, lora: Path) -> CausalWan:
    """The model saved in the reference's layout and loaded again together with a LoRA, as a user does."""
    state = {f"model.{foreign_name(name, 'wan')}": tensor for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "longlive_base.pt")
        torch.save({"generator": state}, file)
        choice = LoraChoice(lora, alpha=float(metadata(lora)["alpha"]))
        heads = model.config.num_heads
        return load_transformer(file, [choice], precision="fp32", num_heads=heads).transformer


class Recorded:
    """One golden scenario: its settings, its noise and prompts, and a model with its weights."""

    def __init__(self, file: Path):
        self.folder, self.meta = file.parent, metadata(file)
        self.golden = load_file(file)
        self.block, self.frames = int(self.meta["block"]), int(self.meta["frames"])
        self.batch = int(self.meta.get("batch", len(self.golden["latents"])))
        inputs = present(self.folder / "dit_inputs.safetensors")
        self.inputs, self.inputs_meta = load_file(inputs), metadata(inputs)
        self.seed = int(self.inputs_meta["seed"])
        prefix = f"batch{self.batch}."
        self.prefix = prefix if f"{prefix}prompt_embeds.0" in self.inputs else ""

    def model(self) -> CausalWan:
        return golden_model(self.folder, self.meta["lora"])

    def window(self) -> WindowConfig:
        window = int(self.meta["local_attn_size"])
        return WindowConfig(
            block_latent_frames=self.block,
            sink_latent_frames=int(self.meta["sink_size"]),
            window_latent_frames=None if window < 0 else window,
            endless=self.meta["infinity"] == "true",
        )

    def sigmas(self) -> tuple[float, ...]:
        return shifted_sigmas(
            SigmaConfig(tuple(json.loads(self.meta["denoising_step_list"])), float(self.meta["shift"]))
        )

    def noise(self, block: int, step: int) -> torch.Tensor:
        latent = self.golden["latents"].shape[2:]
        if step:
            rows = self._renoise(block, step - 1, (self.block, *latent))
        else:
            rows = self._first_noise(latent)[:, block * self.block : (block + 1) * self.block]
        return rows.transpose(1, 2)

    def _first_noise(self, latent: torch.Size) -> torch.Tensor:
        if f"{self.prefix}noise" in self.inputs:
            return self.inputs[f"{self.prefix}noise"]
        frames = int(self.inputs_meta["noise_frames"])
        rows = [seeded.normal(self.seed, f"noise.{b}", (frames, *latent)) for b in range(self.batch)]
        return torch.stack(rows)[:, : self.frames]

    def _renoise(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        if f"{self.prefix}renoise" in self.inputs:
            return self.inputs[f"{self.prefix}renoise"][block, step].unflatten(0, (self.batch, -1))
        rows = [seeded.normal(self.seed, f"renoise.{block}.{step}.{b}", shape) for b in range(self.batch)]
        return torch.stack(rows)

    def script(self, block: int) -> Switch | None:
        """The prompt that begins at a block: where several do, the last of them counts."""
        starts, frame = [0, *json.loads(self.meta["effective_switch_frames"])], block * self.block
        if frame not in starts:
            return None
        prompt = sum(start <= frame for start in starts) - 1
        policy = Policy.RECACHE if self.meta["global_sink"] == "true" else Policy.REFRESH
        return Switch(self.inputs[f"{self.prefix}prompt_embeds.{prompt}"], policy)


class Recorder(Hook):
    """Compares flow, clean estimates and cached K, V with the golden as they are made."""

    def __init__(self, recorded: Recorded):
        self.recorded, self.golden = recorded, recorded.golden
        self.flows, self.events = {}, defaultdict(list)
        for name, tensor in self.golden.items():
            if match := FLOW.fullmatch(name):
                self.flows[int(match[1]), int(match[2])] = name
            elif (match := KV.fullmatch(name)) and tensor.numel():  # a switch at frame 0 has no past
                self.events[match[1], int(match[2])].append((name, int(match[3]), match[4], match[5]))
        self.left = {*self.flows.values(), *(name for kept in self.events.values() for name, *_ in kept)}

    def on_step(self, block, step, flow, clean):
        if name := self.flows.get((block, step)):
            close(flow.transpose(1, 2), self.golden[name], name)
            self.left.remove(name)
        if block < len(self.golden.get("x0_steps", ())):
            golden = self.golden["x0_steps"][block, step]
            close(clean.transpose(1, 2), golden, f"x0 of block {block} step {step}")

    def on_commit(self, block, cache):
        self.compare(("block", block), cache)

    def on_recache(self, block, cache):
        self.compare(("recache_at_frame", block * self.recorded.block), cache)

    def compare(self, event, cache):
        grid = tuple(n // PATCH for n in self.golden["latents"].shape[-2:])
        for name, layer, kind, form in self.events[event]:
            ours = in_time_order(cache, layer, kind, grid)
            ours = ours if form == "full" else ours.unflatten(1, (-1, math.prod(grid))).mean(2)
            close(ours, self.golden[name], name)
            self.left.remove(name)


def in_time_order(cache, layer: int, kind: str, grid: tuple[int, int]) -> torch.Tensor:
    """The cached K or V sorted by latent frame; endless keys as the reference stores them, not rotated."""
    buffer = cache.layers[layer].keys.data if kind == "k" else cache.layers[layer].values.data
    tokens, held = grid[0] * grid[1], min(cache.frames, cache.end)
    sink = min(cache.sink, held)
    ring = range(max(sink, cache.end - (cache.frames - cache.sink)), cache.end)
    slots = [*range(sink), *(cache.slot(frame) for frame in ring)]
    positions = [*range(cache.sink_position, cache.sink_position + sink), *ring]
    held_tokens = torch.cat([buffer[:, slot * tokens : (slot + 1) * tokens] for slot in slots], dim=1)
    if kind == "v" or not cache.window.endless:
        return held_tokens
    return rotate(held_tokens, rotation(torch.tensor(positions), *grid, buffer.shape[-1]) * BACKWARD)


def test_scenario(dit_golden: Path) -> None:
    recorded = Recorded(dit_golden)
    recorder = Recorder(recorded)
    blocks = range(recorded.frames // recorded.block)
    made = rollout(
        recorded.model(),
        recorded.script,
        recorded.noise,
        recorded.sigmas(),
        recorded.window(),
        blocks,
        hook=recorder,
    )
    latents = torch.cat([block.latents for block in made], dim=2).transpose(1, 2)
    close(latents, recorded.golden["latents"], "latents")
    assert not recorder.left, "every stored flow, K and V was compared"


def test_real_width_layer(golden_dir: Path) -> None:
    """One layer of the true width (or another's), call by call: noisy and clean at 0, then the next block."""
    files = [file for file in sorted(golden_dir.glob("*.safetensors")) if "starts" in metadata(file)]
    if not files:
        pytest.skip(f"no real-width golden in {golden_dir}")
    for file in files:
        compare_calls(file)


def compare_calls(file: Path) -> None:
    """Flow, clean estimate and cached keys of every call of a file."""
    golden, meta = load_file(file), metadata(file)
    seed, config = int(meta["seed"]), model_config(meta["config"])
    model = seeded_model(config, seed)
    timesteps, starts = json.loads(meta["timesteps"]), json.loads(meta["starts"])
    inputs = [golden[f"call{call}.x"].transpose(1, 2) for call in range(len(starts))]
    everything = WindowConfig(sink_latent_frames=0, window_latent_frames=None)
    ends = [start + x.shape[2] for start, x in zip(starts, inputs, strict=True)]
    scene = Scene(model, inputs[0], everything, capacity=max(ends))
    with torch.no_grad():
        text = model.encode_text(seeded_prompt(meta["prompt"], seed))
        for call, (timestep, start, x) in enumerate(zip(timesteps, starts, inputs, strict=True)):
            scene.open(start, x.shape[2])
            flow = scene.flow(x, timestep / TIMESTEP_SCALE, text)
            close(flow.transpose(1, 2), golden[f"call{call}.flow"], f"flow of call {call}")
            clean = clean_of(x, flow, table_sigma(timestep))
            close(clean.transpose(1, 2), golden[f"call{call}.x0"], f"x0 of call {call}")
            keys = scene.cache.layers[0].keys.first(scene.cache.opening.visible_tokens)
            close(keys, golden[f"call{call}.k"], f"K after call {call}")


def seeded_prompt(recipe: str, seed: int) -> torch.Tensor:
    """Embeddings of a prompt as the metadata describes them."""
    name, shape, scale, rows = SEEDED_PROMPT.fullmatch(recipe).groups()
    prompt = seeded.normal(seed, name, [int(size) for size in shape.split(",")]) * float(scale)
    prompt[:, int(rows) :] = 0
    return prompt


def table_sigma(timestep: float) -> float:
    """The reference finds a sigma by the nearest timestep of its table, which has no 0 in it."""
    table = torch.tensor(shifted_sigmas(SigmaConfig(steps=tuple(range(1000, 0, -1)))))
    return float(table[(TIMESTEP_SCALE * table - timestep).abs().argmin()])


@pytest.fixture
def units(golden_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(present(golden_dir / "units.safetensors"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every RoPE of the folder's units becomes a test of its own."""
    if {"start", "head_dim"} <= set(metafunc.fixturenames):
        file = metafunc.config.getoption("--golden-dir") / "units.safetensors"
        matches = filter(None, map(ROPE.fullmatch, load_file(file) if file.exists() else ()))
        cases = sorted((int(match[2]), int(match[1])) for match in matches)
        missing = pytest.param(None, None, marks=pytest.mark.skip(f"no RoPE in {file}"))
        metafunc.parametrize(("start", "head_dim"), cases or [missing])


def test_unit_sigmas(units: dict[str, torch.Tensor]) -> None:
    ours = TIMESTEP_SCALE * torch.tensor(shifted_sigmas(SigmaConfig()))
    close(ours, units["warped"], "warped timesteps")
    table = torch.tensor(shifted_sigmas(SigmaConfig(steps=tuple(range(1000, 0, -1)))))
    close(table, units["sigmas"], "table of sigmas")


def test_unit_clean_and_renoise(units: dict[str, torch.Tensor]) -> None:
    """The reference looks a sigma up by its timestep; here it is carried along."""
    for i, timestep in enumerate(units["addnoise.t"].tolist()):
        sigma = table_sigma(timestep)
        ours = renoise(units["addnoise.x"][i], units["addnoise.noise"][i], sigma)
        close(ours, units["addnoise.out"][i], f"add noise at {timestep}")
        ours = clean_of(units["x0.xt"][i], units["x0.flow"][i], sigma)
        close(ours, units["x0.out"][i], f"x0 at {timestep}")


def test_unit_sinusoid(units: dict[str, torch.Tensor]) -> None:
    for match in filter(None, map(SINUSOID.fullmatch, units)):
        close(sinusoid(units["sinusoid.t"], int(match[1])).float(), units[match[0]], match[0])


def test_unit_rope(units: dict[str, torch.Tensor], head_dim: int, start: int) -> None:
    x, golden = units[f"rope{head_dim}.in"], units[f"rope{head_dim}.start{start}"]
    frames, rows, columns = rope_grid(x, golden)
    turned = rotate(x, rotation(torch.arange(start, start + frames), rows, columns, head_dim))
    close(turned, golden, f"RoPE of head dim {head_dim} from {start}")


def rope_grid(x: torch.Tensor, turned: torch.Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of a golden's tokens, found by where the angle of an axis first changes."""
    time, row, _ = axis_sizes(x.shape[-1])
    before, after = (torch.view_as_complex(t.double().unflatten(-1, (-1, 2))) for t in (x, turned))
    turns = (after * before.conj()).sum((0, 2))  # [tokens, pairs]
    since_first = (turns * turns[0].conj()).angle().abs()

    def run(pair: int) -> int:
        changed = since_first[:, pair] > STILL
        return int(changed.int().argmax()) if changed.any() else len(turns)

    tokens = run(0)  # of a frame
    columns = min(run(time // 2), tokens) if row else tokens
    return len(turns) // tokens, tokens // columns, columns


class Keeper(Hook):
    """Keeps what a golden holds."""

    def __init__(self, recording: dict[str, torch.Tensor], grid: tuple[int, int], block: int):
        self.recording, self.grid, self.block = recording, grid, block
        self.x0_steps = []

    def on_step(self, block, step, flow, clean):
        self.recording[f"flow.block{block:02d}.step{step}"] = flow.transpose(1, 2).contiguous()
        self.x0_steps.append(clean.transpose(1, 2))

    def on_commit(self, block, cache):
        self.keep(f"kv.block{block:02d}", cache)

    def on_recache(self, block, cache):
        self.keep(f"kv.recache_at_frame{block * self.block:03d}", cache)

    def keep(self, event, cache):
        for kind in "kv":
            full = in_time_order(cache, 1, kind, self.grid)
            self.recording[f"{event}.layer1.{kind}.full"] = full
            mean = full.unflatten(1, (-1, math.prod(self.grid))).mean(2)
            self.recording[f"{event}.layer1.{kind}.slotmean"] = mean


OTHER_MODEL = {
    **{"dim": 40, "ffn_dim": 56, "num_heads": 2, "num_layers": 2, "freq_dim": 24},
    **{"text_dim": 12, "text_len": 9, "in_dim": 16, "out_dim": 16},
}
OTHER_SCENARIO = {
    **{"scenario": "other", "block": 2, "frames": 10, "batch": 2, "local_attn_size": 5, "sink_size": 1},
    **{"lora": 0, "shift": 3.0, "denoising_step_list": [1000, 600, 200]},
    **{"switch_frame_indices": [0, 5], "effective_switch_frames": [0, 6]},
}


def other_inputs(batch: int, block: int, blocks: int, steps: int) -> dict[str, torch.Tensor]:
    """Noise and three prompts for a video of 6x4 latents."""
    prompts = {f"batch{batch}.prompt_embeds.{i}": torch.randn(batch, 9, 12) for i in range(3)}
    noise = torch.randn(batch, blocks * block, 16, 6, 4)
    renoise = torch.randn(blocks, steps - 1, batch * block, 16, 6, 4)
    return {f"batch{batch}.noise": noise, f"batch{batch}.renoise": renoise, **prompts}


def write_other_golden(folder: Path, **settings: str) -> Path:
    """A golden of other sizes, made by us; two of its three prompts begin at frame 0: the later counts."""
    meta = {name: json.dumps(value) for name, value in OTHER_SCENARIO.items()} | settings
    inputs = other_inputs(batch=2, block=2, blocks=5, steps=3)
    about = {"seed": "3", "set_model": json.dumps(OTHER_MODEL)}
    save_file(inputs, folder / "dit_inputs.safetensors", about)
    policy = Policy.RECACHE if meta["global_sink"] == "true" else Policy.REFRESH
    begins = {
        block: Switch(inputs[f"batch2.prompt_embeds.{prompt}"], policy) for block, prompt in ((0, 1), (3, 2))
    }

    def noise(block: int, step: int) -> torch.Tensor:
        if step:
            return inputs["batch2.renoise"][block, step - 1].unflatten(0, (2, 2)).transpose(1, 2)
        return inputs["batch2.noise"][:, 2 * block : 2 * block + 2].transpose(1, 2)

    keeper = Keeper(recording := {}, (3, 2), 2)
    made = rollout(
        seeded_model(model_config(about["set_model"]), 3),
        begins.get,
        noise,
        shifted_sigmas(SigmaConfig((1000, 600, 200), 3.0)),
        WindowConfig(2, 1, 5, endless=meta["infinity"] == "true"),
        range(5),
        hook=keeper,
    )
    recording["latents"] = torch.cat([block.latents for block in made], dim=2).transpose(1, 2).contiguous()
    recording["x0_steps"] = torch.stack(keeper.x0_steps).unflatten(0, (-1, 3))
    save_file(recording, folder / "dit_other.safetensors", meta)
    return folder / "dit_other.safetensors"


@pytest.mark.parametrize("global_sink", ["true", "false"])
@pytest.mark.parametrize("infinity", ["true", "false"])
def test_goldens_of_other_sizes_are_read(tmp_path: Path, global_sink: str, infinity: str) -> None:
    torch.manual_seed(0)
    file = write_other_golden(tmp_path, global_sink=global_sink, infinity=infinity)
    test_scenario(file)
    wrong = metadata(file) | {"effective_switch_frames": "[6]"}
    save_file(load_file(file), file, wrong)
    with pytest.raises(AssertionError, match=r"flow\.block00\.step0"):
        test_scenario(file)


@pytest.mark.parametrize("grid", [(2, 3, 4), (5, 1, 2), (3, 4, 1), (1, 2, 3), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [20, 64])
def test_grids_of_rope_goldens_are_read(grid: tuple[int, int, int], head_dim: int) -> None:
    x = torch.randn(1, math.prod(grid), 2, head_dim, generator=torch.Generator().manual_seed(0))
    for start in (0, 22, 900):
        turned = rotate(x, rotation(torch.arange(start, start + grid[0]), *grid[1:], head_dim))
        assert rope_grid(x, turned) == grid
