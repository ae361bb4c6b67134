"""Clips to share: the part of a video, captions at their frames, size, letters, and what stays on errors."""

import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longlive_core.cli import main
from longlive_core.geometry import FRAME_RATE
from longlive_core.output import share
from longlive_core.output.video import VideoWriter
from longlive_core.schedule.captions import captions_of

GREY = 120
PROMPTS = "0 a red circle\n1s it turns blue\n2.5s it rests"


def settings_of(schedule: str, seconds: float, block: int = 3, past: int = 0) -> dict:
    window = {"block_latent_frames": block}
    return {"schedule": schedule, "seconds": seconds, "window": window, "past_latent_frames": past}


def write_video(path: Path, seconds: float, schedule: str | None = PROMPTS, size=(96, 64)) -> Path:
    """A grey video with these prompts in it; None for none."""
    settings = None if schedule is None else settings_of(schedule, seconds)
    with VideoWriter(path, *size, settings) as writer:
        for _ in range(round(seconds * FRAME_RATE)):
            writer.append(np.full((1, size[1], size[0], 3), GREY, np.uint8))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "v.mp4", 4)


def frames_of(path: Path) -> np.ndarray:
    """All frames [F, H, W, 3] of a clip."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return np.stack([image for image, times in webp_frames(path) for _ in range(times)])


def webp_frames(path: Path) -> list[tuple[np.ndarray, int]]:
    """The images of a WebP and for how many frames each is shown: those that are alike are one image."""
    images = []
    with Image.open(path) as clip:
        for number in range(clip.n_frames):
            clip.seek(number)
            image = np.asarray(clip.convert("RGB"))
            images.append((image, round(clip.info["duration"] * FRAME_RATE / 1000)))
    return images


def changes(frames: np.ndarray) -> list[int]:
    """The frames whose lower third differs from the one before: another caption."""
    lower = frames[:, frames.shape[1] * 2 // 3 :].astype(int)
    return [1 + int(at) for at in np.flatnonzero(np.abs(np.diff(lower, axis=0)).mean((1, 2, 3)) > 2)]


def clip_of(video: Path, *options: str, ending: str = ".mp4") -> Path:
    out = video.with_name(f"out{ending}")
    assert main(["share", str(video), "--out", str(out), *options]) == 0
    return out


# Captions


def test_a_prompt_is_a_caption_from_the_block_on_where_it_took_effect():
    captions = captions_of(settings_of(f"always: film still\n{PROMPTS}", 4), 4)
    assert [text for _, text in captions] == ["a red circle", "it turns blue", "it rests"]
    assert [seconds * FRAME_RATE for seconds, _ in captions] == [0, 21, 45]
    frame_wise = captions_of(settings_of(PROMPTS, 4, block=1), 4)
    assert [seconds * FRAME_RATE for seconds, _ in frame_wise] == [0, 17, 41]


def test_what_all_prompts_begin_with_is_left_out():
    start = "A film still of a woman in a red coat"
    text = f"0 {start} sits\n5s {start} stands\n9s {start} in the rain"
    texts = [text for _, text in captions_of(settings_of(text, 15), 15)]
    assert texts == ["…sits", "…stands", "…in the rain"]


def test_in_a_file_with_the_earlier_video_captions_begin_where_it_ends():
    settings = settings_of(PROMPTS, 4, past=15)  # 57 frames
    assert captions_of(settings, 4 + 57 / FRAME_RATE)[0].seconds == 57 / FRAME_RATE
    assert captions_of(settings, 4)[0].seconds == 0


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": 5}, settings_of(PROMPTS, 4) | {"window": 3}, {"schedule": ""}]
)
def test_settings_without_a_schedule_are_refused(settings):
    with pytest.raises(ValueError, match="schedule"):
        captions_of(settings, 4)


# The clip


@pytest.mark.parametrize("ending", [".mp4", ".webp"])
def test_captions_change_at_the_frame_of_their_prompt(video, ending):
    frames = frames_of(clip_of(video, ending=ending))
    assert frames.shape == (64, 320, 480, 3)
    assert changes(frames) == [21, 45]
    assert abs(frames[:, :160].astype(int) - GREY).max() < 12, "the picture stays"
    later = frames_of(clip_of(video, "--from", "1", "--to", "3", ending=ending))
    assert changes(later) == [21 - 16, 45 - 16] and len(later) == 32


def test_an_animated_webp_loops_for_ever_at_16_frames_a_second(video):
    with Image.open(clip_of(video, ending=".webp")) as clip:
        assert clip.info["loop"] == 0
    assert sum(times for _, times in webp_frames(video.with_name("out.webp"))) == 64


def test_an_mp4_has_the_rate_and_the_index_first(video):
    out = clip_of(video)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (FRAME_RATE, 64)
        assert stream.codec_context.pix_fmt == "yuv420p"
    data = out.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_of_a_long_video_the_part_around_the_switches_is_taken():
    source = share.Source(Path("v"), 64, 64, FRAME_RATE, 240 * FRAME_RATE)
    seconds = lambda part: (part.start / FRAME_RATE, len(part) / FRAME_RATE)  # noqa: E731
    assert seconds(share.chosen(source, [])) == (0, 15)
    assert seconds(share.chosen(source, [60, 100, 105, 112])) == (98.5, 15)
    assert seconds(share.chosen(source, [239])) == (225, 15)
    assert seconds(share.chosen(source, [5], stop=200)) == (185, 15)
    assert seconds(share.chosen(source, [5], start=10, stop=70)) == (10, 60)
    short = source._replace(num_frames=100)
    assert seconds(share.chosen(short, [3])) == (0, 100 / FRAME_RATE)


@pytest.mark.parametrize(
    ("start", "stop", "sentence"),
    [
        (300, None, "cannot begin at 300 s: the video has 240.0 s"),
        (None, 250, "cannot end at 250 s: the video has 240.0 s"),
        (-1, None, "cannot begin at -1 s"),
        (20, 10, "a clip of -10 s"),
        (0, 100, "a clip of 100 s is not possible; choose more than 0 and at most 60"),
        (float("nan"), None, "cannot begin at nan s"),
    ],
)
def test_parts_that_are_not_in_the_video_are_refused(start, stop, sentence):
    source = share.Source(Path("v"), 64, 64, FRAME_RATE, 240 * FRAME_RATE)
    with pytest.raises(ValueError, match=sentence):
        share.chosen(source, [], start, stop)


def test_a_clip_of_too_many_megabytes_is_made_smaller(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "v.mp4", 64, 64, settings_of(PROMPTS, 1)) as writer:
        writer.append(noise)
    large = clip_of(tmp_path / "v.mp4", "--width", "256").stat().st_size
    limit = large / 2 / share.MEGABYTE
    out = clip_of(tmp_path / "v.mp4", "--width", "256", "--max-mb", str(limit))
    assert out.stat().st_size <= limit * share.MEGABYTE
    assert "pixels wide, to stay below" in capsys.readouterr().err
    assert (
        main(["share", str(tmp_path / "v.mp4"), "--out", str(out), "--width", "256", "--max-mb", "0.0001"])
        == 2
    )
    assert "do not fit 0.0001 MB, even 128 pixels wide" in capsys.readouterr().err
    assert len(frames_of(out)) == 16, "the earlier clip stays"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4", "v.mp4"]


def test_frames_are_never_all_in_memory(tmp_path):
    source = share.probe(write_video(tmp_path / "v.mp4", 20, size=(320, 192)))  # 59 MB of frames
    tracemalloc.start()
    share.share(source, tmp_path / "clip.mp4", share.chosen(source, [], 0, 20), width=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert len(frames_of(tmp_path / "clip.mp4")) == 320


# Letters


def test_letters_of_all_scripts_are_drawn_or_named(monkeypatch):
    text = "雨の夜, дождь"
    if not share.lacking(text):
        fonts = {font.getname() for font, _ in share.runs(text, 20)}
        assert len(fonts) > 1
    monkeypatch.setattr(share, "FONTS", ())
    share.fonts.cache_clear()
    share.font_of.cache_clear()
    try:
        assert {"雨", "の", "夜"} <= set(share.lacking(text))
        assert not share.lacking("a red circle, at 5 o'clock… (1)")
        assert share.caption_band(text, (480, 270)).width == 480
    finally:
        monkeypatch.undo()
        share.fonts.cache_clear()
        share.font_of.cache_clear()


@pytest.mark.parametrize("text", ["word " * 80, "雨" * 300, "x" * 500, "雨、" * 80, "a"])
def test_captions_are_wrapped_within_three_lines(text):
    lines = share.wrapped(text, 20, 400, 3)
    assert 1 <= len(lines) <= 3
    assert all(share.length(line, 20) <= 400 + 20 for line in lines)
    assert lines[-1].endswith("…") == (len(text) > 100)
    assert not any(line.startswith("、") for line in lines)


@pytest.mark.parametrize("size", [(480, 276), (480, 832), (128, 74)])
def test_a_caption_leaves_most_of_the_picture_free(size):
    band = share.caption_band("many words " * 40, size)
    assert band.width == size[0] and band.height <= 0.45 * size[1]
    letters = np.asarray(band)[..., 0]
    assert (letters > 200).any() and (letters[0] == 0).all()


# Errors and notes


def test_a_video_without_settings_has_no_captions_and_a_note(tmp_path, capsys):
    out = clip_of(write_video(tmp_path / "v.mp4", 1, None))
    assert "without captions: " in capsys.readouterr().err
    assert changes(frames_of(out)) == [] and abs(frames_of(out).astype(int) - GREY).max() < 12


def test_the_name_of_the_clip_is_that_of_the_video_unless_given(video):
    assert main(["share", str(video), "--to", "1"]) == 0
    assert video.with_name("v-clip.mp4").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere.mp4"], "there is no video nowhere.mp4"),
        (["text.txt"], "cannot be read as a video"),
        (["v.mp4", "--out", "v.mp4"], "is the video itself"),
        (["v.mp4", "--out", "v.gif"], "choose a name that ends in .mp4 or .webp"),
        (["v.mp4", "--out", "no/where.mp4"], "choose a file in a folder that exists"),
        (["v.mp4", "--width", "8"], "choose 128 to 1920"),
        (["v.mp4", "--max-mb", "0"], "choose more than 0"),
        (["v.mp4", "--from", "9"], "the video has 4.0 s"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(video, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(video.parent)
    Path("text.txt").write_text("a red circle")
    before = video.read_bytes()
    assert main(["share", *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert video.read_bytes() == before
    assert not list(video.parent.glob("*.part")) and not list(video.parent.glob(".longlive*"))
