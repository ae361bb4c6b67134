"""Our rollout against tensors of Self Gradient Forcing, SGF+ and few-step lists (their own code, fp32, CPU).

`pytest tests/test_golden_sgf.py --golden-dir DIR` runs every file of another folder: sizes, windows, spans of
positions, step lists, prefixes, policies and the presence of memory weights come from each file. Weights,
noise and prefixes that a folder lacks regenerate from its seed.
"""

import json
import math
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_core.config import ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.two_sets import TwoSetWan
from longlive_core.rollout.noise import Sigmas, shifted_sigmas
from longlive_core.rollout.rollout import Switch, rollout
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.names import from_wan, our_name
from tests.conftest import FAMILIES, scenarios_in
from tests.test_golden import (
    PATCH,
    Recorded,
    Recorder,
    close,
    in_time_order,
    metadata,
    model_config,
    present,
    seeded,
    seeded_model,
)

LAYOUTS = {"sgf": "tiny_sgf.pt", "sgf+": "tiny_sgf_plus.pt"}
PROBES = {"sgf": "dit_weights_probe_sgf", "sgf+": "dit_weights_probe_plus"}


def two_sets(config: ModelConfig, seed: int) -> TwoSetWan:
    """The seeded model with memory weights by the plain rule at seed + 1."""
    model, memory = TwoSetWan(config), seeded_model(config, seed + 1)
    model.memory.load_state_dict(memory.state_dict())
    model.load_state_dict(seeded_model(config, seed).state_dict(), strict=False)
    return model


@lru_cache(maxsize=2)
def model_of(folder: Path, kind: str) -> CausalWan:
    """The model of a folder's scenarios; weights in the folder, if any, come before seeded ones."""
    about = metadata(folder / "dit_inputs.safetensors")
    make = two_sets if kind == "sgf+" else seeded_model
    model = make(model_config(about["set_model"]), int(about["seed"]))
    for file in (folder / "dit_weights.safetensors", folder / f"dit_weights_{kind}.safetensors"):
        if file.exists():
            model.load_state_dict(from_wan(load_file(file)), strict=False)
    return model.requires_grad_(False).eval()


class Sgf(Recorded):
    """One scenario; its first `initial` latent frames are given, not made."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.initial = int(self.meta["initial_latents"])
        self.latent = self.golden["latents"].shape[2:]
        self.first = self.initial // self.block
        starts = [0, *json.loads(self.meta["effective_switch_frames"])]
        self.starts = [start for start in starts if start < self.frames]

    def model(self) -> CausalWan:
        return model_of(self.folder, self.meta["model"])

    def window(self) -> WindowConfig:
        sizes, is_endless = super().window(), self.meta["infinity"] == "true"
        is_spanned = is_endless and sizes.window_latent_frames and self.meta["position_mode"] == "top_aligned"
        span = int(self.meta["train_frames"]) if is_spanned else None
        return WindowConfig(
            sizes.block_latent_frames,
            sizes.sink_latent_frames,
            sizes.window_latent_frames,
            is_endless,
            positions_latent_frames=span,
        )

    def sigmas(self) -> Sigmas:
        names = ("denoising_step_list", "denoising_step_list_first_block")
        steps, first = (tuple(json.loads(self.meta[name])) for name in names)
        return shifted_sigmas(SigmaConfig(steps, float(self.meta["shift"]), first))

    def past(self) -> Tensor | None:
        if not self.initial:
            return None
        if "initial" in self.inputs:
            return self.inputs["initial"][:, : self.initial].transpose(1, 2)
        shape = (self.initial, *self.latent)
        rows = [1.1 * seeded.normal(self.seed, f"initial.{b}", shape) for b in range(self.batch)]
        return torch.stack(rows).transpose(1, 2)

    def noise(self, block: int, step: int) -> Tensor:
        return super().noise(block if step else block - self.first, step)

    def _first_noise(self, latent: torch.Size) -> Tensor:
        shape = (self.frames - self.initial, *latent)
        rows = [seeded.normal(self.seed, f"noise.{b}", shape) for b in range(self.batch)]
        return self.inputs.get(f"{self.prefix}noise", torch.stack(rows))

    def embeds(self, frame: int) -> Tensor:
        """The prompt in effect at a latent frame."""
        prompt = sum(start <= frame for start in self.starts) - 1
        return self.inputs[f"{self.prefix}prompt_embeds.{prompt}"]

    def script(self, block: int) -> Switch | None:
        frame = block * self.block
        if block > self.first and frame not in self.starts:
            return None
        return Switch(self.embeds(frame), Policy(self.meta["policy"]))


class SgfRecorder(Recorder):
    """Compares also the given blocks, and the flow of the clean pass of block 0."""

    def on_open(self, scene):
        self.scene = scene
        for block in range(self.recorded.first):
            self.compare(("block", block), scene.cache, (block + 1) * self.recorded.block)
        if self.recorded.first == 1:
            self.compare_clean_flow()

    def on_step(self, block, step, flow, clean):
        steps = self.golden.get("x0_steps", ())
        if name := self.flows.get((block, step)):
            close(flow.transpose(1, 2), self.golden[name], name)
            self.left.remove(name)
        if (made := block - self.recorded.first) < len(steps):
            close(clean.transpose(1, 2), steps[made, step], f"x0 of block {block} step {step}")

    def on_commit(self, block, cache):
        super().on_commit(block, cache)
        if not block:
            self.compare_clean_flow()

    def compare(self, event, cache, frames=None):
        """As a Recorder, or only the first frames."""
        grid = tuple(n // PATCH for n in self.recorded.latent[-2:])
        tokens = math.prod(grid)
        for name, layer, kind, form in self.events[event]:
            ours = in_time_order(cache, layer, kind, grid)[:, : frames and frames * tokens]
            ours = ours if form == "full" else ours.unflatten(1, (-1, tokens)).mean(2)
            close(ours, self.golden[name], name)
            self.left.remove(name)

    @torch.no_grad()
    def compare_clean_flow(self):
        """What the pass that fills the cache would put out; it writes the same keys and values again."""
        scene, golden = self.scene, self.golden.get("clean_flow.block00")
        if golden is None:
            return
        writer = getattr(scene.model, "memory", scene.model)
        flow = writer(
            scene.newest(self.recorded.block),
            writer.modulations(torch.zeros(1)),
            scene.rotations,
            scene.cache,
            writer.encode_text(self.recorded.embeds(0)),
        )
        close(flow.transpose(1, 2), golden, "clean flow of block 0")


def latents_of(recorded: Sgf, hook=None, **changes) -> Tensor:
    """All latents [B, T, C, H, W] of a scenario, the given ones first."""
    past = recorded.past()
    made = rollout(
        recorded.model(),
        recorded.script,
        recorded.noise,
        recorded.sigmas(),
        changes.get("window", recorded.window()),
        range(recorded.first, recorded.frames // recorded.block),
        past,
        hook,
    )
    blocks = [block.latents for block in made]
    return torch.cat(blocks if past is None else [past, *blocks], dim=2).transpose(1, 2)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ("batch global_sink infinity local_attn_size lora", "dit_golden"),
        ("global_sink local_attn_size initial_latents model policy position_mode train_frames", "sgf_golden"),
        ("local_attn_size given start_step", "picture_golden"),
        ("window sink texts", None),
    ],
    ids=("longlive", "sgf", "pictures", "longlive 2"),
)
def test_each_family_has_a_fixture_of_its_own(settings: str, family: str | None, tmp_path: Path) -> None:
    """Given the folder of another family, or of none, the tests of scenarios skip."""
    metadata = dict.fromkeys(settings.split(), "1")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata | {"scenario": "a"})
    save_file({"a": torch.zeros(1)}, tmp_path / "dit_inputs.safetensors", metadata)
    for fixture in ("dit_golden", *FAMILIES):
        found = [file.name for file in scenarios_in(tmp_path, fixture)]
        assert found == (["a.safetensors"] if fixture == family else [])


def test_scenario(sgf_golden: Path) -> None:
    recorded = Sgf(sgf_golden)
    recorder = SgfRecorder(recorded)
    close(latents_of(recorded, recorder), recorded.golden["latents"], "latents")
    assert not recorder.left, "every stored flow, K and V was compared"


@pytest.mark.parametrize("kind", PROBES)
def test_seeded_weights_are_those_of_the_reference(sgf_dir: Path, kind: str) -> None:
    """The first numbers of every tensor, the second set's among them."""
    file = present(sgf_dir / f"{PROBES[kind]}.safetensors")
    ours = model_of(sgf_dir, kind).state_dict()
    probes = {our_name(name): numbers for name, numbers in load_file(file).items()}
    assert probes.keys() == ours.keys()
    for name, numbers in probes.items():
        assert torch.equal(ours[name].flatten()[: len(numbers)], numbers), name


def ema_of(file: Path) -> dict[str, Tensor]:
    """The averaged section of a published layout, under the reference's names."""
    section = torch.load(present(file), weights_only=True)["generator_ema"]
    return {
        name.replace("_fsdp_wrapped_module.", "").removeprefix("model."): t for name, t in section.items()
    }


@pytest.mark.parametrize("kind", LAYOUTS)
def test_published_layouts_load_their_ema(sgf_dir: Path, kind: str) -> None:
    file = sgf_dir / LAYOUTS[kind]
    right = from_wan(ema_of(file))
    loaded = load_transformer(file, precision="fp32")
    assert loaded.preset.name == {"sgf": "sgf-chunkwise", "sgf+": "sgf-plus-chunkwise"}[kind]
    ours = loaded.transformer.state_dict()
    assert ours.keys() == right.keys()
    assert all(torch.equal(ours[name], right[name]) for name in right)


PREFIXES = (
    "",
    "model.",
    "model._fsdp_wrapped_module.",
    "_orig_mod.",
    "module.model.",
    "model.diffusion_model.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_wrapper_before_a_name_is_dropped(
    sgf_dir: Path, tmp_path: Path, kind: str, prefix: str
) -> None:
    plain = ema_of(sgf_dir / LAYOUTS[kind])
    wrapped = {prefix + name: tensor.contiguous() for name, tensor in plain.items()}
    inner = {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for name, t in wrapped.items()
    }
    torch.save({"generator": {}, "generator_ema": inner}, tmp_path / LAYOUTS[kind])
    save_file(wrapped, tmp_path / "sgf.safetensors", {"preset": "sgf-plus-framewise"} if "+" in kind else {})
    for file in (tmp_path / LAYOUTS[kind], tmp_path / "sgf.safetensors"):
        ours = load_transformer(file, precision="fp32").transformer.state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in from_wan(plain).items()), file.name
