"""`longlive finish`: what a killed run left -> an ordinary mp4."""

import argparse
from pathlib import Path

from ..geometry import FRAME_RATE
from ..journal import folder_of, keep_growing
from ..output.video import finish
from .stderr import show

HELP = "make an ordinary mp4, with its settings, of the video that a killed run left"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the mp4; the same run can still go on in it")


def run(options: argparse.Namespace) -> None:
    """Finish the file in its place; its journal stays."""
    keep_growing(options.file)
    frames = finish(options.file)
    show(f"{options.file}: {frames} frames, {frames / FRAME_RATE:g} s")
    if (folder := folder_of(options.file)).exists():
        show(f"the same command as before goes on with this video; if it is not to, delete {folder}")
