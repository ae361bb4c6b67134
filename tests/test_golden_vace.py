"""Our VACE path against tensors of the official one (Wan2.1 VaceWanModel, fp32, CPU).

`pytest tests/test_golden_vace.py --golden-dir DIR` runs every file of another folder: sizes, places, scales,
references, masks and switches come from each file. Weights that a folder lacks regenerate from its seed.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from longlive_core.config import Policy, SigmaConfig, WanAutoencoderConfig, WindowConfig
from longlive_core.geometry import PATCH
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.vace import ControlledWan, Vace
from longlive_core.rollout.noise import TIMESTEP_SCALE, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, rollout
from longlive_core.rollout.scene import Scene
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.context import ContextEncoder, fit_on_white
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.names import foreign_name
from longlive_core.weights.vace import graft
from longlive_core.weights.vae_files import from_reference
from tests.conftest import GOLDEN
from tests.test_golden import close, in_time_order, metadata, model_config, present, seeded

HINT_ATOL = 1e-3  # hints are about 9
AFTER_PROJ = 0.35  # by which the official after_proj were multiplied
VAE_NAMES = json.loads(metadata(GOLDEN / "vae_golden.safetensors")["weights"])
EVERYTHING = WindowConfig(sink_latent_frames=0, window_latent_frames=None)
FAMILIES = {
    "vace_causal": {"vace_layers", "spec"},
    "vace_batch": {"vace_layers", "calls"},
    "vace_context": {"cases", "vae_cfg"},
}


def vace_folder(given: Path) -> Path:
    return GOLDEN / "vace" if given == GOLDEN else given


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every file of a family becomes a test of its own; a file is known by the settings in its metadata."""
    folder = vace_folder(metafunc.config.getoption("--golden-dir"))
    for name in FAMILIES.keys() & set(metafunc.fixturenames):
        files = [file for file in sorted(folder.glob("*.safetensors")) if FAMILIES[name] <= {*metadata(file)}]
        missing = pytest.param(None, marks=pytest.mark.skip(f"no {name} in {folder}"), id="none")
        metafunc.parametrize(name, [pytest.param(file, id=file.stem) for file in files] or [missing])


def official_weights(folder: Path, meta: dict[str, str]) -> dict[str, Tensor]:
    """All weights of a file's model under official names: the folder's, or seeded."""
    if (folder / "vace_weights.safetensors").exists():
        return load_file(folder / "vace_weights.safetensors")
    return seeded_weights(meta)


def seeded_weights(meta: dict[str, str]) -> dict[str, Tensor]:
    """The same by the rule they were made by."""
    config, seed = model_config(meta["config"]), int(meta["seed"])
    vace, state = Vace(config, json.loads(meta["vace_layers"])).state_dict(), {}
    parts = CausalWan(config).state_dict() | {f"vace.{name}": weight for name, weight in vace.items()}
    for name, weight in parts.items():
        official, is_patch = foreign_name(name, "wan"), name.endswith("patch_embedding.weight")
        shape = (len(weight), weight.shape[1] // PATCH**2, 1, PATCH, PATCH) if is_patch else weight.shape
        share = AFTER_PROJ if official.endswith("after_proj.weight") else 1
        state[official] = share * seeded.dit_param(seed, official, (*shape,))
    return state


def test_seeded_weights_are_those_of_the_reference(golden_dir: Path) -> None:
    file = present(vace_folder(golden_dir) / "vace_weights.safetensors")
    theirs, ours = load_file(file), seeded_weights(metadata(file))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def model_of(file: Path, tmp_path: Path) -> CausalWan:
    """The model of a golden, loaded as a transformer and a VACE file grafted on it."""
    meta = metadata(file)
    official, config = official_weights(file.parent, meta), model_config(meta["config"])
    base, whole = tmp_path / "longlive_base.safetensors", tmp_path / "vace.safetensors"
    save_file({name: weight for name, weight in official.items() if not name.startswith("vace_")}, base)
    save_file(official, whole)
    (tmp_path / "config.json").write_text(json.dumps({"vace_layers": json.loads(meta["vace_layers"])}))
    model = load_transformer(base, precision="fp32", num_heads=config.num_heads).transformer
    graft(model, whole, "fp32")
    return model


def hints_close(ours: Tensor, golden: Tensor, what: str) -> None:
    assert_close(ours, golden, atol=HINT_ATOL, rtol=0, msg=lambda m: f"{what}: {m}")


def given(context: Tensor) -> Callable[[int, bool], Tensor]:
    """One context for all blocks."""
    return lambda block, opens_scene: context


@torch.no_grad()
def test_batch(vace_batch: Path, tmp_path: Path) -> None:
    """One pass over all frames at once: the flow, and what each VACE layer gives."""
    golden, model = load_file(vace_batch), model_of(vace_batch, tmp_path)
    hints: list[Tensor] = []
    for layer in model.vace.layers:
        layer.after_proj.register_forward_hook(lambda *call: hints.append(call[-1][0]))
    for name, call in json.loads(metadata(vace_batch)["calls"]).items():
        x, context = golden[f"{name}.x"][None], golden[f"{name}.context"][None]
        for scale in dict.fromkeys((call["scale"], 1.0)):
            hints.clear()
            controlled = ControlledWan(model, given(context), scale)
            scene = Scene(controlled, x, EVERYTHING, call["frames"])
            scene.control(controlled.context_of(0, True))
            scene.open(0, call["frames"])
            text = controlled.encode_text(golden[f"prompt_embeds.{call['prompt']}"][None])
            flow = scene.flow(x, call["timestep"] / TIMESTEP_SCALE, text)
            if scale == call["scale"]:
                close(flow[0], golden[f"{name}.flow"], f"flow of {name}")
                assert bool(hints) == bool(scale)
        assert len(hints) == len(model.vace.layers)
        for index, hint in enumerate(hints):
            hints_close(hint, golden[f"{name}.hint.{index}"], f"hint {index} of {name}")


class Keys(Hook):
    """Compares flows, and keys of the last layer, with the golden as they are made."""

    def __init__(self, golden: dict[str, Tensor], grid: tuple[int, int]):
        self.golden, self.grid = golden, grid
        self.left = {name for name in golden if name != "latents"}

    def on_step(self, block, step, flow, clean):
        if (name := f"flow.block{block:02d}.step{step}") in self.golden:
            close(flow.transpose(1, 2), self.golden[name], name)
            self.left.remove(name)

    def on_commit(self, block, cache):
        self.compare(f"kv.block{block:02d}.k.layer_last.slotmean", cache)

    def on_recache(self, block, cache):
        self.compare("recache.k.layer_last", cache)

    def compare(self, name, cache):
        if name in self.golden:
            ours = in_time_order(cache, -1, "k", self.grid)
            tokens = self.grid[0] * self.grid[1]
            ours = ours.unflatten(1, (-1, tokens)).mean(2) if name.endswith("slotmean") else ours
            close(ours, self.golden[name], name)
            self.left.remove(name)


def causal_latents(file: Path, model: CausalWan, hook: Hook | None = None) -> Tensor:
    """All latents [B, T, C, H, W] of a causal golden."""
    meta, inputs = metadata(file), load_file(present(file.parent / "vace_inputs.safetensors"))
    spec, block = json.loads(meta["spec"]), int(meta["block"])
    references = inputs[f"refs{spec['refs']}"][None] if spec.get("refs") else None

    def noise(index: int, step: int) -> Tensor:
        first = inputs["noise"][:, index * block : (index + 1) * block]
        return (inputs["renoise"][index, step - 1][None] if step else first).transpose(1, 2)

    def script(index: int) -> Switch | None:
        starts = {0: 0} | ({spec["switch"] // block: 1} if "switch" in spec else {})
        prompt = starts.get(index)
        return None if prompt is None else Switch(inputs[f"prompt_embeds.{prompt}"][None], Policy.RECACHE)

    def context_of(index: int, opens_scene: bool, given: Tensor | None) -> Tensor:
        return inputs["context"][None, :, index * block : (index + 1) * block]

    made = rollout(
        ControlledWan(model, context_of, spec["scale"], references),
        script,
        noise,
        shifted_sigmas(SigmaConfig(tuple(json.loads(meta["denoising_step_list"])), float(meta["shift"]))),
        WindowConfig(block, spec["sink"], spec["win"]),
        range(spec["frames"] // block),
        hook=hook,
    )
    return torch.cat([block.latents for block in made], dim=2).transpose(1, 2)


def test_causal(vace_causal: Path, tmp_path: Path) -> None:
    golden = load_file(vace_causal)
    keys = Keys(golden, tuple(side // PATCH for side in golden["latents"].shape[-2:]))
    close(causal_latents(vace_causal, model_of(vace_causal, tmp_path), keys), golden["latents"], "latents")
    assert not keys.left, "every stored flow and key was compared"


def autoencoder_of(meta: dict[str, str]) -> WanAutoencoder:
    """The seeded VAE of a context golden."""
    sizes, seed = json.loads(meta["vae_cfg"]), int(meta["seed"])
    steps = tuple(sizes["dim_mult"]), sizes["num_res_blocks"], tuple(sizes["temperal_downsample"])
    vae = WanAutoencoder(WanAutoencoderConfig(sizes["dim"], *steps))
    official = from_reference({name: name for name in VAE_NAMES})
    state = {
        name: seeded.vae_param(seed, official[name], (*weight.shape,))
        for name, weight in vae.state_dict().items()
    }
    vae.load_state_dict(state)
    return vae.requires_grad_(False)


def pixels(golden: Tensor) -> Tensor:
    """[C, F, H, W] in [-1, 1] -> [1, F, C, H, W] in [0, 1]."""
    return ((golden + 1) / 2).transpose(0, 1)[None]


def test_context(vace_context: Path) -> None:
    """Control, masks and references of every case: the whole clip at once, as batch VACE takes it."""
    golden, meta = load_file(vace_context), metadata(vace_context)
    vae = autoencoder_of(meta)
    for name, case in json.loads(meta["cases"]).items():
        is_gray = case["video"] == "gray"
        video = torch.zeros_like(golden["video"]) if is_gray else golden[case["video"]]
        mask = torch.ones_like(video[:1]) if case["mask"] == "ones" else golden[f"mask.{case['mask']}"]
        encoder = ContextEncoder(vae)
        context = encoder.push(pixels(video), mask.transpose(0, 1)[None])
        images = [pixels(golden[f"ref.{index}"])[0, 0].movedim(0, -1) for index in range(case["refs"])]
        if images:
            context = torch.cat((encoder.of_references(images, *video.shape[2:]), context), dim=2)
        close(context[0], golden[f"{name}.context"], f"context of {name}")


def test_references_are_fitted_on_white(vace_context: Path) -> None:
    golden = load_file(vace_context)
    for name in (name.removesuffix(".fitted") for name in golden if name.endswith(".fitted")):
        right = pixels(golden[f"{name}.fitted"])[0]
        close(fit_on_white(pixels(golden[name])[0], *right.shape[2:]), right, name)


def in_blocks(count: int) -> list[int]:
    """9 frames, then 12 at a time."""
    return [9, *[12] * ((count - 9) // 12)]


def test_context_is_streamed_block_by_block(vace_context: Path) -> None:
    """Bit for bit the whole clip's latents; masks by the rule for blocks, which still ones do not notice."""
    golden, meta = load_file(vace_context), metadata(vace_context)
    vae, video = autoencoder_of(meta), pixels(golden["video"])
    for name in (name.removesuffix(".by_block") for name in golden if name.endswith(".by_block")):
        masks = golden[name].transpose(0, 1)[None]
        whole = ContextEncoder(vae).push(video, masks)
        streaming, sizes = ContextEncoder(vae), in_blocks(video.shape[1])
        pairs = zip(video.split(sizes, dim=1), masks.split(sizes, dim=1), strict=True)
        streamed = torch.cat([streaming.push(*pair) for pair in pairs], dim=2)
        assert torch.equal(streamed[:, :32], whole[:, :32]), name
        assert torch.equal(streamed[0, 32:], golden[f"{name}.by_block"]), name
