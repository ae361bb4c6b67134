"""`python -m benchmarks.true_size FOLDER`: LongLive-1.3B at its true size, with random weights.

Writes a checkpoint and a LoRA in the reference's layout (7 GB), loads them as a user would, and makes one
block of 832x480 with its window full: four denoising steps, the commit, and the decode with the tiny decoder.
Every stage is a process of its own, so that its peak memory is its own. Takes an hour on two CPU cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import report
from longlive_core.bench.random_model import build_decoder
from longlive_core.config import LONGLIVE_1_3B, ModelConfig
from longlive_core.geometry import latent_size
from longlive_core.memory import Setting, estimate
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, commit, denoise
from longlive_core.rollout.scene import Scene
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.weights.checkpoints import LoadedTransformer, load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name
from longlive_core.weights.quantize import PRECISIONS

RANK = 256
SCALE = 0.02
KIB = 1024
STAGES = ("write", "load", "block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="only this one, in this process")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    options = parser.parse_args()
    if options.stage:
        figures = globals()[options.stage](options.folder, options.precision)
        print(json.dumps(figures))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    report("true_size", {stage: in_a_process(stage, options) for stage in STAGES})


def in_a_process(stage: str, options: argparse.Namespace) -> dict:
    """The figures of one stage, run by itself; its progress shows meanwhile."""
    command = [sys.executable, "-m", "benchmarks.true_size", str(options.folder), "--stage", stage]
    command += ["--precision", options.precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """The most memory this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def write(folder: Path, _: str) -> dict[str, float]:
    """longlive_base.pt in fp32 and lora.pt, both random."""
    files = (folder / "longlive_base.pt", folder / "lora.pt")
    random_files(ModelConfig(), *files)
    sizes = [file.stat().st_size for file in files]
    return {"checkpoint_gb": round(sizes[0] / 1e9, 3), "lora_gb": round(sizes[1] / 1e9, 3)}


def random_files(config: ModelConfig, base: Path, lora: Path) -> None:
    """Write a checkpoint in fp32 and a LoRA on all matrices of its layers, in the reference's layout."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in CausalWan(config).state_dict().items()}
    state = {f"model.{foreign_name(n, 'wan')}": SCALE * torch.randn(s) for n, s in shapes.items()}
    patch = "model.patch_embedding.weight"
    state[patch] = state[patch].view(config.dim, config.latent_channels, 1, 2, 2)
    torch.save({"generator": state}, base)
    pairs = {}
    for name, shape in shapes.items():
        if name.startswith("layers.") and len(shape) == 2:
            stem = "base_model.model." + foreign_name(name, "wan").removesuffix(".weight")
            pairs[f"{stem}.lora_A.weight"] = SCALE * torch.randn(RANK, shape[1])
            pairs[f"{stem}.lora_B.weight"] = SCALE * torch.randn(shape[0], RANK)
    torch.save({"generator_lora": pairs}, lora)


def loaded(folder: Path, precision: str) -> LoadedTransformer:
    return load_transformer(
        folder / "longlive_base.pt", [LoraChoice(folder / "lora.pt")], precision, on_progress=show
    )


def show(done: int, total: int) -> None:
    print(f"\rloading {100 * done / total:3.0f} %", end="", file=sys.stderr, flush=True)


def load(folder: Path, precision: str) -> dict[str, object]:
    """Peak memory of loading, against the size of the checkpoint's file."""
    before, start = peak_bytes(), time.perf_counter()
    notes = loaded(folder, precision).notes
    size = (folder / "longlive_base.pt").stat().st_size
    return {
        "precision": precision,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_rss_gb": round(peak_bytes() / 1e9, 2),
        "before_gb": round(before / 1e9, 2),
        "peak_to_file": round(peak_bytes() / size, 3),
        "notes": list(notes),
    }


class Passes(Hook):
    """Measures each denoising step."""

    def __init__(self):
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def on_step(self, block: int, step: int, flow: torch.Tensor, clean: torch.Tensor) -> None:
        now = time.perf_counter()
        self.seconds.append(round(now - self._last, 1))
        self._last = now
        print(f"step {step}: {self.seconds[-1]} s", file=sys.stderr, flush=True)


@torch.inference_mode()
def block(folder: Path, precision: str) -> dict[str, object]:
    """One block in mid-video, and the memory it takes against what is planned."""
    before, preset = peak_bytes(), LONGLIVE_1_3B
    model, window = loaded(folder, precision).transformer, preset.window
    shape = (1, preset.model.latent_channels, window.block_latent_frames)
    shape = (*shape, *latent_size(preset.width, preset.height))
    scene = Scene(model, torch.empty(shape), window, 0)
    for layer in scene.cache.layers:
        layer.keys.data.normal_()
        layer.values.data.normal_()
    scene.append(torch.randn(*shape[:2], scene.cache.frames, *shape[3:]))
    text = model.encode_text(torch.randn(1, preset.model.text_tokens, preset.model.text_dim))
    passes, start = Passes(), time.perf_counter()
    latents = denoise(scene, text, SeededNoise(0, shape), shifted_sigmas(preset.sigmas), 4, passes)
    commit(scene, text, latents)
    made = time.perf_counter() - start
    frames = StreamingDecoder(build_decoder(preset, "tiny").to(model.dtype)).push(latents)
    setting = Setting(preset.width, preset.height, precision, "tiny")
    planned = estimate(preset, setting, model.device).total
    taken = peak_bytes() - before
    return {
        "precision": precision,
        "arithmetic": str(model.dtype),
        "seconds_by_step": passes.seconds,
        "seconds_block": round(made, 1),
        "frames": list(frames.shape),
        "is_finite": bool(torch.isfinite(latents).all()),
        "taken_gb": round(taken / 1e9, 2),
        "planned_gb": round(planned / 1e9, 2),
        "planned_to_taken": round(planned / taken, 3),
    }


if __name__ == "__main__":
    main()
