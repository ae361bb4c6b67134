"""`longlive download`: published weights into model folders."""

import argparse
import sys
from pathlib import Path

from ..weights.download import download

HELP = "fetch published weights"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="longlive-1.3b")
    parser.add_argument(
        "--folder", type=Path, default=Path("models"), help="ComfyUI's models folder, or any other"
    )
    parser.add_argument("--yes", action="store_true", help="accept the licence without being asked")


def run(options: argparse.Namespace) -> None:
    """Fetch what is missing and say where it lies."""
    paths = download(options.name, options.folder, confirm=accept if options.yes else ask)
    print("\n".join(map(str, paths)) or "nothing was fetched")


def accept(text: str) -> bool:
    print(text)
    return True


def ask(text: str) -> bool:
    """Show the licence and sizes, and ask once."""
    print(text)
    if not sys.stdin.isatty():
        raise ValueError("the licence must be accepted: run this in a terminal, or add --yes")
    return input("Accept and download? [y/N] ").strip().lower() in ("y", "yes")
