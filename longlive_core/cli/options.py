"""Options that more than one command has, and how they are read."""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import PRESETS, Preset, SigmaConfig, WindowConfig
from ..fast import compiled
from ..model import attention
from ..weights.checkpoints import preset_of_name
from ..weights.lora import LoraChoice
from ..weights.published import DOWNLOADS
from ..weights.quantize import PRECISIONS
from .stderr import STDERR


def size(text: str) -> tuple[int, int]:
    """`832x480` -> (832, 480)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 832x480")
    return int(width), int(height)


def lora(text: str) -> LoraChoice:
    """`lora.pt` or `lora.pt:0.8` -> a file and its strength."""
    path, colon, strength = text.rpartition(":")
    try:
        choice = LoraChoice(Path(path), float(strength)) if colon else LoraChoice(Path(text))
    except ValueError:  # a colon that belongs to the path
        return LoraChoice(Path(text))
    if not math.isfinite(choice.strength):
        raise argparse.ArgumentTypeError(f"a LoRA cannot have strength {strength}; choose a number like 0.8")
    return choice


def add_size_and_window(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", type=size, metavar="WxH", help="default: the model's own")
    add("--window", type=int, help="latent frames that a block attends to, 0 for all")
    add("--sink", type=int, help="first latent frames, which never leave the window")
    cache = "fp8: half the memory, see docs/precision.md"
    add("--kv-cache", choices=("full", "fp8"), default="full", help=cache)


def add_steps(parser: argparse.ArgumentParser) -> None:
    speedups = (
        "denoising steps a block (default: 4). With mini, 3 are 1.3 times as fast, the first block a "
        "little worse; 2 are 1.6 times as fast, more first blocks and backgrounds after switches go wrong"
    )
    parser.add_argument("--steps", type=int, choices=tuple(SigmaConfig().choices), help=speedups)


def add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model", default="mini", metavar="NAME", help="mini (built in), a download by name, or a checkpoint"
    )
    add("--folder", type=Path, default=Path("models"), help="of downloads; default: models")
    add_lora(parser)
    add("--vae", type=Path, metavar="FILE", help="the Wan 2.1 VAE, or a tiny decoder for it")
    add("--vace", type=Path, metavar="FILE", help="Wan2.1-VACE-1.3B, for control of the video")
    add("--text-encoder", type=Path, metavar="FILE", help="UMT5-XXL: a file or a folder")
    add("--tokenizer", type=Path, metavar="FOLDER", help="where the text encoder has none")
    add("--keep-text-encoder", action="store_true", help="do not unload it once the prompts are encoded")
    add("--family", help="longlive-1.3b, self-forcing, ...; default: by the name of the file")
    precision = (
        "of the stored weights; fp8-fast also multiplies in fp8, on GPUs that can; int8 multiplies in int8 "
        "where comfy-kitchen is faster than without, int8-fast always"
    )
    add("--precision", choices=PRECISIONS, default="bf16", help=precision)
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--tile", type=int, default=0, metavar="PIXELS", help="decode in tiles to save memory")
    add_attention(parser)
    add_speed(parser)


def add_lora(parser: argparse.ArgumentParser) -> None:
    repeated = {"action": "append", "default": [], "help": "may be repeated"}
    parser.add_argument("--lora", type=lora, metavar="FILE[:STRENGTH]", **repeated)


def add_attention(parser: argparse.ArgumentParser) -> None:
    names = (attention.AUTO, *attention.BACKENDS)
    fastest = "auto: the fastest exact one on this device; sage and int8 round to 8 bits"
    parser.add_argument("--attention", **choice(names, attention.known_attention), help=fastest)


def add_speed(parser: argparse.ArgumentParser) -> None:
    compiles = "compiled: compile the layers, which takes up to two minutes the first time"
    parser.add_argument("--speed", **choice(compiled.SPEEDS, compiled.known_speed), help=compiles)


def choice(names: tuple[str, ...], known: Callable[[str], tuple[str, str | None]]) -> dict[str, Any]:
    """One of `names`, by default the first; `known` replaces removed names and says so in a note."""

    def parse(text: str) -> str:
        try:
            name, note = known(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if note:
            print(note, file=STDERR)
        return name

    return {"type": parse, "default": names[0], "metavar": f"{{{','.join(names)}}}"}


def window_from(options: argparse.Namespace, preset: Preset) -> WindowConfig | None:
    """The window of the options; None if they leave everything to the preset."""
    if options.window == 0 and options.sink:
        raise ValueError("--window 0 attends to all frames and needs no --sink; leave one of them out")
    changes = {"has_small_cache": True} if options.kv_cache == "fp8" else {}
    if options.window is not None:
        changes["window_latent_frames"] = options.window or None
    if options.sink is not None:
        changes["sink_latent_frames"] = options.sink
    return replace(preset.window, **changes) if changes else None


def device_named(name: str) -> torch.device:
    """`cuda`, `cpu`, ...; ValueError for a name that is no device."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is not a device; choose cpu or cuda") from error


def preset_named(name: str) -> Preset:
    if name in DOWNLOADS:
        return preset_of_name(Path(DOWNLOADS[name][0].name))
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join({**PRESETS, **DOWNLOADS})}")
    return PRESETS[name]
