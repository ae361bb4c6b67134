"""What `longlive generate` begins with, goes on from or transforms: images and footage in files."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import MINI, Preset
from ..control import Control
from ..footage import CROP, FITS, Footage, first_frames, newest, size_like
from ..geometry import FRAME_RATE
from ..pipeline import Pipeline, as_uint8
from ..resume import VideoState
from ..source import DEFAULT_STRENGTH, Source

SECONDS = 10.0
EXCLUDED = (("image", "extend"), ("image", "resume"), ("video", "extend"), ("extend", "resume"))


def add_footage(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", type=Path, metavar="FILE", help="begin with this image; the prompt must name what is seen")
    add("--video", type=Path, metavar="FILE", help="transform this footage; --seconds is then its length")
    keeps = f"of --video, in (0, 1]: .25 keeps places, 1 nothing (default: {DEFAULT_STRENGTH})"
    add("--strength", type=float, metavar="S", help=keeps)
    add("--extend", type=Path, metavar="FILE", help="go on where this footage ends; times count from there")
    add("--start", type=float, default=0.0, metavar="S", help="of --video: seconds that are skipped")
    add("--fit", choices=FITS, default=CROP, help="of images and footage into the frame (default: crop)")
    add("--control", type=Path, metavar="FILE", help="depth, pose, scribble or flow to follow, by --vace")
    add("--mask", type=Path, metavar="FILE", help="of --control: white where to make, black where to keep it")
    likeness = "an image of what is to appear, by --vace; may be repeated"
    add("--reference", type=Path, action="append", default=[], metavar="FILE", help=likeness)
    scale = "how much control counts: 0 to 2, 1 as trained (default: 1)"
    add("--control-strength", type=float, metavar="S", help=scale)
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
    control: Footage | None = None
    mask: Footage | None = None
    references: tuple[Footage, ...] = ()
    scale: float = 1.0

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Beginning":
        check_options(options)
        paths = options.image, options.extend, options.control, options.mask
        image, extended, control, mask = (path and Footage(path) for path in paths)
        video = Footage(options.video, options.start) if options.video else None
        if video and video.is_still:
            raise ValueError(f"{video.path.name} is one image; give it as --image, or footage as --video")
        strength = DEFAULT_STRENGTH if options.strength is None else options.strength
        references = tuple(Footage(path) for path in options.reference)
        scale = 1.0 if options.control_strength is None else options.control_strength
        begins = (image, video, extended, options.fit, strength, options.with_source is not None)
        return cls(*begins, control, mask, references, scale)

    @property
    def files(self) -> dict[str, Footage]:
        """The files that are there, by the names of their options."""
        named = {"image": self.image, "video": self.video, "extend": self.extended}
        named |= {"control": self.control, "mask": self.mask}
        named |= {f"reference_{number}": image for number, image in enumerate(self.references, 1)}
        return {name: footage for name, footage in named.items() if footage}

    def size(self, preset: Preset, state: VideoState | None) -> tuple[int | None, int | None]:
        """That of a state, else the preset's area in the proportions of the first file, if there is one."""
        if state:
            return state.width, state.height
        first = next(iter(self.files.values()), None)
        return size_like(*first.size, preset.width * preset.height) if first else (None, None)

    def request(self, width: int | None, height: int | None) -> dict[str, Any]:
        """The keywords of a Request that need no model: source and control, and what all files are from."""
        made, shape = {}, (width, height, self.fit)
        if self.video:
            length = round(self.video.seconds * FRAME_RATE)
            made["source"] = Source(self.video.frames(*shape), self.strength, length=length)
        if control := self._control(*shape):
            made["control"] = control
        facts = {name: footage.facts() | {"fit": self.fit} for name, footage in self.files.items()}
        return made | ({"made_from": facts} if facts else {})

    def encoded(self, pipeline: Pipeline, width: int | None, height: int | None) -> dict[str, Any]:
        """The keywords of a Request with latents: what the video begins with or goes on from."""
        made, shape = {}, (width, height, self.fit)
        if self.image:
            frames = first_frames(self.image.frames(*shape))
            made["given"] = pipeline.encode(frames)
        if self.extended:
            window = pipeline.preset.window.window_latent_frames
            made["past"] = pipeline.encode(newest(self.extended.frames(*shape), window))
        return made

    def _control(self, *shape: Any) -> Control | None:
        """What the video follows, of that size."""
        if not (self.control or self.references):
            return None
        frames = self.control.frames(*shape) if self.control else None
        masks = (piece.mean(dim=-1) for piece in self.mask.frames(*shape)) if self.mask else None
        if self.mask and self.mask.is_still:  # one mask holds for all frames
            masks = torch.cat(list(masks))
        images = [next(image.frames(*image.size))[0] for image in self.references]
        return Control(frames, masks, images, self.scale)

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
    for pair in EXCLUDED:
        if all(getattr(options, name) for name in pair):
            raise ValueError(f"--{pair[0]} and --{pair[1]} exclude each other; leave one of them out")
    follows = options.control or options.reference
    if follows and not options.vace and options.model != MINI.name:
        raise ValueError("control needs the layers of VACE; give --vace vace-1.3b or a file of it too")
    needs = [("strength", options.strength is not None, "video"), ("start", options.start != 0, "video")]
    needs += [("mask", options.mask, "control"), ("control-strength", options.control_strength, "control")]
    for name, is_there, other in needs:
        if is_there and not getattr(options, other) and not (name == "control-strength" and follows):
            raise ValueError(f"--{name} is of --{other}; give its --{other} FILE too")
    if options.extend and options.with_source not in (None, Path()):
        raise ValueError(f"--with-source needs no name next to --extend {options.extend}")
    if options.with_source == Path() and not options.extend:
        raise ValueError("--with-source names the video that --resume continues, or goes with --extend FILE")


def seconds_of(options: argparse.Namespace) -> float:
    """How long the video is to be: 0 for as long as the footage that is transformed."""
    if options.seconds is None:
        return 0.0 if options.video else SECONDS
    return options.seconds
