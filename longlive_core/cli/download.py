"""`longlive download`: published weights into model folders."""

import argparse
import sys
from functools import partial
from pathlib import Path

from ..weights.download import download
from ..weights.published import DOWNLOADS
from .stderr import show

HELP = "download published weights"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help=", ".join(DOWNLOADS))
    add("--folder", type=Path, default=Path("models"), help="ComfyUI's models folder, or any other")
    add("--yes", action="store_true", help="accept the licences without being asked")


def run(options: argparse.Namespace) -> None:
    """Download the missing files and print the paths of all."""
    paths = download(options.name, options.folder, confirm=partial(is_accepted, options.yes))
    for line in map(str, paths or ["nothing was downloaded"]):
        show(line)


def is_accepted(is_yes: bool, text: str) -> bool:
    """Print sizes and licences; ask, unless `is_yes`. Raises ValueError where nobody can answer."""
    print(text)
    if is_yes:
        return True
    if not sys.stdin.isatty():
        raise ValueError("the licences must be accepted: run this in a terminal, or add --yes")
    return input("Accept and download? [y/N] ").strip().lower() in ("y", "yes")
