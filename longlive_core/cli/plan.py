"""`longlive plan`: the memory that a run will need, and the settings that fit."""

import argparse
from dataclasses import replace
from itertools import islice

from .. import geometry
from ..config import LONGLIVE_1_3B
from ..fast.compiled import EAGER, known_speed
from ..memory import DECODERS, GIB, Setting, estimate, fitting
from ..pipeline import checked_frames
from ..weights.quantize import PRECISIONS
from .options import add_size_and_window, add_speed, device_named, preset_named, window_from

HELP = "estimate the memory that a run needs, and list settings that fit a smaller GPU"
NUM_SHOWN = 4
MAX_VRAM_GIB = 1_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=LONGLIVE_1_3B.name, help="a model by name")
    add_size_and_window(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--decoder", choices=DECODERS, default="wan")
    parser.add_argument("--control", action="store_true", help="count the layers and the context of VACE too")
    add_speed(parser)  # compiled layers need no more
    parser.add_argument("--device", default="cuda", help="cuda or cpu: where the video is made")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of the video; longer ones need more only with --window 0"
    )
    parser.add_argument("--video", action="store_true", help="footage is transformed: count the encoder")
    parser.add_argument("--vram", type=float, metavar="GIB", help="also list settings that fit")


def run(options: argparse.Namespace) -> None:
    """Print the table, and on request what fits."""
    if options.vram is not None and not 0 < options.vram <= MAX_VRAM_GIB:
        raise ValueError(
            f"--vram {options.vram:g} is not possible; choose more than 0 and at most {MAX_VRAM_GIB}"
        )
    preset, device = preset_named(options.model), device_named(options.device)
    width, height = options.size or (preset.width, preset.height)
    num_blocks = geometry.num_blocks(checked_frames(options.seconds), preset.window.block_latent_frames)
    window = window_from(options, preset) or preset.window
    wanted = Setting(width, height, options.precision, options.decoder, window, num_blocks)
    wanted = replace(wanted, has_source=options.video, has_control=options.control)
    speed, _ = known_speed(options.speed)
    print(wanted if speed == EAGER else f"{wanted}, speed {speed}")
    print("\n".join(estimate(preset, wanted, device).lines()))
    if options.vram is not None:
        print(f"\nwithin {options.vram:g} GiB:")
        found = list(islice(fitting(preset, wanted, int(options.vram * GIB), device), NUM_SHOWN))
        for setting, needs in found:
            print(f"  {needs.total / GIB:5.2f} GiB  {setting}")
        if not found:
            print("  nothing: the smallest setting tried needs more")
