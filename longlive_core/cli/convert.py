"""`longlive convert`: a checkpoint and its LoRAs -> one small file that loads fast, in ComfyUI too."""

import argparse
from pathlib import Path

from ..weights.convert import CONVERTED, convert
from .options import add_lora
from .outputs import check_writable
from .signals import ending_like_ctrl_c
from .stderr import STDERR, loading_bar, show

HELP = "merge a checkpoint and its LoRAs into one small file that loads fast, in ComfyUI too"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="a transformer in any layout, e.g. longlive_base.pt")
    add_lora(parser)
    add("--family", help="longlive-1.3b, self-forcing, ...; default: by the file's metadata or name")
    add("--precision", choices=CONVERTED, default="bf16", help="fp8 is half as large as bf16 (default)")
    add("--out", type=Path, required=True, metavar="FILE", help="the safetensors to write; none is replaced")


def run(options: argparse.Namespace) -> None:
    """Write the file; an interrupted one is removed."""
    files = options.checkpoint, options.lora, options.precision, options.out
    check_writable(options.out)
    with ending_like_ctrl_c(), loading_bar("converting") as on_progress:
        notes = convert(*files, options.family, on_progress)
    for line in notes:
        show(line, STDERR)
    show(f"{options.out}: {options.out.stat().st_size / 1e9:.2f} GB")
