"""A clip of a run to share: made in a folder of its own that is gone afterwards."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..longlive_core.output import share
from ..longlive_core.schedule.captions import captions_of
from .live import LiveRun

FORMATS = tuple(ending.removeprefix(".") for ending in share.KINDS)


def clip_of(run: LiveRun, kind: str) -> bytes:
    """The part of the video around its prompt switches, with captions, as one of FORMATS.

    Raises LiveError before the first block, and OSError or ValueError if there is no video to read.
    """
    settings = run.frozen()["settings"]
    source = share.probe(run.path())
    captions = captions_of(settings, source.seconds)
    part = share.chosen(source, [caption.seconds for caption in captions[1:]])
    with TemporaryDirectory(prefix="longlive-") as folder:
        clip = Path(folder, f"clip.{kind}")
        share.share(source, clip, part, captions)
        return clip.read_bytes()
