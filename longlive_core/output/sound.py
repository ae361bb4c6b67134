"""A sound file or a waveform -> the sound track of a video: AAC, for as long as there are frames."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 48_000  # Hz, of every track: players, and lengths of packets, then differ from file to file in nothing
PACKET = 1024  # samples in a packet of AAC, and before the first one that is heard
BITS_A_SECOND = {"mono": 96_000, "stereo": 192_000}
LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "7.0", "7.1")  # of so many channels
PIECE = 1 << 16  # samples that are resampled at once
HASHED_BYTES = 1 << 20
CHOOSE = "choose a sound file, or a video with sound"
_FILE_URL = "file:{}"  # for av.open: then a path may contain any characters


@dataclass(frozen=True)
class Sound:
    """What is heard from the first frame of a video on, once; then there is silence.

    `decoded` begins with the first sample whenever it is called; `layout` is mono or stereo, to which more
    channels are mixed; `settings` name the sound in the settings of a video.
    """

    decoded: Callable[[], Iterator[av.AudioFrame]] = field(repr=False)
    layout: str
    seconds: float
    name: str
    settings: dict[str, Any]
    remarks: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, path: str | Path, seconds: float = float("inf")) -> "Sound":
        """The sound of a file that PyAV reads, a video included; no more than `seconds` are looked at now.

        Raises ValueError if there is no sound in it.
        """
        path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ValueError(f"the sound {path} {what}; {CHOOSE}")
        layout, length = checked(path, seconds)
        settings = {"file": path.name, "sha256": digest(path)}
        return cls(lambda: frames_of(path), layout, length, str(path), settings)

    @classmethod
    def of_waveform(cls, waveform: np.ndarray, rate: int) -> "Sound":
        """The sound of samples [B, C, T] in [-1, 1], `rate` a second; ValueError if there are none."""
        samples = np.asarray(waveform, np.float32)
        if samples.ndim != 3 or not samples.size or rate <= 0:
            raise ValueError(
                f"the audio is empty: {list(samples.shape)} [batch, channels, samples] at {rate} Hz; "
                "connect one with samples, or none"
            )
        batch, channels, length = samples.shape
        samples = np.ascontiguousarray(samples[0, : len(LAYOUTS)])
        settings = {"sha256": hashlib.sha256(samples).hexdigest(), "sample_rate": rate}
        remarks = [f"audio: the first of {batch} sounds is taken"] if batch > 1 else []
        if channels > len(LAYOUTS):
            remarks.append(f"audio: the first {len(LAYOUTS)} of {channels} channels are taken")
        layout = LAYOUTS[min(channels, 2) - 1]
        return cls(lambda: pieces_of(samples, rate), layout, length / rate, "audio", settings, tuple(remarks))

    def notes(self, seconds: float) -> list[str]:
        """What the user should know who gets it under a video of so many seconds."""
        if self.seconds + PACKET / RATE >= seconds:
            return [*self.remarks]
        return [*self.remarks, f"{self.name} ends after {self.seconds:.1f} s; the rest is silent"]

    def packets_of_samples(self) -> Iterator[np.ndarray]:
        """Samples float32 [C, 1024] at 48 kHz, silence without end after the last."""
        silence = np.zeros((1 + (self.layout == "stereo"), PACKET), np.float32)
        left = silence[:, :0]
        for frame in resampled(self.decoded(), self.layout):
            left = np.concatenate([left, in_range(frame.to_ndarray())], axis=1)
            while left.shape[1] >= PACKET:
                yield left[:, :PACKET]
                left = left[:, PACKET:]
        yield np.concatenate([left, silence[:, left.shape[1] :]], axis=1)
        yield from repeat(silence)


def in_range(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1]: what is no number is silent. The encoder takes no others."""
    return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)


def resampled(frames: Iterator[av.AudioFrame], layout: str, rate: int = RATE) -> Iterator[av.AudioFrame]:
    """The frames in this layout and rate; their own rate and layout may change on the way."""
    for _, alike in groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        resampler = av.AudioResampler("fltp", layout, rate)
        for frame in chain(alike, (None,)):
            yield from resampler.resample(frame)


def frames_of(path: Path) -> Iterator[av.AudioFrame]:
    """The sound in a file, as far as it can be read; what is damaged is left out."""
    with suppress(av.error.FFmpegError), av.open(_FILE_URL.format(path)) as container:
        for packet in container.demux(audio=0):
            with suppress(av.error.InvalidDataError):
                yield from without_times(packet.decode())


def without_times(frames: list[av.AudioFrame]) -> list[av.AudioFrame]:
    for frame in frames:
        frame.pts = None
    return frames


def pieces_of(samples: np.ndarray, rate: int) -> Iterator[av.AudioFrame]:
    """Samples [C, T] as frames."""
    for start in range(0, samples.shape[1], PIECE):
        piece = in_range(samples[:, start : start + PIECE])
        yield as_frame(piece, LAYOUTS[len(samples) - 1], rate)


def as_frame(samples: np.ndarray, layout: str, rate: int) -> av.AudioFrame:
    packed = np.ascontiguousarray(samples.T.reshape(1, -1))  # PyAV cannot fill eight planes
    frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
    frame.sample_rate = rate
    return frame


def checked(path: Path, seconds: float) -> tuple[str, float]:
    """Layout of the sound in a file, and its length up to about `seconds`; ValueError if there is none."""
    try:
        layout = layout_of(path)
        samples = 0
        for frame in resampled(frames_of(path), layout) if layout else ():
            samples += frame.samples
            if samples > seconds * RATE:
                break
    except (ValueError, av.error.FFmpegError) as error:
        raise ValueError(f"{path} cannot be read as sound ({error}); {CHOOSE}") from error
    if not samples:
        raise ValueError(f"there is no sound in {path}; {CHOOSE}")
    return layout, samples / RATE


def layout_of(path: Path) -> str:
    """Mono or stereo: what the sound of a file is mixed to; empty if it has none."""
    with av.open(_FILE_URL.format(path)) as container:
        streams = container.streams.audio
        return LAYOUTS[min(streams[0].codec_context.layout.nb_channels, 2) - 1] if streams else ""


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(HASHED_BYTES), b""):
            sha.update(part)
    return sha.hexdigest()


class SoundTrack:
    """Encodes a sound as it is asked for. `start` is the packet before the first: the decoder's run-up."""

    def __init__(self, sound: Sound, container: av.container.OutputContainer):
        bits = BITS_A_SECOND[sound.layout]
        self._stream = container.add_stream("aac", RATE, layout=sound.layout, bit_rate=bits)
        self._packets = self._encoded(sound)
        self._end = 0

    def until(self, seconds: float) -> list[av.Packet]:
        """The next packets, until the track is at least so long; at most a packet (21 ms) longer."""
        if not self._end:
            self.start = next(self._packets)
        packets = []
        while self._end < seconds * RATE:
            packets.append(next(self._packets))
            self._end += PACKET
        return packets

    def _encoded(self, sound: Sound) -> Iterator[av.Packet]:
        for index, samples in enumerate(sound.packets_of_samples()):
            frame = as_frame(samples, sound.layout, RATE)
            frame.pts, frame.time_base = index * PACKET, Fraction(1, RATE)
            yield from self._stream.encode(frame)

    def close(self) -> None:
        self._packets.close()
