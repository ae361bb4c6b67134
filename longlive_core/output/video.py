"""Frames -> an H.264 mp4 that is playable while it grows and carries the settings it was made with.

With a sound it has an AAC track too, in the same fragments.
"""

import io
import json
import logging
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np

from ..geometry import FRAME_RATE
from .background import BackgroundQueue
from .growing import GrowingFile, frames_kept, header_bytes, write_whole
from .sound import Sound, SoundTrack

METADATA_KEY = "longlive"
_GROWING = {
    "movflags": "frag_custom+frag_discont+empty_moov+default_base_moof+skip_trailer+use_metadata_tags",
    "avoid_negative_ts": "make_non_negative",  # otherwise every fragment begins at 0
}
_OF_THE_FORMAT = ("major_brand", "minor_version", "compatible_brands", "encoder")  # each muxer has its own
_FINISHED = {"movflags": "faststart+use_metadata_tags"}
_ENCODER = {"crf": "18", "preset": "veryfast", "g": "48", "tune": "zerolatency", "threads": "1"}
TIME_BASE = Fraction(1, FRAME_RATE)
_RUN = 48  # frames at most that one encoder makes, if they are appended in equal parts: 3 s
_COLOURS = {  # what swscale makes of RGB; untagged, players guess by the size, each in its own way
    **{"colorspace": "smpte170m", "color_range": "tv"},
    **{"color_primaries": "bt709", "color_trc": "bt709"},
}
_FILE_URL = "file:{}"  # for av.open: then a path may contain any characters

logger = logging.getLogger("longlive")


class VideoWriter(AbstractContextManager):
    """Encodes frames and writes them to `path` in a background thread, in order.

    The growing file decodes to the `num_frames` frames written so far: every append adds a fragment, and a
    full disk or a kill leaves the earlier ones playable. `close` turns it into an ordinary mp4 with index and
    metadata first. `extra_metadata` are texts by name, next to `settings`; without either, the file does not
    say how it was made. A `sound` is cut, or goes on in silence, to be as long as the frames.

    The encoder has one thread and starts over every three seconds: what comes after such a place depends on
    nothing before. Of a growing file that a run left there, `kept` frames up to such a place may stay.

    An earlier file stays until the first fragment takes its place; a link stays, and its target is replaced.
    Raises OSError if no file can be written there, BlockingIOError while another writer is at it, and later
    FileNotFoundError if the file disappears.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        settings: dict[str, Any] | None = None,
        extra_metadata: Mapping[str, str] | None = None,
        sound: Sound | None = None,
        kept: int = 0,
    ):
        self.path = Path(path)
        self.num_frames = self.num_appended = kept  # written; and those that are queued too
        self.can_be_cut = True  # before the next append: the encoder starts over with it
        self._run = 0  # frames since the encoder began
        self._metadata = dict(extra_metadata or {})
        self.describe(settings)
        self._place = Path(os.path.realpath(self.path))
        self._file = GrowingFile(self._place, frames_kept(self._place)[kept] if kept else 0)
        self._sound = sound
        self._shape = {"width": width, "height": height, "pix_fmt": "yuv420p", "time_base": TIME_BASE}
        self._encoder = None
        try:
            self._open_header()
        except BaseException:
            self._file.close()
            raise
        self._queue = BackgroundQueue()
        self._is_open = True

    def _open_header(self) -> None:
        header = io.BytesIO()
        self._streams, _ = self._opened(header)
        self._track = SoundTrack(self._sound, self._streams) if self._sound else None
        self._streams.start_encoding()
        if self._track and self.num_frames:
            self._track.until(self.num_frames / FRAME_RATE)
        # Fragments copy the stream of this header: before PyAV 17, a copy of the encoder's own stream starts
        # another encoder, whose setup does not fit our frames; an opaque copy of one that was read does not.
        self._header = av.open(io.BytesIO(header.getvalue()))

    def _opened(self, target: io.BytesIO) -> tuple[av.container.OutputContainer, av.VideoStream]:
        """A container with a stream that encodes frames."""
        container = av.open(target, "w", format="mp4", options=_GROWING)
        return container, container.add_stream("libx264", FRAME_RATE, _ENCODER | _COLOURS, **self._shape)

    def describe(self, settings: dict[str, Any] | None) -> None:
        """Replace the settings in the finished file; before the first append in the growing one too."""
        self._metadata.pop(METADATA_KEY, None)
        self._metadata |= metadata_of(settings)

    def append(self, frames: np.ndarray) -> None:
        """Queue frames uint8 [F, H, W, 3], not to be changed afterwards; waits while two appends are queued.

        Raises OSError, once, if earlier frames could not be written; nothing is written from then on.
        """
        self._queue.put(partial(self._write, frames, self.can_be_cut))
        self.num_appended += len(frames)
        self._run = len(frames) + (0 if self.can_be_cut else self._run)
        self.can_be_cut = self._run + len(frames) > _RUN

    def flush(self) -> None:
        """Wait until everything queued is written. Raises as append does."""
        self._queue.flush()

    def cut(self, num_frames: int) -> None:
        """Drop all frames but the first `num_frames`, of which `can_be_cut` was true; appends go on there.

        The file is then as if it had never been longer. Raises ValueError for another number, else as append.
        """
        self.flush()
        is_begun = self._file.is_begun  # else an earlier file may be in its place
        places = {0: header_bytes(self._place), **frames_kept(self._place)} if is_begun else {0: 0}
        if num_frames not in places:
            raise ValueError(
                f"no part of the video ends after {num_frames} frames; cut where can_be_cut was true"
            )
        self._file.cut(places[num_frames])
        self._close_encoders()
        self.num_frames = self.num_appended = num_frames
        self._run, self.can_be_cut, self._encoder = 0, True, None
        self._open_header()

    def save_copy(self, path: str | Path, settings: dict[str, Any] | None = None) -> None:
        """Write what is there so far to another file, finished and with other settings.

        Raises OSError if it cannot be written; then there is none, and this file is as it was.
        """
        self.flush()
        metadata = {name: text for name, text in self._metadata.items() if name != METADATA_KEY}
        metadata |= metadata_of(settings)
        try:
            write_whole(Path(path), partial(remux, self._place, metadata=metadata, sound=self._run_up))
        except (OSError, av.error.FFmpegError) as error:
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written ({reason}); the video itself stays as it was") from error

    def close(self) -> None:
        """Write what is queued and finish the file; idempotent. Raises as append does.

        If no frame was written, no file is left except an earlier one.
        """
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._queue.close()
        finally:
            self._close_encoders()
            with closing(self._file):
                if self.num_frames:
                    self._finish()
                elif self._file.is_begun:  # all of it was cut off
                    self._file.cut(0)

    def _close_encoders(self) -> None:
        if self._track:
            self._track.close()
        for container in (self._encoder, self._streams, self._header):
            if container:
                container.close()

    def _write(self, frames: np.ndarray, starts_over: bool) -> None:
        if starts_over:
            if self._encoder:
                self._encoder.close()
            self._encoder, self._stream = self._opened(io.BytesIO())
        packets = []
        for pts, image in enumerate(frames, start=self.num_frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts
            packets += self._stream.encode(frame)  # one a frame: the encoder looks at no later ones
        if packets:
            end = (self.num_frames + len(packets)) / FRAME_RATE
            self._file.add(self._fragment(packets, self._track.until(end) if self._track else ()))
            self.num_frames += len(packets)

    def _fragment(self, images: Sequence[av.Packet], sounds: Sequence[av.Packet]) -> bytes:
        """The boxes moof and mdat of encoded frames and their sound; before the first of them the header."""
        buffer = io.BytesIO()
        options = _GROWING | {"fragment_index": str(self.num_frames + 1)}  # may skip numbers, must grow
        with av.open(buffer, "w", format="mp4", options=options) as muxer:
            streams = [muxer.add_stream_from_template(known, opaque=True) for known in self._header.streams]
            streams[0].codec_context.extradata = self._stream.codec_context.extradata  # the packets' format
            muxer.metadata.update({} if self._file.is_begun else self._metadata)
            muxer.start_encoding()
            begin = buffer.tell() if self._file.is_begun else 0
            for stream, packets in zip(streams, (images, sounds), strict=False):
                for packet in packets:
                    packet.stream = stream
                    muxer.mux(packet)
        return buffer.getvalue()[begin:]

    @property
    def _run_up(self) -> av.Packet | None:
        """The sound before the first that is heard, which a finished file begins with."""
        return self._track and self._track.start

    def _finish(self) -> None:
        """Remux without fragments; if that fails, the fragmented file is complete and stays."""
        try:
            self._file.replace(partial(remux, self._place, metadata=self._metadata, sound=self._run_up))
        except (OSError, av.error.FFmpegError) as error:
            self._file.check()
            logger.warning("%s stays a fragmented mp4: %s", self.path, error)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # not all of it was made
            self._close_encoders()  # before PyAV 17, one that is collected while open ends the process


def remux(
    place: Path, target: Path, metadata: Mapping[str, str] | None = None, sound: av.Packet | None = None
) -> None:
    """Write a growing file without fragments, with its own metadata or other ones.

    `sound` is the packet before the first that is heard. Raises OSError where PyAV copies it wrongly.
    """
    with (
        av.open(_FILE_URL.format(place)) as grown,
        av.open(_FILE_URL.format(target), "w", format="mp4", options=_FINISHED) as finished,
    ):
        own = {name: text for name, text in grown.metadata.items() if name not in _OF_THE_FORMAT}
        finished.metadata.update(own if metadata is None else metadata)
        # opaque: else PyAV 14 takes the packets for another kind of H.264 and writes none of their bytes
        streams = [finished.add_stream_from_template(stream, opaque=True) for stream in grown.streams]
        if sound:
            sound.stream = streams[1]
            finished.mux(sound)
        for packet in grown.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                finished.mux(packet)
    if _contents(target) != _contents(place):
        raise OSError(f"PyAV {av.__version__} copies it wrongly")


def finish(path: str | Path) -> int:
    """Make an ordinary video, with its settings, of the growing one that a killed run left; its frames.

    Raises ValueError for another file, BlockingIOError while a run writes it, OSError if it cannot be
    written; it is then as it was.
    """
    place = Path(os.path.realpath(path))
    if not (kept := frames_kept(place)):
        is_video = count_frames(place) > 0
        reason = "is finished already" if is_video else "is no video with whole blocks"
        raise ValueError(f"{path} {reason}; choose one that a run of LongLive left unfinished")
    frames, size = max(kept.items())
    with closing(GrowingFile(place, size)) as file:
        try:
            file.replace(partial(remux, place))
        except (OSError, av.error.FFmpegError) as error:
            raise OSError(f"{path} cannot be finished ({error}); it stays as it was") from error
    return frames


def metadata_of(settings: dict[str, Any] | None) -> dict[str, str]:
    """Settings as a video's metadata has them."""
    return {} if settings is None else {METADATA_KEY: json.dumps(settings, ensure_ascii=False)}


def _contents(path: Path) -> list:
    """What two videos of the same frames share: the decoders' setup; time and checksum of every packet.

    But not of the sound before the first frame, which only a finished file can have.
    """
    with av.open(_FILE_URL.format(path)) as container:
        setup = [stream.codec_context.extradata for stream in container.streams]
        packets = (packet for packet in container.demux() if packet.dts is not None and packet.pts >= 0)
        times = ((packet.stream.index, packet.pts * packet.time_base, crc32(packet)) for packet in packets)
        return [*setup, *sorted(times)]


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 [1, H, W, 3] each. Raises ValueError if it cannot be read."""
    try:
        with av.open(_FILE_URL.format(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")[None]
    except (av.error.FFmpegError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error


def count_frames(path: str | Path) -> int:
    """How many frames a video holds, without decoding them; 0 for what is no video."""
    unreadable = suppress(av.error.FFmpegError, IndexError, UnicodeDecodeError)
    with unreadable, av.open(_FILE_URL.format(path)) as container:
        return sum(packet.dts is not None for packet in container.demux(video=0))
    return 0


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a video of LongLive. Raises ValueError if there are none, or none that can be read."""
    try:
        with av.open(_FILE_URL.format(path)) as container:
            text = container.metadata.get(METADATA_KEY)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error
    if text is None:
        raise ValueError(f"{path} has no LongLive settings; choose a video that LongLive wrote")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has LongLive settings that are no JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has LongLive settings of another kind: {reprlib.repr(settings)}")
    return settings
