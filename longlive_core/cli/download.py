"""`longlive download`: published weights into model folders."""

import argparse
import sys
from pathlib import Path

from ..weights.download import download
from ..weights.published import DOWNLOADS

HELP = "download published weights"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help=", ".join(DOWNLOADS))
    parser.add_argument(
        "--folder", type=Path, default=Path("models"), help="ComfyUI's models folder, or any other"
    )
    parser.add_argument("--yes", action="store_true", help="accept the licences without being asked")


def run(options: argparse.Namespace) -> None:
    """Download the missing files and print the paths of all."""
    paths = download(options.name, options.folder, confirm=accept if options.yes else ask)
    print("\n".join(map(str, paths)) or "nothing was downloaded")


def accept(text: str) -> bool:
    print(text)
    return True


def ask(text: str) -> bool:
    """Print sizes and licences, and ask once; ValueError where nobody can answer."""
    print(text)
    if not sys.stdin.isatty():
        raise ValueError("the licences must be accepted: run this in a terminal, or add --yes")
    return input("Accept and download? [y/N] ").strip().lower() in ("y", "yes")
