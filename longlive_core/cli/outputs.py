"""The files that `longlive generate` writes: refused before anything is made if they cannot be written."""

import argparse
import os
from pathlib import Path

import numpy as np

from ..output.contact_sheet import encoded_image

DEFAULT_OUT = Path("longlive.mp4")
VIDEO_ENDINGS = (".mp4", ".m4v")
MP4_NAMES = " or ".join(VIDEO_ENDINGS)


def default_out(options: argparse.Namespace) -> Path:
    """Where the video goes if nothing is said; ValueError if that may be the video to go on from."""
    if options.resume and DEFAULT_OUT.exists():
        raise ValueError(
            f"{DEFAULT_OUT} is there already, perhaps the very part that --resume goes on from; "
            "name another file with --out"
        )
    return DEFAULT_OUT


def check_outputs(options: argparse.Namespace) -> None:
    """ValueError for outputs that cannot be written, or would overwrite what is read."""
    outputs = [path for path in (options.out, options.contact_sheet, options.state) if path]
    for path in outputs:
        check_writable(path)
        for name, read in (("schedule", options.schedule), ("state", options.resume)):
            if read and real(path) == real(read):
                raise ValueError(f"{path} is the {name} itself; choose another file to write")
    if len({real(path) for path in outputs}) < len(outputs):
        raise ValueError("two of --out, --contact-sheet and --state are the same file; choose others")
    if options.out.suffix.lower() not in VIDEO_ENDINGS:
        raise ValueError(f"{options.out} would be an mp4; choose a name that ends in {MP4_NAMES}")
    if options.contact_sheet and not is_image_name(options.contact_sheet):
        raise ValueError(
            f"{options.contact_sheet} cannot be written as an image; choose a name that ends in .png or .jpg"
        )


def check_writable(path: Path) -> None:
    """ValueError unless the path is a file or could become one. A device would be replaced by a file."""
    place = real(path)
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} cannot be written: it is no ordinary file; choose another name")
    folder = place.parent
    if not folder.is_dir() or not os.access(place if place.exists() else folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: choose a file in a folder that exists and is writable")


def is_image_name(path: Path) -> bool:
    """Whether a contact sheet can be written with that ending; Pillow only reads some formats."""
    try:
        encoded_image(np.zeros((16, 16, 3), np.uint8), path.suffix)
    except (LookupError, OSError, ValueError):
        return False
    return True


def real(path: Path) -> Path:
    """The path without links; of links in a circle, the path itself."""
    return Path(os.path.realpath(path))
