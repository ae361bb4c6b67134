"""`longlive share`: a short clip of a video with its prompts as captions."""

import argparse
from pathlib import Path

from ..output import share
from ..output.video import read_settings
from ..schedule.captions import Caption, captions_of
from .outputs import check_writable, is_same
from .stderr import STDERR, show

HELP = "make a short clip of a video to share, with its prompts as captions: an mp4 or an animated WebP"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", type=Path, help="an mp4 of LongLive; of others the clip has no captions")
    out = "ends in .mp4, or in .webp, which loops by itself; default: VIDEO-clip.mp4"
    add("--out", type=Path, metavar="FILE", help=out)
    part = (
        f"seconds; default: all, or of a longer video the {share.SECONDS:g} s with the most prompt switches; "
        f"at most {share.MAX_SECONDS:g} s"
    )
    add("--from", dest="start", type=float, metavar="SECONDS", help=part)
    add("--to", dest="stop", type=float, metavar="SECONDS")
    add("--width", type=int, default=share.WIDTH, metavar="PIXELS", help=f"default: {share.WIDTH}")
    limit = f"a larger clip is made again, less wide; default: {share.MAX_MB:g}"
    add("--max-mb", type=float, default=share.MAX_MB, metavar="N", help=limit)


def run(options: argparse.Namespace) -> None:
    """Write the clip; what it lacks is reported."""
    source = share.probe(options.video)
    out = options.out or options.video.with_name(f"{options.video.stem}-clip.mp4")
    check_writable(out)
    if is_same(out, options.video):
        raise ValueError(f"{out} is the video itself; choose another file to write")
    captions = captions_in(source)
    part = share.chosen(source, [caption.seconds for caption in captions[1:]], options.start, options.stop)
    for note in share.share(source, out, part, captions, options.width, options.max_mb):
        show(note, STDERR)
    begin, end = (float(frame / source.rate) for frame in (part.start, part.stop))
    show(f"{out}: {begin:.1f} to {end:.1f} s, {out.stat().st_size / share.MEGABYTE:.2f} MB")


def captions_in(source: share.Source) -> list[Caption]:
    """The captions of a video; none, with a note, where it does not hold its prompts."""
    try:
        return captions_of(read_settings(source.path), source.seconds)
    except ValueError as error:
        show(f"without captions: {error}", STDERR)
        return []
