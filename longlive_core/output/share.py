"""A short clip of a video with its prompts as captions: an mp4, or an animated WebP that loops by itself."""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from itertools import groupby, islice
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..geometry import FRAME_RATE
from .growing import write_whole

SECONDS = 15.0  # of a clip, if nothing else is asked for
MAX_SECONDS = 60.0
LEAD_SECONDS = 1.5  # of the prompt before the first switch
WIDTH, MIN_WIDTH, MAX_WIDTH = 480, 128, 1920  # pixels
MAX_MB = 10.0  # what GitHub and most messengers take
MAX_LINES, MAX_SHARE = 3, 0.4  # of a caption; and how much of the height it may cover
BAND = (0, 0, 0, 160)
TIMES_EPS = 1e-6
MEGABYTE = 1_000_000
LETTERS = 20  # pixels; fonts have the same letters in all sizes
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
MISSING = "\U0010ffff"  # which no font has
NO_LINE_START = "、。，．：；！？）」』】》〉…"
# Tried in this order where Pillow's own font lacks a letter; Pillow looks in the folders of the system.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *(
        "PingFang.ttc",
        "Hiragino Sans GB.ttc",
        "AppleSDGothicNeo.ttc",
        "msyh.ttc",
        "YuGothM.ttc",
        "meiryo.ttc",
    ),
    *("malgun.ttf", "msgothic.ttc", "simsun.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
)
Font = ImageFont.FreeTypeFont


class Kind(NamedTuple):
    """How clips of an ending are encoded."""

    format: str
    codec: str
    options: dict[str, str]
    muxer: dict[str, str]


KINDS = {
    ".mp4": Kind("mp4", "libx264", {"crf": "23", "preset": "medium"}, {"movflags": "faststart"}),
    ".webp": Kind("webp", "libwebp_anim", {"quality": "70"}, {"loop": "0"}),  # 0: for ever
}


class Source(NamedTuple):
    """A video: its size in pixels, frames a second and number of frames."""

    path: Path
    width: int
    height: int
    rate: Fraction
    num_frames: int

    @property
    def seconds(self) -> float:
        return float(self.num_frames / self.rate)

    def frames(self, part: range) -> Iterator[np.ndarray]:
        """These frames, uint8 [H, W, 3], one at a time."""
        with opened(self.path) as container:
            stream = container.streams.video[0]
            container.seek(int(part.start / self.rate / stream.time_base), stream=stream)
            begin = (part.start - 0.5) / self.rate
            later = (frame for frame in container.decode(stream) if frame.time >= begin)
            for frame in islice(later, len(part)):
                yield frame.to_ndarray(format="rgb24")


def opened(path: Path) -> av.container.InputContainer:
    """A video that is there. Raises FileNotFoundError, or ValueError where it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    try:
        container = av.open(f"file:{path}")
        if container.streams.video:
            return container
        container.close()
        raise ValueError(f"{path} cannot be read as a video (it has none)")
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error


def probe(path: Path) -> Source:
    """What a video is; raises as `opened` does."""
    with opened(path) as container:
        stream = container.streams.video[0]
        count = sum(1 for packet in container.demux(stream) if packet.size)
        if not count:
            raise ValueError(f"{path} has no frames yet")
        return Source(path, stream.width, stream.height, stream.average_rate or Fraction(FRAME_RATE), count)


def chosen(
    source: Source, switches: Sequence[float], start: float | None = None, stop: float | None = None
) -> range:
    """The frames of a clip from `start` to `stop` seconds.

    Without either: of a longer video those 15 seconds that have the most switches in them, and a little
    before the first one. Raises ValueError for a part that is not in the video, or longer than a minute.
    """
    end = source.seconds
    if start is None and stop is None:
        start = best_start(end, switches)
    start = max(0.0, stop - SECONDS) if start is None else start
    stop = min(end, start + SECONDS) if stop is None else stop
    for name, at in (("begin", start), ("end", stop)):
        if not 0 <= at <= end + 1 / source.rate:
            raise ValueError(f"the clip cannot {name} at {at:g} s: the video has {end:.1f} s")
    if not 0 < stop - start <= MAX_SECONDS:
        raise ValueError(
            f"a clip of {stop - start:g} s is not possible; choose more than 0 and at most {MAX_SECONDS:g}"
        )
    first = round(start * source.rate)
    return range(first, min(source.num_frames, max(first + 1, round(stop * source.rate))))


def best_start(end: float, switches: Sequence[float]) -> float:
    """Where SECONDS have the most of the switches, which are in order, in them; the earliest such place."""
    starts = [max(0.0, min(switch - LEAD_SECONDS, end - SECONDS)) for switch in switches]

    def count(at: float) -> int:
        return bisect_left(switches, at + SECONDS) - bisect_right(switches, at)

    return max([0.0, *starts], key=count)


def share(
    source: Source,
    target: Path,
    part: range,
    captions: Sequence[tuple[float, str]] = (),
    width: int = WIDTH,
    max_mb: float = MAX_MB,
) -> list[str]:
    """Write these frames as a clip, a caption from its seconds of the video on; returns notes for the user.

    `target` ends in .mp4 or .webp. A clip of more than `max_mb` megabytes is made again, smaller. Raises
    ValueError if it cannot be that small, and OSError if it cannot be written; an earlier file then stays.
    """
    check(target, width, max_mb)
    notes = []

    def make(path: Path) -> None:
        wide, most, kind = width, max_mb * MEGABYTE, KINDS[target.suffix.lower()]
        while (written := encode(source, part, captions, even_size(source, wide), path, kind)) > most:
            if wide == MIN_WIDTH:
                raise ValueError(
                    f"{float(len(part) / source.rate):.1f} s do not fit {max_mb:g} MB, even {wide} pixels "
                    "wide; choose a shorter part or more megabytes"
                )
            wide = max(MIN_WIDTH, int(0.9 * sqrt(most / written) * wide))
            notes[:] = [f"{wide} pixels wide, to stay below {max_mb:g} MB"]

    write_whole(Path(os.path.realpath(target)), make)
    if missing := lacking("".join(text for _, text in captions)):
        named = " ".join(missing[:8])
        notes.append(f"no font here has {named}: install one, such as Noto Sans CJK, for captions with them")
    return notes


def check(target: Path, width: int, max_mb: float) -> None:
    """Raise ValueError for a clip that cannot be made."""
    if target.suffix.lower() not in KINDS:
        raise ValueError(f"{target} is no clip; choose a name that ends in .mp4 or .webp")
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"{width} pixels wide is not possible; choose {MIN_WIDTH} to {MAX_WIDTH}")
    if not max_mb > 0:
        raise ValueError(f"{max_mb:g} MB is not possible; choose more than 0")


def even_size(source: Source, width: int) -> tuple[int, int]:
    """(width, height) of a clip in even pixels."""
    width -= width % 2
    return width, max(2, 2 * round(width * source.height / source.width / 2))


def encode(
    source: Source,
    part: range,
    captions: Sequence[tuple[float, str]],
    size: tuple[int, int],
    path: Path,
    kind: Kind,
) -> int:
    """Write the frames, one at a time, to `path`; returns its bytes."""
    shape = {"width": size[0], "height": size[1], "pix_fmt": "yuv420p", "time_base": 1 / source.rate}
    with av.open(f"file:{path}", "w", format=kind.format, options=kind.muxer) as clip:
        stream = clip.add_stream(kind.codec, source.rate, kind.options, **shape)
        for pts, image in enumerate(captioned(source, part, captions, size)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = pts, 1 / source.rate
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())
    return path.stat().st_size


def captioned(
    source: Source, part: range, captions: Sequence[tuple[float, str]], size: tuple[int, int]
) -> Iterator[Image.Image]:
    """The frames of a part, in that size, each with the caption of its time."""
    times = [seconds for seconds, _ in captions]
    shown, band = 0, None
    for number, frame in zip(part, source.frames(part), strict=False):
        image = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
        now = bisect_right(times, float(number / source.rate) + TIMES_EPS)
        if now != shown:
            shown, band = now, caption_band(captions[now - 1][1], size)
        if band:
            image.paste(band, (0, size[1] - band.height), band)
        yield image


def caption_band(text: str, size: tuple[int, int]) -> Image.Image:
    """A caption as wide as the clip, RGBA: white on a dark band."""
    width, height = size
    letters = max(11, width // 20)  # pixels high
    line_height, margin = round(letters * 1.3), round(letters * 0.6)
    most = max(1, min(MAX_LINES, int((height * MAX_SHARE - margin) / line_height)))
    lines = wrapped(text, letters, width - 2 * margin, most)
    band = Image.new("RGBA", (width, len(lines) * line_height + margin), BAND)
    pen = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        x, y = (width - length(line, letters)) / 2, margin / 2 + (row + 0.8) * line_height
        for font, part in runs(line, letters):
            pen.text((x, y), part, font=font, fill="white", anchor="ls")
            x += font.getlength(part)
    return band


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """Lines that fit the width, at most so many; a word that is longer than a line is broken."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        if length((lines[-1] + word).rstrip(), size) <= width:
            lines[-1] += word
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            is_full = length((lines[-1] + letter).rstrip(), size) > width and letter not in NO_LINE_START
            lines += [""] if is_full else []
            lines[-1] += letter
    lines = [line.strip() for line in lines]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and length(last + ELLIPSIS, size) > width:
        last = last[:-1].rstrip()
    return [*lines[: most - 1], last + ELLIPSIS]


def length(line: str, size: int) -> float:
    """How many pixels a line is long."""
    return sum(font.getlength(part) for font, part in runs(line, size))


def runs(line: str, size: int) -> list[tuple[Font, str]]:
    """The parts of a line that are drawn in one font each."""
    parts = groupby(line, key=lambda letter: font_of(letter, size)[0])
    return [(font, "".join(letters)) for font, letters in parts]


def lacking(text: str) -> list[str]:
    """The letters of a text that no font here has."""
    return [letter for letter in dict.fromkeys("".join(text.split())) if not font_of(letter, LETTERS)[1]]


@cache
def font_of(letter: str, size: int) -> tuple[Font, bool]:
    """The first font that has a letter; without any, Pillow's own and False."""
    found = fonts(size)
    having = (font for font in found if letter.isspace() or drawn(font, letter) != drawn(font, MISSING))
    font = next(having, None)
    return font or found[0], font is not None


@cache
def fonts(size: int) -> list[Font]:
    """Pillow's own font, then those of FONTS that this system has."""
    found = [ImageFont.load_default(size)]
    for name in FONTS:
        with suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return found


def drawn(font: Font, letter: str) -> bytes:
    image = Image.new("L", (2 * round(font.size), 2 * round(font.size)))
    ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
    return image.tobytes()
