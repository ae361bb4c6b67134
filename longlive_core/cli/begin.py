"""What `longlive generate` begins with, goes on from or transforms: images and footage in files."""

import argparse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Preset
from ..footage import CROP, FITS, Footage, size_like
from ..geometry import FRAME_RATE, TIME_STRIDE, num_frames
from ..pipeline import Pipeline, as_uint8
from ..source import DEFAULT_STRENGTH, Source

SECONDS = 10.0
LEAST_PAST = 12  # latent frames, where the window is all of them
MAX_IMAGE_FRAMES = num_frames(LEAST_PAST)  # of an animation to begin with


def add_footage(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", type=Path, metavar="FILE", help="begin with this image; the prompt must name what is seen")
    add("--video", type=Path, metavar="FILE", help="transform this footage; --seconds is then its length")
    keeps = f"of --video, in (0, 1]: .25 keeps places, 1 nothing (default: {DEFAULT_STRENGTH})"
    add("--strength", type=float, metavar="S", help=keeps)
    add("--extend", type=Path, metavar="FILE", help="go on where this footage ends; times count from there")
    add("--start", type=float, default=0.0, metavar="S", help="of --video: seconds that are skipped")
    add("--fit", choices=FITS, default=CROP, help="of images and footage into the frame (default: crop)")
    joined = "--out begins with the earlier video: that of --extend, or this one, which --resume continues"
    add("--with-source", type=Path, nargs="?", const=Path(), metavar="MP4", help=joined)


@dataclass(frozen=True)
class Beginning:
    """The files of the options, opened: ValueError for one that cannot be read, or that excludes another."""

    image: Footage | None
    video: Footage | None
    extended: Footage | None
    fit: str
    strength: float
    is_joined: bool  # the file begins with the footage that is extended

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Beginning":
        check_options(options)
        image, extended = (path and Footage(path) for path in (options.image, options.extend))
        video = Footage(options.video, options.start) if options.video else None
        if video and video.is_still:
            raise ValueError(f"{video.path.name} is one image; give it as --image, or footage as --video")
        strength = DEFAULT_STRENGTH if options.strength is None else options.strength
        return cls(image, video, extended, options.fit, strength, options.with_source is not None)

    @property
    def files(self) -> dict[str, Footage]:
        """The files that are there, by the names of their options."""
        named = {"image": self.image, "video": self.video, "extend": self.extended}
        return {name: footage for name, footage in named.items() if footage}

    def size(self, preset: Preset) -> tuple[int | None, int | None]:
        """The area of the preset, in the proportions of the first file; (None, None) without one."""
        first = next(iter(self.files.values()), None)
        return size_like(*first.size, preset.width * preset.height) if first else (None, None)

    def request(self, pipeline: Pipeline, width: int, height: int) -> dict[str, Any]:
        """The keywords of a Request: latents of what it begins with, the source, and where they are from."""
        shape, made = (width, height, self.fit), {}
        if self.image:
            frames = torch.cat(list(self.image.frames(*shape)))[:MAX_IMAGE_FRAMES]
            made["given"] = pipeline.encode(frames)
        if self.extended:
            window = pipeline.preset.window.window_latent_frames or LEAST_PAST
            made["past"] = pipeline.encode(newest(self.extended.frames(*shape), window))
        if self.video:
            length = round(self.video.seconds * FRAME_RATE)
            made["source"] = Source(self.video.frames(*shape), self.strength, length=length)
        facts = {name: footage.facts() | {"fit": self.fit} for name, footage in self.files.items()}
        return made | ({"made_from": facts} if facts else {})

    def notes(self) -> list[str]:
        """Sentences on the files, for the user."""
        silent = (footage for footage in self.files.values() if footage.has_sound)
        sound = [f"{one.path.name} comes without its sound; add --audio {one.path}" for one in silent]
        return [note for footage in self.files.values() for note in footage.notes] + sound

    @property
    def num_joined(self) -> int:
        """About how many frames of the extended footage the file begins with."""
        return round(self.extended.seconds * FRAME_RATE) if self.extended and self.is_joined else 0

    def joined(self, width: int, height: int) -> Iterator[np.ndarray]:
        """These frames as uint8 [F, H, W, 3]."""
        for piece in self.extended.frames(width, height, self.fit) if self.num_joined else ():
            yield as_uint8(piece)


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options that exclude or need each other."""
    begins = [name for name in ("image", "video", "extend", "resume") if getattr(options, name)]
    if len(begins) > 1 and begins != ["image", "video"]:
        raise ValueError(f"--{begins[0]} and --{begins[1]} exclude each other; leave one of them out")
    needs = {"strength": options.strength is not None, "start": options.start != 0}
    for name, is_there in needs.items():
        if is_there and not options.video:
            raise ValueError(f"--{name} is for the footage to transform; give its --video FILE too")
    if options.extend and options.with_source not in (None, Path()):
        raise ValueError(f"--with-source needs no name next to --extend {options.extend}")
    if options.with_source == Path() and not options.extend:
        raise ValueError("--with-source names the video that --resume continues, or goes with --extend FILE")


def seconds_of(options: argparse.Namespace) -> float:
    """How long the video is to be: 0 for as long as the footage that is transformed."""
    if options.seconds is None:
        return 0.0 if options.video else SECONDS
    return options.seconds


def newest(pieces: Iterator[Tensor], window: int) -> Tensor:
    """The last frames [F, H, W, 3] that fill latent frames, at most `window` of them; the end is exact."""
    frames: deque[Tensor] = deque(maxlen=num_frames(window))
    for piece in pieces:
        frames.extend(piece.unbind(0))
    stack = torch.stack(list(frames))
    beyond = (len(stack) - 1) % TIME_STRIDE
    return stack[beyond:]
