"""Sound under a video: in step with the frames, as long as they are, from whatever there is to hear."""

import json
import shutil
import sys
import wave
from fractions import Fraction
from hashlib import sha256
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from longlive_core import PromptSchedule
from longlive_core.cli import main
from longlive_core.geometry import FRAME_RATE
from longlive_core.output.sound import PACKET, RATE, Sound
from longlive_core.output.video import VideoWriter, read_settings

SIZE = 64
FRAME_SECONDS = 1 / FRAME_RATE
RATES = (8_000, 22_050, 44_100, 48_000, 96_000)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def tone(seconds: float, rate: int = RATE, channels: int = 2, hertz: float = 440.0) -> np.ndarray:
    """A sine [1, C, T] of half the greatest loudness."""
    times = np.arange(round(seconds * rate)) / rate
    return np.tile(0.5 * np.sin(2 * np.pi * hertz * times), (1, channels, 1)).astype(np.float32)


def heard(path: Path) -> np.ndarray:
    """The samples [C, T] in a file, from time 0 on."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    start = round(float(frames[0].pts * frames[0].time_base) * frames[0].sample_rate)
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[:, max(0, -start) :]


def spans(path: Path) -> dict[str, tuple[float, float]]:
    """When the first packet of each stream of a file that is seen or heard begins, and the last one ends."""
    found = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.dts is not None and packet.pts >= 0:
                begin, end = (float(t * packet.time_base) for t in (packet.pts, packet.pts + packet.duration))
                first, last = found.get(packet.stream.type, (begin, end))
                found[packet.stream.type] = min(first, begin), max(last, end)
    return found


def images(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def check_step(path: Path, num_frames: int) -> None:
    """Both streams start together, and end within a frame of each other."""
    streams = spans(path)
    assert max(start for start, _ in streams.values()) < 0.02, streams
    assert streams["video"][1] == pytest.approx(num_frames / FRAME_RATE)
    assert 0 <= streams["audio"][1] - streams["video"][1] < PACKET / RATE + 1e-3, streams


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Samples [1, C, T] as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples[0].T * 32767).astype("<i2").tobytes())
    return path


def write_video(path: Path, sound: Sound | None, blocks=(9, 12, 12)) -> Path:
    with VideoWriter(path, SIZE, SIZE, {"seed": 1}, sound=sound) as writer:
        for seed, count in enumerate(blocks):
            writer.append(noise(count, seed))
    return path


def test_four_minutes_stay_in_step(tmp_path) -> None:
    """Clicks are heard when they are due, in the first, the last and other seconds, also while it grows."""
    seconds, rate, clicks = 240, 44_100, (0.0, 1.0, 119.5, 239.25)
    samples = np.zeros((1, 2, seconds * rate), np.float32)
    for click in clicks:
        samples[..., round(click * rate) :][..., :200] = 0.9
    path, growing = tmp_path / "v.mp4", tmp_path / "growing.mp4"
    blank = np.zeros((FRAME_RATE * 10, SIZE, SIZE, 3), np.uint8)
    with VideoWriter(path, SIZE, SIZE, sound=Sound.of_waveform(samples, rate)) as writer:
        for index in range(seconds // 10):
            writer.append(blank)
            if index == 2:
                writer.flush()
                shutil.copyfile(path, growing)
    check_step(growing, 3 * len(blank))
    check_step(path, seconds * FRAME_RATE)
    assert onsets(heard(path)) == pytest.approx(clicks, abs=0.003)
    assert onsets(heard(growing))[-1] == pytest.approx(1.0, abs=0.003)


def onsets(samples: np.ndarray) -> list[float]:
    """Seconds at which it gets loud after half a second of silence."""
    loud = np.flatnonzero(np.abs(samples[0]) > 0.3)
    return [float(at) / RATE for at in loud[np.diff(loud, prepend=-RATE) > RATE // 2]]


def test_the_frames_are_those_of_a_silent_video_to_the_bit(tmp_path) -> None:
    silent = write_video(tmp_path / "silent.mp4", None)
    sounding = write_video(tmp_path / "sounding.mp4", Sound.of_waveform(tone(3), RATE))
    assert images(silent) == images(sounding)
    with av.open(str(silent)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert read_settings(sounding) == {"seed": 1}


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_after_every_block_a_copy_of_the_growing_file_plays_with_sound(tmp_path, blocks) -> None:
    path, copy = tmp_path / "v.mp4", tmp_path / "copy.mp4"
    metadata = {"workflow": json.dumps({"text": "avcC mp4a udta"})}
    sound = Sound.of_waveform(tone(60), RATE)
    with VideoWriter(path, SIZE, SIZE, {"seed": 1}, metadata, sound) as writer:
        for seed in range(blocks):
            writer.append(noise(12, seed))
        writer.flush()
        shutil.copyfile(path, copy)
    for file in (copy, path):
        check_step(file, 12 * blocks)
        assert read_settings(file) == {"seed": 1}
        with av.open(str(file)) as container:
            assert container.metadata["workflow"] == metadata["workflow"]
            assert sum(1 for _ in container.decode(video=0)) == 12 * blocks
        made = heard(file)
        assert np.abs(made[:, PACKET:] - tone(60)[0, :, PACKET : made.shape[1]]).max() < 0.02


@pytest.mark.parametrize(
    ("rate", "channels"), [*((rate, 2) for rate in RATES), *((44_100, n) for n in (1, 3, 5, 6, 8, 11))]
)
def test_any_rate_and_any_number_of_channels(tmp_path, rate, channels) -> None:
    samples = tone(0.5, rate, channels) / channels  # as loud together as one that does not clip
    path = write_video(tmp_path / "v.mp4", Sound.of_waveform(samples, rate), (9,))
    made = heard(path)
    assert made.shape[0] == min(channels, 2)
    crossings = np.count_nonzero(np.diff(np.sign(made[0, : RATE // 2])))
    assert crossings == pytest.approx(440, abs=12) and 0.1 < np.abs(made).max() <= 1
    check_step(path, 9)


def test_after_the_sound_there_is_silence_and_after_the_frames_no_sound(tmp_path) -> None:
    short = write_video(tmp_path / "short.mp4", Sound.of_waveform(tone(0.5), RATE))
    made = heard(short)
    assert np.abs(made[:, : RATE // 2]).max() > 0.4 and np.abs(made[:, RATE * 6 // 10 :]).max() < 1e-3
    check_step(short, 33)
    check_step(write_video(tmp_path / "long.mp4", Sound.of_waveform(tone(30), RATE)), 33)


def test_what_is_no_number_is_silent_and_what_is_too_loud_is_clipped(tmp_path) -> None:
    samples = tone(2)
    samples[..., 24_000:48_000] = np.nan
    samples[..., 50_000:60_000] = np.inf
    samples[..., 60_000:] *= 9
    made = heard(write_video(tmp_path / "v.mp4", Sound.of_waveform(samples, RATE)))
    assert np.isfinite(made).all() and np.abs(made).max() < 2
    assert np.abs(made[:, 27_000:45_000]).max() < 1e-3 < np.abs(made[:, 70_000:80_000]).max()


def test_of_a_batch_the_first_is_heard_and_the_notes_say_so() -> None:
    both = np.concatenate([tone(1), 0 * tone(1)])
    sound = Sound.of_waveform(both, RATE)
    assert np.abs(next(sound.packets_of_samples())).max() > 0.4
    assert sound.notes(1.0) == ["audio: the first of 2 sounds is taken"]
    assert "audio ends after 1.0 s; the rest is silent" in sound.notes(5.0)
    assert Sound.of_waveform(tone(1), RATE).notes(0) == []
    assert "the first 8 of 9 channels" in Sound.of_waveform(tone(1, channels=9), RATE).notes(0)[0]


@pytest.mark.parametrize("shape", [(1, 2, 0), (0, 2, 9), (1, 0, 9), (2, 9)])
def test_an_empty_sound_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="the audio is empty"):
        Sound.of_waveform(np.zeros(shape, np.float32), RATE)


def encoded(path: Path, codec: str, samples: np.ndarray, rate: int, form: str = "fltp") -> Path:
    """A file of another format with these samples [1, C, T]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate, layout="stereo", format=form)
        frame = av.AudioFrame.from_ndarray(samples[0], "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(form, "stereo", rate)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path


@pytest.mark.parametrize("name", ["a.wav", "a: 1.wav", "a.flac", "a.m4a", "v.mp4"])
def test_every_file_with_sound_is_read(tmp_path, name) -> None:
    path, samples = tmp_path / name, tone(2)
    if path.suffix == ".wav":
        write_wav(path, samples, RATE)
    elif path.suffix == ".mp4":
        write_video(path, Sound.of_waveform(samples, RATE))
    else:
        encoded(path, *{".flac": ("flac", samples, RATE, "s16"), ".m4a": ("aac", samples, RATE)}[path.suffix])
    sound = Sound.of_file(path)
    assert sound.seconds == pytest.approx(2, abs=0.1) and sound.layout == "stereo"
    assert sound.settings == {"file": name, "sha256": sha256(path.read_bytes()).hexdigest()}
    made = np.concatenate(list(islice(sound.packets_of_samples(), 80)), axis=1)
    assert np.abs(made[:, 2000:80_000] - samples[0, :, 2000:80_000]).max() < 0.05
    assert sound.notes(2.0) == [] or name.endswith(("m4a", "mp4"))
    assert "ends after" in sound.notes(9.0)[0]


def test_files_that_cannot_be_heard_are_refused_in_one_sentence(tmp_path) -> None:
    (tmp_path / "text.mp3").write_text("no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    no_samples = write_wav(tmp_path / "none.wav", tone(0), RATE)
    silent = write_video(tmp_path / "silent.mp4", None)
    sounding = write_video(tmp_path / "v.mp4", Sound.of_waveform(tone(2), RATE))
    half = tmp_path / "half.mp4"
    half.write_bytes(sounding.read_bytes()[:500])
    expected = {
        tmp_path / "nowhere.wav": "does not exist",
        tmp_path: "is a folder",
        silent: "there is no sound in",
        no_samples: "no sound in|cannot be read",
        tmp_path / "text.mp3": "cannot be read as sound",
        tmp_path / "empty.wav": "cannot be read as sound",
        half: "cannot be read as sound",
    }
    for path, words in expected.items():
        with pytest.raises(ValueError, match=words) as error:
            Sound.of_file(path)
        assert "choose a sound file" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_breaks_off_is_heard_as_far_as_it_goes(tmp_path) -> None:
    path = encoded(tmp_path / "a.flac", "flac", tone(4), RATE, "s16")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sound = Sound.of_file(path)
    assert 1 < sound.seconds < 3
    assert f"{path} ends after" in sound.notes(4.0)[0]
    check_step(write_video(tmp_path / "v.mp4", sound, (64,)), 64)


def test_a_file_that_is_gone_once_frames_come_costs_no_frame(tmp_path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1), RATE)
    sound = Sound.of_file(path)
    path.unlink()
    check_step(write_video(tmp_path / "v.mp4", sound), 33)


def test_what_is_stopped_or_fails_has_the_sound_of_its_frames(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(path, SIZE, SIZE, sound=Sound.of_waveform(tone(60), RATE)) as writer,
    ):
        writer.append(noise(12))
        raise KeyboardInterrupt
    check_step(path, 12)
    VideoWriter(tmp_path / "none.mp4", SIZE, SIZE, sound=Sound.of_waveform(tone(1), RATE)).close()
    assert not (tmp_path / "none.mp4").exists()


def generate(folder: Path, *options: str) -> int:
    words = ["--prompt", "a red circle drifts right over navy", "--size", "64x64", "--seconds", "1"]
    return main(["generate", *words, "--out", str(folder / "v.mp4"), *options])


def test_the_command_line_takes_a_file(tmp_path, capsys) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.5), 44_100)
    assert generate(tmp_path, "--audio", str(path)) == 0
    assert f"{path} ends after" in capsys.readouterr().err
    check_step(tmp_path / "v.mp4", 16)
    sound = read_settings(tmp_path / "v.mp4")["sound"]
    assert sound == {"file": "a.wav", "sha256": sha256(path.read_bytes()).hexdigest()}
    assert generate(tmp_path, "--audio", str(tmp_path / "v.mp4")) == 2
    assert "is the sound itself" in capsys.readouterr().err


def test_the_sound_begins_with_the_earlier_video_where_that_is_in_the_file(tmp_path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(3), RATE)
    state, first = str(tmp_path / "state"), tmp_path / "first.mp4"
    assert generate(tmp_path, "--state", state, "--audio", str(path)) == 0
    (tmp_path / "v.mp4").rename(first)
    source = ["--with-source", str(first)]
    for more, frames in (([], 16), (source, 32)):
        assert generate(tmp_path, "--resume", state, "--audio", str(path), *more) == 0
        check_step(tmp_path / "v.mp4", frames)
        made = heard(tmp_path / "v.mp4")
        assert np.abs(made[:, PACKET:] - tone(3)[0, :, PACKET : made.shape[1]]).max() < 0.02


@pytest.mark.parametrize("audio", ["nowhere.wav", "."])
def test_the_command_line_refuses_before_anything_is_loaded(tmp_path, monkeypatch, capsys, audio) -> None:
    monkeypatch.setattr("longlive_core.cli.generate.load_pipeline", lambda **_: pytest.fail("it was loaded"))
    assert generate(tmp_path, "--audio", audio) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "v.mp4").exists()


def ticking(path: Path, beats_a_minute: float, seconds: float = 20) -> Path:
    """A file that ticks from 0.5 s on."""
    samples = np.zeros((1, 1, round(seconds * 22_050)), np.float32)
    for at in np.arange(0.5, seconds - 0.1, 60 / beats_a_minute):
        samples[..., round(at * 22_050) :][..., :2_000] = tone(2_000 / 22_050, 22_050, 1, 900.0)
    return write_wav(path, samples, 22_050)


@pytest.mark.parametrize("beats_a_minute", [90, 120])
def test_beats_are_found(tmp_path, capsys, beats_a_minute) -> None:
    pytest.importorskip("librosa", reason="BEATS NOT TESTED: pip install librosa")
    assert main(["beats", str(ticking(tmp_path / "a.wav", beats_a_minute))]) == 0
    lines = capsys.readouterr().out.split()
    times = np.array([float(line.removesuffix("s")) for line in lines])
    assert len(times) > 10 and np.median(np.diff(times)) == pytest.approx(60 / beats_a_minute, rel=0.05)
    PromptSchedule.parse(f"0 a red circle\n{lines[3]} it turns blue")


class Rhythm:
    """What beats_of asks of librosa."""

    def __init__(self, beats: list[float]):
        self.beat = self.onset = self
        self._beats = beats

    def beat_track(self, y: np.ndarray, sr: int, units: str) -> tuple[float, np.ndarray]:
        assert y.ndim == 1 and len(y) == pytest.approx(20 * sr, abs=2 * sr) and units == "time"
        return 120.0, np.array(self._beats)

    def onset_detect(self, y: np.ndarray, sr: int, units: str) -> np.ndarray:
        return np.array([0.123456])


@pytest.mark.parametrize(("beats", "lines"), [([0.5, 1.25, 10.0], "0.5s 1.25s 10s"), ([], "0.123s")])
def test_beats_are_printed_as_a_schedule_takes_times(tmp_path, monkeypatch, capsys, beats, lines) -> None:
    monkeypatch.setitem(sys.modules, "librosa", Rhythm(beats))
    assert main(["beats", str(ticking(tmp_path / "a.wav", 120))]) == 0
    assert capsys.readouterr().out.split() == lines.split()


def test_beats_without_librosa_or_without_sound_are_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    assert main(["beats", str(ticking(tmp_path / "a.wav", 120, 1))]) == 2
    assert "pip install librosa" in capsys.readouterr().err
    assert main(["beats", str(tmp_path / "nowhere.wav")]) == 2
    assert "does not exist" in capsys.readouterr().err
