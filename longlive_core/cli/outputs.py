"""The files that `longlive generate` writes: checked before anything is made."""

import argparse
import os
from contextlib import suppress
from itertools import combinations, starmap
from os.path import realpath  # Path.resolve raises on links in a circle
from pathlib import Path

import numpy as np

from ..output.contact_sheet import encoded_image
from ..output.growing import GrowingFile
from ..schedule.schedule import PromptSchedule

DEFAULT_OUT = Path("longlive.mp4")


def check_outputs(options: argparse.Namespace) -> None:
    """Raise ValueError for outputs that cannot be written, or would overwrite what is read or continued."""
    if options.out is DEFAULT_OUT and options.resume and DEFAULT_OUT.exists():
        raise ValueError(
            f"{DEFAULT_OUT} exists and may be the video that --resume continues; name another file with --out"
        )
    outputs = [path for path in (options.out, options.contact_sheet, options.state) if path]
    for path in outputs:
        check_writable(path)
        for name, read in inputs_of(options):
            if os.path.isfile(read) and is_same(path, read):
                raise ValueError(f"{path} is the {name} itself; choose another file to write")
    if any(starmap(is_same, combinations(outputs, 2))):
        raise ValueError("two of --out, --contact-sheet and --state are the same file; choose others")
    if options.out.suffix.lower() not in (".mp4", ".m4v"):
        raise ValueError(f"{options.out} would be an mp4; choose a name that ends in .mp4 or .m4v")
    GrowingFile(Path(realpath(options.out))).close()  # raises an OSError where another run writes it
    if options.contact_sheet:
        check_image_name(options.contact_sheet)


def inputs_of(options: argparse.Namespace) -> list[tuple[str, Path | str]]:
    """What each file is that the options name to be read, and its path."""
    files = {"schedule": options.schedule, "state": options.resume, "model": options.model}
    files |= {"VAE": options.vae, "text encoder": options.text_encoder, "earlier video": options.with_source}
    files |= {"sound": options.audio, "image": options.image, "footage": options.video}
    files |= {"footage to extend": options.extend}
    files |= {"control": options.control, "mask": options.mask, "VACE": options.vace}
    files |= {f"reference {number}": path for number, path in enumerate(options.reference, 1)}
    loras = [("LoRA", choice.path) for choice in options.lora]
    images = [("image of the schedule", path) for path in images_in(options.schedule)]
    return [*((name, path) for name, path in files.items() if path), *images, *loras]


def images_in(schedule: Path | None) -> list[Path]:
    """The images that a file of prompts names; none where it cannot be read, which is said when it is."""
    with suppress(ValueError, OSError):
        text = schedule.read_text("utf-8-sig") if schedule else "no images"
        return [schedule.parent / name for name in PromptSchedule.parse(text).images]
    return []


def is_same(one: Path | str, other: Path | str) -> bool:
    """Whether two paths are one file: also by hard links, or letters whose case the disk ignores."""
    with suppress(OSError):  # one of them does not exist
        return os.path.samefile(one, other)
    return realpath(one) == realpath(other)


def check_writable(path: Path) -> None:
    """Raise ValueError unless the path is a file or may become one; a device would be replaced."""
    target = Path(realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} cannot be written: it is no ordinary file; choose another name")
    places = [place for place in (target.parent, target) if place.exists()]
    if not target.parent.is_dir() or not all(os.access(place, os.W_OK) for place in places):
        raise ValueError(f"{path} cannot be written: choose a file in a folder that exists and is writable")


def check_image_name(path: Path) -> None:
    """Raise ValueError unless Pillow can write colour images with this ending; some formats it only reads."""
    try:
        encoded_image(np.zeros((16, 16, 3), np.uint8), path.suffix)
    except (LookupError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be written as an image; choose a name that ends in .png or .jpg"
        ) from error
