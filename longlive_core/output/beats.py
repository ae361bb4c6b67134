"""A sound file -> the times of its beats, by librosa (the extra `beats`)."""

import importlib
from pathlib import Path

import av
import numpy as np

from .sound import Sound, frames_of, in_range, resampled

RATE = 22_050  # Hz, that librosa looks for beats at
LAYOUT = "mono"
MISSING = "beats need librosa, which is not installed: pip install librosa (or longlive[beats])"


def beats_of(path: str | Path) -> list[float]:
    """Seconds at which the beats are in the sound of a file; of one without a beat, its onsets.

    Raises ValueError if there is no sound in it, or librosa is not installed.
    """
    Sound.of_file(path, 0)  # refuses what has none
    try:
        librosa = importlib.import_module("librosa")
    except ImportError as error:
        raise ValueError(MISSING) from error
    samples = samples_of(Path(path))
    _, times = librosa.beat.beat_track(y=samples, sr=RATE, units="time")
    if not len(times):
        times = librosa.onset.onset_detect(y=samples, sr=RATE, units="time")
    return [round(float(seconds), 3) for seconds in times]


def samples_of(path: Path) -> np.ndarray:
    """All samples of a file, float32 [T] at RATE."""
    frames: list[av.AudioFrame] = list(resampled(frames_of(path), LAYOUT, RATE))
    return in_range(np.concatenate([frame.to_ndarray()[0] for frame in frames]))
