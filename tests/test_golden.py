"""Our rollout against tensors of the reference implementation (LongLive v1.0, fp32, CPU).

`pytest tests/test_golden.py --golden-dir DIR` runs every file of another folder: sizes, windows, switches and
batch come from each file's metadata. Weights and noise that a folder lacks regenerate from the seed.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from longlive_core.config import ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.geometry import PATCH
from longlive_core.model.causal_wan import CausalWan, sinusoid
from longlive_core.model.rope import rotate, rotation
from longlive_core.rollout.noise import TIMESTEP_SCALE, clean_of, renoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name, from_wan

ATOL = 1e-4
ROPE_GRID = (2, 3, 4)  # frames, rows, columns of the RoPE units
BACKWARD = torch.tensor((1.0, -1.0))  # turns a rotation (cosine, sine) around
_spec = importlib.util.spec_from_file_location("seeded", Path(__file__).parent / "golden" / "seeded.py")
seeded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded)


def close(ours: torch.Tensor, golden: torch.Tensor, what: str) -> None:
    assert_close(ours, golden, atol=ATOL, rtol=0, msg=lambda m: f"{what}: {m}")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as golden:
        return golden.metadata() or {}


def model_config(text: str) -> ModelConfig:
    sizes = json.loads(text)
    names = {"in_dim": "latent_channels", "text_len": "text_tokens"}
    return ModelConfig(**{names.get(k, k): v for k, v in sizes.items() if k != "out_dim"})


def seeded_model(config: ModelConfig, seed: int) -> CausalWan:
    """The reference's seeded weights: a pure function of its own parameter names and shapes."""
    model = CausalWan(config)
    state = {}
    for name, parameter in model.named_parameters():
        official = foreign_name(name, "wan")
        shape = tuple(parameter.shape)
        if name == "patch_embedding.weight":
            shape = (config.dim, config.latent_channels, 1, 2, 2)
        state[official] = seeded.dit_param(seed, official, shape)
    model.load_state_dict(from_wan(state))
    return model


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
        self.batch = int(self.meta["batch"])
        self.inputs = load_file(self.folder / "dit_inputs.safetensors")
        self.seed = int(metadata(self.folder / "dit_inputs.safetensors")["seed"])
        self.prefix = f"batch{self.batch}." if self.batch > 1 else ""

    def model(self) -> CausalWan:
        inputs_meta = metadata(self.folder / "dit_inputs.safetensors")
        model = seeded_model(model_config(inputs_meta["set_model"]), self.seed)
        if (self.folder / "dit_weights.safetensors").exists():
            model.load_state_dict(from_wan(load_file(self.folder / "dit_weights.safetensors")))
        if lora := {"1": "tiny_lora", "2": "tiny_lora_alpha"}.get(self.meta["lora"]):
            return with_lora(model, self.folder / f"{lora}.safetensors")
        return model.eval()

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
        frames = int(metadata(self.folder / "dit_inputs.safetensors")["noise_frames"])
        rows = [seeded.normal(self.seed, f"noise.{b}", (frames, *latent)) for b in range(self.batch)]
        return torch.stack(rows)[:, : self.frames]

    def _renoise(self, block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        if f"{self.prefix}renoise" in self.inputs:
            return self.inputs[f"{self.prefix}renoise"][block, step].unflatten(0, (self.batch, -1))
        rows = [seeded.normal(self.seed, f"renoise.{block}.{step}.{b}", shape) for b in range(self.batch)]
        return torch.stack(rows)

    def script(self, block: int) -> Switch | None:
        """The reference's rule: at most one switch a block, at the first block at or after its index."""
        effective = json.loads(self.meta["effective_switch_frames"])
        starts = [0, *effective]
        if block * self.block not in starts:
            return None
        prompt = starts.index(block * self.block)
        policy = Policy.RECACHE if self.meta["global_sink"] == "true" else Policy.REFRESH
        return Switch(self.inputs[f"{self.prefix}prompt_embeds.{prompt}"], policy)


class Recorder(Hook):
    """Compares flow, clean estimates and cached K, V with the golden as they are made."""

    def __init__(self, recorded: Recorded):
        self.recorded, self.golden = recorded, recorded.golden
        self.compared = 0

    def on_step(self, block, step, flow, clean):
        if step == 0 and (name := f"flow.block{block:02d}.step0") in self.golden:
            close(flow.transpose(1, 2), self.golden[name], name)
        if "x0_steps" in self.golden:
            close(
                clean.transpose(1, 2),
                self.golden["x0_steps"][block, step],
                f"x0 of block {block} step {step}",
            )

    def on_commit(self, block, cache):
        self.compare(f"kv.block{block:02d}", cache)

    def on_recache(self, block, cache):
        self.compare(f"kv.recache_at_frame{block * self.recorded.block:03d}", cache)

    def compare(self, event, cache):
        grid = tuple(n // PATCH for n in self.golden["latents"].shape[-2:])
        for name, golden in self.golden.items():
            if name.startswith(f"{event}.layer"):
                layer, kind, form = name.removeprefix(f"{event}.layer").split(".")
                ours = in_time_order(cache, int(layer), kind, grid)
                ours = ours if form == "full" else ours.unflatten(1, (-1, grid[0] * grid[1])).mean(2)
                close(ours, golden, name)
                self.compared += 1


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
    stored = [name for name in recorded.golden if name.startswith("kv.") and ".layer" in name]
    assert recorder.compared == len(stored), "every stored K and V was compared"


def test_real_width_layer(golden_dir: Path) -> None:
    """One layer of the true width, three calls: noisy and clean at position 0, then the next block."""
    file = golden_dir / "dit_wide1536.safetensors"
    if not file.exists():
        pytest.skip("no real-width golden in this folder")
    golden, meta = load_file(file), metadata(file)
    seed, config = int(meta["seed"]), model_config(meta["config"])
    model = seeded_model(config, seed)
    prompt = seeded.normal(seed, "prompt", (1, config.text_tokens, config.text_dim)) * 0.2
    prompt[:, 37:] = 0
    first = golden["call0.x"].transpose(1, 2)
    scene = Scene(model, first, WindowConfig(), capacity=0)
    calls = zip(json.loads(meta["timesteps"]), json.loads(meta["starts"]), strict=True)
    with torch.no_grad():
        text = model.encode_text(prompt)
        for call, (timestep, start) in enumerate(calls):
            x = golden[f"call{call}.x"].transpose(1, 2)
            scene.open(start, x.shape[2])
            flow = scene.flow(x, timestep / TIMESTEP_SCALE, text)
            close(flow.transpose(1, 2), golden[f"call{call}.flow"], f"flow of call {call}")
            clean = clean_of(x, flow, table_sigma(timestep))
            close(clean.transpose(1, 2), golden[f"call{call}.x0"], f"x0 of call {call}")
            keys = scene.cache.layers[0].keys.first(scene.cache.opening.visible_tokens)
            close(keys, golden[f"call{call}.k"], f"K after call {call}")


def table_sigma(timestep: float) -> float:
    """The reference finds a sigma by the nearest timestep of its table, which has no 0 in it."""
    table = torch.tensor(shifted_sigmas(SigmaConfig(steps=tuple(range(1000, 0, -1)))))
    return float(table[(TIMESTEP_SCALE * table - timestep).abs().argmin()])


@pytest.fixture
def units(golden_dir: Path) -> dict[str, torch.Tensor]:
    if not (golden_dir / "units.safetensors").exists():
        pytest.skip("no units in this folder")
    return load_file(golden_dir / "units.safetensors")


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
    close(sinusoid(units["sinusoid.t"], 256).float(), units["sinusoid.256"], "timestep sinusoid")


@pytest.mark.parametrize("head_dim", [24, 32, 128])
@pytest.mark.parametrize("start", [0, 7, 500])
def test_unit_rope(units: dict[str, torch.Tensor], head_dim: int, start: int) -> None:
    x = units[f"rope{head_dim}.in"]
    frames, rows, columns = ROPE_GRID
    turned = rotate(x, rotation(torch.arange(start, start + frames), rows, columns, head_dim))
    close(turned, units[f"rope{head_dim}.start{start}"], f"RoPE of head dim {head_dim} from {start}")
