"""Options that more than one command has, and how their texts are read."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from ..config import PRESETS, Preset, SigmaConfig, WindowConfig
from ..fast import compiled
from ..model import attention
from ..weights.lora import LoraChoice
from ..weights.quantize import PRECISIONS


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
        raise argparse.ArgumentTypeError(f"a LoRA of strength {strength} is none; choose a number like 0.8")
    return choice


def add_size_and_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=size, metavar="WxH", help="default: the model's own")
    parser.add_argument("--window", type=int, help="latent frames a block sees, 0 for all")
    parser.add_argument("--sink", type=int, help="first latent frames that are never forgotten")
    parser.add_argument(
        "--kv-cache",
        choices=("full", "fp8"),
        default="full",
        help="fp8: half its memory, see docs/precision.md",
    )


def add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps",
        type=int,
        choices=tuple(SigmaConfig().choices),
        help="denoising steps a block (default: 4). With mini, 3 are 1.3 times as fast, the first block a "
        "little worse; 2 are 1.6 times as fast, more first blocks and backgrounds after switches go wrong",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mini", metavar="NAME", help="mini (built in), a download by name, or a checkpoint"
    )
    parser.add_argument("--folder", type=Path, default=Path("models"), help="of downloads; default: models")
    parser.add_argument(
        "--lora", type=lora, action="append", default=[], metavar="FILE[:STRENGTH]", help="may be repeated"
    )
    parser.add_argument("--vae", type=Path, metavar="FILE", help="the Wan 2.1 VAE, or a tiny decoder for it")
    parser.add_argument("--text-encoder", type=Path, metavar="FILE", help="UMT5-XXL: a file or a folder")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="where the text encoder has none")
    parser.add_argument("--keep-text-encoder", action="store_true", help="do not free it after reading")
    parser.add_argument("--family", help="longlive-1.3b, self-forcing, ...; default: told from the file")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="bf16",
        help="of the stored weights; fp8-fast also multiplies in fp8, on GPUs that can",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="decode in tiles to save memory"
    )
    add_attention(parser)
    add_speed(parser)


def add_attention(parser: argparse.ArgumentParser) -> None:
    names = (attention.AUTO, *attention.BACKENDS)
    parser.add_argument(
        "--attention",
        choices=(*names, *attention.REMOVED),
        metavar=f"{{{','.join(names)}}}",
        default=attention.AUTO,
        help="auto: the fastest exact one here",
    )


def add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed",
        choices=(*compiled.SPEEDS, *compiled.REMOVED),
        metavar=f"{{{','.join(compiled.SPEEDS)}}}",
        default=compiled.EAGER,
        help="compiled: the layers are compiled, up to two minutes the first time",
    )


def window_from(options: argparse.Namespace, preset: Preset) -> WindowConfig | None:
    """The window that the options ask for; None when they leave everything to the preset."""
    changes = {}
    if options.window is not None:
        changes["window_latent_frames"] = options.window or None
    if options.sink is not None:
        if options.window == 0 and options.sink:
            raise ValueError(
                "--window 0 sees everything, so there is no --sink to keep; leave one of them out"
            )
        changes["sink_latent_frames"] = options.sink
    if options.kv_cache == "fp8":
        changes["has_small_cache"] = True
    return replace(preset.window, **changes) if changes else None


def device_named(name: str) -> torch.device:
    """`cuda`, `cpu`, ...; ValueError for a name that is no device."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is not a device; choose cpu or cuda") from error


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
