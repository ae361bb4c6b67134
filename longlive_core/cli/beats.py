"""`longlive beats`: when the beats of a sound file are."""

import argparse
from pathlib import Path

from ..output.beats import beats_of

HELP = "print when the beats of a sound file are, a line each, as a schedule takes times (extra: beats)"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a sound file, or a video with sound")


def run(options: argparse.Namespace) -> None:
    """Print the times."""
    for seconds in beats_of(options.file):
        print(f"{seconds:g}s")
