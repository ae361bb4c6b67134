"""Images and video files -> frames of a size, 16 a second. It knows neither models nor prompts."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from .geometry import FRAME_RATE, PIXEL_MULTIPLE, TIME_STRIDE, num_frames

CROP, PAD, STRETCH = "crop", "pad", "stretch"
FITS = (CROP, PAD, STRETCH)
PIECE_FRAMES = 12  # that are read together: those of a block
GIVEN_LATENT_FRAMES = 12  # of footage: at most so many begin a video, or are looked at where it goes on
MOST_GIVEN_FRAMES = num_frames(GIVEN_LATENT_FRAMES)
KEPT_IMAGES = 16  # of an ImageFolder, as frames
SMALL = 0.5  # of the frame's sides; below it a note says how much an image is enlarged
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
UNTIMED = 0.1  # seconds
TIME_EPS = 2e-3  # seconds: some containers round time stamps to a thousandth
_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")  # several images of other formats are views of one
_FILE_URL = "file:{}"  # for av.open: then a path may contain any characters
_HIGHEST = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I": 65535.0, "F": 1.0}

Timed = tuple[float, float, Tensor]  # seconds at which a frame begins, how long it stays, uint8 [H, W, 3]


class FootageError(ValueError):
    """A file that holds no frames: one sentence that names it."""


def fitted(frames: Tensor, width: int, height: int, fit: str = CROP, border: float = 0.0) -> Tensor:
    """Frames [F, H, W, 3] in [0, 1] -> [F, height, width, 3], by one antialiased bicubic filter.

    `crop` covers the frame and cuts off what is too much at both sides, `pad` puts all of the image on
    `border`, `stretch` ignores its proportions. ValueError for another `fit`.
    """
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}; choose one of {', '.join(FITS)}")
    tall, wide = frames.shape[1:3]
    scales = width / wide, height / tall
    scale = max(scales) if fit == CROP else min(scales)
    sides = (max(1, round(tall * scale)), max(1, round(wide * scale))) if fit != STRETCH else (height, width)
    images = frames.movedim(-1, 1)
    if sides != (tall, wide):
        images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp_(0, 1)
    left, top = ((side - has) // 2 for side, has in zip((width, height), (sides[1], sides[0]), strict=True))
    around = (left, width - sides[1] - left, top, height - sides[0] - top)  # negative ones cut off
    return F.pad(images, around, value=border).movedim(1, -1)


def size_like(wide: int, tall: int, area: int) -> tuple[int, int]:
    """Width and height, multiples of 16, of about that many pixels, in the proportions of an image."""
    ideal = math.sqrt(area * wide / tall)
    width, height = (max(1, round(side / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE for side in (ideal, area / ideal))
    return width, height


@dataclass
class Footage:
    """An image or a video file, from `start` seconds on. Nothing of it is in memory before `frames`.

    `size` is (width, height) as it is shown, `seconds` how long it is from `start` on as its header has it,
    0.0 for a still image; `has_sound` whether there is sound in it. `notes` are sentences for the user.
    Raises FootageError for what is no such file, or ends before `start`.
    """

    path: Path
    start: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.path, self.has_sound = Path(self.path), False
        if not self.path.is_file():
            what = "is not a file" if self.path.exists() else "does not exist"
            raise FootageError(f"{self.path} {what}; give an image or a video")
        with self._explained():
            self._is_picture = self._looks_like_an_image()
            reader = self._open_image if self._is_picture else self._open_video
            self.size, length = reader()
        self.seconds = length - self.start if length else 0.0
        if self.start < 0 or (self.start and self.seconds <= 0):
            long = f"is {length:.1f} s long" if length else "is a still image"
            raise FootageError(f"{self.path.name} {long}; it cannot begin at {self.start:g} s")

    @property
    def is_still(self) -> bool:
        """Whether it is one image."""
        return not self.seconds

    def frames(self, width: int, height: int, fit: str = CROP) -> Iterator[Tensor]:
        """Pieces of frames [F, height, width, 3] in [0, 1]: frame n is what is seen at `start` + n / 16 s.

        One frame of a still image. FootageError where the file turns out to be damaged.
        """
        if min(self.size[0] / width, self.size[1] / height) < SMALL:
            self._note(f"is only {self.size[0]}x{self.size[1]} and is enlarged to {width}x{height}")
        with self._explained():
            timed = self._images() if self._is_picture else self._video()
            shown = islice(at_rate(timed, self.start), 1 if self.is_still else None)
            one_by_one = (fitted(frame[None].float() / 255, width, height, fit) for frame in shown)
            while piece := list(islice(one_by_one, PIECE_FRAMES)):  # 12 frames of 4K would be 2 GiB at once
                yield torch.cat(piece)

    def facts(self) -> dict[str, Any]:
        """What a video's settings say of it: name, SHA-256 and start."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self.path.name, "sha256": digest, "start": self.start}

    def _looks_like_an_image(self) -> bool:
        try:
            with _open_picture(self.path):
                return True
        except UnidentifiedImageError:
            return False

    def _open_image(self) -> tuple[tuple[int, int], float]:
        with _open_picture(self.path) as image:
            if not _is_animated(image):
                return ImageOps.exif_transpose(image).size, 0.0
            return image.size, sum(_seconds_of(one) for one in ImageSequence.Iterator(image))

    def _open_video(self) -> tuple[tuple[int, int], float]:
        with _open_container(self.path) as (container, stream):
            frame = next(container.decode(stream), None)
            if frame is None:
                raise FootageError(f"{self.path.name} has no frames")
            if curve := HDR.get(stream.codec_context.color_trc):
                self._note(f"is HDR ({curve}): its colours are taken as they are")
            self._begins = frame.time or 0.0  # not every container says it
            turned = frame.rotation % 180 != 0
            self.has_sound = bool(container.streams.audio)
            length = (container.duration or 0) / av.time_base
            if stream.duration:
                length = float(stream.duration * stream.time_base)
        size = (frame.height, frame.width) if turned else (frame.width, frame.height)
        return size, max(length, 1 / FRAME_RATE)

    def _images(self) -> Iterator[Timed]:
        """The images of a file and when each is shown."""
        with _open_picture(self.path) as file:
            clock = 0.0
            for image in ImageSequence.Iterator(file):
                length = _seconds_of(image)
                yield clock, length, self._rgb(image)
                clock += length

    def _rgb(self, image: Image.Image) -> Tensor:
        """An image of any mode as it is seen, uint8 [H, W, 3]: turned upright, on white."""
        image = ImageOps.exif_transpose(image)
        if image.mode in _HIGHEST:  # Pillow would cut off all above 255
            grey = (np.asarray(image, np.float32) / _HIGHEST[image.mode]).clip(0, 1) * 255
            image = Image.fromarray(grey.round().astype(np.uint8))
        if image.has_transparency_data:
            self._note("is transparent in places: it is laid on white")
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return torch.from_numpy(np.array(image.convert("RGB")))

    def _video(self) -> Iterator[Timed]:
        """The frames of a video from its start on, by their time stamps."""
        with _open_container(self.path) as (container, stream):
            usual = 1 / float(stream.average_rate or FRAME_RATE)
            if self.start:
                container.seek(int((self._begins + self.start) / stream.time_base), stream=stream)
            clock = 0.0
            for frame in container.decode(stream):
                if frame.pts is not None:
                    clock = float(frame.pts * stream.time_base) - self._begins
                lasts = getattr(frame, "duration", 0)  # PyAV 14 has none
                length = float(lasts * stream.time_base) if lasts else usual
                yield clock, length, self._pixels(frame)
                clock += length

    def _pixels(self, frame: av.VideoFrame) -> Tensor:
        if any(component.is_alpha for component in frame.format.components):
            self._note("is transparent in places: it is laid on white")
            pixels = frame.to_ndarray(format="rgba").astype(np.float32)
            opaque = pixels[..., 3:] / 255
            pixels = (pixels[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
        else:
            pixels = frame.to_ndarray(format="rgb24")
        return torch.from_numpy(np.rot90(pixels, frame.rotation // 90).copy())

    def _note(self, text: str) -> None:
        note = f"{self.path.name} {text}"
        if note not in self.notes:
            self.notes.append(note)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What libraries say of a damaged file, as a FootageError."""
        try:
            yield
        except FootageError:
            raise
        except Image.DecompressionBombError:
            raise FootageError(f"{self.path.name} has too many pixels; make it smaller first") from None
        except (OSError, SyntaxError, EOFError, ValueError, av.FFmpegError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FootageError(f"{self.path.name} cannot be read as an image or a video: {reason}") from error


class ImageFolder:
    """The images of a folder that cues name, each read once; messages call it `where`.

    Sentences for the user are added to `notes`.
    """

    def __init__(self, folder: Path, where: str = "", fit: str = CROP, notes: list[str] | None = None):
        self.folder, self._where, self._fit = Path(folder), where or f"the folder {folder}", fit
        self.notes = [] if notes is None else notes
        self._facts: dict[str, dict[str, Any]] = {}
        self.frames = lru_cache(KEPT_IMAGES)(self._frames)

    def file(self, name: str) -> Footage:
        """The file of that name; FootageError unless it is one image."""
        path = self.folder / name
        if not os.path.isfile(path):  # Path.is_file raises where a name is too long
            raise FootageError(
                f"the image {name} is not in {self._where}; put it there (where words of the prompt are "
                "meant, write auto: before them)"
            )
        footage = Footage(path, notes=self.notes)
        if not footage.is_still:
            raise FootageError(f"{name} is footage, and a cue begins with one image; name an image")
        return footage

    def facts(self, name: str) -> dict[str, Any]:
        """What a video's settings say of an image: name, SHA-256 and fit, as it was when it was read."""
        if name not in self._facts:
            self._facts[name] = self.file(name).facts() | {"fit": self._fit}
        return self._facts[name]

    def _frames(self, name: str, width: int, height: int) -> Tensor:
        """The image as a frame [1, height, width, 3] in [0, 1]; FootageError if it cannot be read."""
        self.facts(name)
        return next(self.file(name).frames(width, height, self._fit))


def at_rate(timed: Iterable[Timed], start: float) -> Iterator[Tensor]:
    """What is seen at `start`, `start` + 1/16 s, ...: of slow videos frames again, of fast ones not all."""
    number, end, seen = 0, 0.0, None
    for begins, lasts, frame in chain(timed, [(math.inf, 0.0, None)]):
        until = end if frame is None else begins
        while seen is not None and start + number / FRAME_RATE < until - TIME_EPS:
            yield seen
            number += 1
        seen, end = frame, begins + lasts


def first_frames(pieces: Iterator[Tensor]) -> Tensor:
    """The first frames [F, H, W, 3] that a video may begin with; no more are read."""
    few = islice(pieces, math.ceil(MOST_GIVEN_FRAMES / PIECE_FRAMES))
    return torch.cat(list(few))[:MOST_GIVEN_FRAMES]


def newest(pieces: Iterator[Tensor], window: int | None) -> Tensor:
    """The last frames [F, H, W, 3] that fill latent frames, at most `window` of them; the end is exact.

    A window of None, which is all of a video, takes GIVEN_LATENT_FRAMES.
    """
    frames: deque[Tensor] = deque(maxlen=num_frames(window or GIVEN_LATENT_FRAMES))
    for piece in pieces:
        frames.extend(piece.unbind(0))
    stack = torch.stack(list(frames))
    beyond = (len(stack) - 1) % TIME_STRIDE
    return stack[beyond:]


def _is_animated(image: Image.Image) -> bool:
    return image.format in _ANIMATED and getattr(image, "is_animated", False)


def _seconds_of(image: Image.Image) -> float:
    """How long an image of an animation is shown; browsers do as much where it says nothing."""
    image.load()  # before, a WebP has no duration
    return image.info.get("duration", 0) / 1000 or UNTIMED


@contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    known = set(Image.registered_extensions().values())
    with Image.open(path, formats=[name for name in _FORMATS if name in known]) as image:
        yield image


@contextmanager
def _open_container(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file and its first stream of moving frames: the cover of a song is none."""
    with av.open(_FILE_URL.format(path)) as container:
        cover = av.stream.Disposition.attached_pic
        moving = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not moving:
            raise FootageError(f"{path.name} has no video in it")
        moving[0].thread_type = "AUTO"
        yield container, moving[0]
