"""Images and video files become frames of a size and rate, or one sentence."""

import hashlib
import itertools
import math
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from longlive_core.footage import FITS, Footage, FootageError, first_frames, fitted, size_like
from longlive_core.output.video import VideoWriter

RED, BLUE, GREY = (220, 30, 30), (30, 30, 220), (128, 128, 128)


def split(width: int, height: int) -> np.ndarray:
    """Red above, blue below, a white column at the left."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = RED, BLUE
    image[:, : width // 8] = 255
    return image


def all_frames(footage: Footage, width: int = 32, height: int = 32, fit: str = "crop") -> torch.Tensor:
    pieces = list(footage.frames(width, height, fit))
    assert all(len(piece) <= 12 for piece in pieces)
    return torch.cat(pieces)


def off(frames: torch.Tensor, expected: np.ndarray) -> float:
    """How far frames are from pixels, on average, of 255."""
    return float((frames * 255 - torch.from_numpy(expected)).abs().mean())


def write_video(path, times, fps=16, size=(64, 64), codec="libx264", pix_fmt="yuv444p", first=0, **options):
    """A video whose frame i, with the grey value 8i, is shown from times[i] seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), 8 * index % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (time + first)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def indices(frames: torch.Tensor) -> list[int]:
    """Which frame of `write_video` each one is."""
    return [round(float(frame.mean()) * 255 / 8) for frame in frames]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_an_image_of_any_format_is_one_frame(tmp_path, suffix) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(split(64, 64)).save(path, quality=95)
    footage = Footage(path)
    assert footage.size == (64, 64) and footage.is_still and footage.seconds == 0 and not footage.notes
    frames = all_frames(footage, 64, 64)
    assert frames.shape == (1, 64, 64, 3) and off(frames, split(64, 64)) < 3
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert footage.facts() == {"file": path.name, "sha256": digest, "start": 0.0}


def test_modes_of_images_are_seen_as_they_look(tmp_path) -> None:
    made = Image.fromarray(split(32, 32))
    made.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    made.quantize(8).save(tmp_path / "palette.png")
    for name in ("cmyk.jpg", "palette.png"):
        assert off(all_frames(Footage(tmp_path / name)), split(32, 32)) < 8
    grey = np.tile(np.linspace(0, 65535, 32, dtype=np.uint16), (32, 1))
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    made.convert("L").save(tmp_path / "grey.png")
    seen = all_frames(Footage(tmp_path / "sixteen.png"))[0]
    torch.testing.assert_close(seen[0, :, 0], torch.linspace(0, 1, 32), atol=3e-3, rtol=0)
    assert torch.equal(seen[..., 0], seen[..., 2])
    assert all_frames(Footage(tmp_path / "grey.png")).shape == (1, 32, 32, 3)


def test_what_is_transparent_lies_on_white_with_a_note(tmp_path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16] = (*RED, 255)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    footage = Footage(tmp_path / "alpha.png")
    frame = all_frames(footage)[0]
    assert (frame[20:] == 1).all() and (frame[:12, :, 0] > 0.8).all() and (frame[:12, :, 1] < 0.2).all()
    assert footage.notes == ["alpha.png is transparent in places: it is laid on white"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(split(64, 32))
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    footage = Footage(tmp_path / "turned.png")
    assert footage.size == (64, 32)
    assert torch.equal((all_frames(footage, 64, 32)[0] * 255).byte(), torch.from_numpy(split(64, 32)))


def test_fits() -> None:
    frames = torch.from_numpy(split(64, 32))[None].float() / 255
    assert fitted(frames, 32, 32, "crop")[0, :, 0].max() < 0.95, "the white column is cut off"
    padded = fitted(frames, 32, 32, "pad", border=1.0)[0]
    assert (padded[:8] == 1).all() and (padded[24:] == 1).all() and padded[9:15, 8:, 2].max() < 0.3
    stretched = fitted(frames, 32, 32, "stretch")[0]
    assert stretched[:, 0].min() > 0.9 and stretched[2, 16, 0] > 0.8
    for fit in FITS:
        for width, height in ((16, 48), (48, 16), (64, 32), (128, 64)):
            assert fitted(frames, width, height, fit).shape == (1, height, width, 3)
    assert torch.equal(fitted(frames, 64, 32), frames)
    with pytest.raises(ValueError, match="unknown fit 'fill'; choose one of crop, pad, stretch"):
        fitted(frames, 32, 32, "fill")


@pytest.mark.parametrize("wide, tall", [(832, 480), (480, 832), (1000, 1000), (4000, 100), (1, 30000)])
def test_sizes_like_an_image_keep_area_and_proportions(wide, tall) -> None:
    width, height = size_like(wide, tall, 832 * 480)
    assert width % 16 == height % 16 == 0
    if max(wide / tall, tall / wide) < 3:
        assert abs(width * height / (832 * 480) - 1) < 0.05 and abs(width / height / (wide / tall) - 1) < 0.05


@pytest.mark.parametrize("fps, expected", [
    (16, [0, 1, 2, 3, 4, 5, 6, 7]),
    (32, [0, 2, 4, 6]),
    (8, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
    (24, [0, 1, 3, 4, 6, 7]),
])  # fmt: skip
def test_any_rate_is_resampled_by_time(tmp_path, fps, expected) -> None:
    path = write_video(tmp_path / "v.mkv", [i / fps for i in range(8)], fps=fps, crf="0")
    assert indices(all_frames(Footage(path))) == expected


def test_variable_rates_and_late_beginnings_go_by_time_stamps(tmp_path) -> None:
    times = [0, 0.125, 0.25, 1.0, 1.0625]
    path = write_video(tmp_path / "v.mkv", times, first=3.0, crf="0", g="1")
    seen = indices(all_frames(Footage(path)))
    assert seen == [0, 0, 1, 1] + 12 * [2] + [3, 4]


def test_a_start_in_the_middle_is_exact_whatever_the_key_frames(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 16 for i in range(30)], crf="0", g="12", bf="2")
    whole = indices(all_frames(Footage(path)))
    assert whole == list(range(30))
    for start in (0.25, 0.75, 0.8125, 1.5):
        footage = Footage(path, start)
        assert indices(all_frames(footage)) == whole[round(start * 16) :]
        assert footage.seconds == pytest.approx(30 / 16 - start, abs=0.07)
    with pytest.raises(FootageError, match=r"v.mp4 is 1.9 s long; it cannot begin at 2 s"):
        Footage(path, 2.0)


@pytest.mark.parametrize("codec, pix_fmt", [("libx264", "yuv420p10le"), ("ffv1", "gray"), ("ffv1", "bgra")])
def test_ten_bits_grey_and_alpha(tmp_path, codec, pix_fmt) -> None:
    path = write_video(tmp_path / "v.mkv", [i / 16 for i in range(4)], codec=codec, pix_fmt=pix_fmt)
    assert indices(all_frames(Footage(path))) == [0, 1, 2, 3]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_rotation_that_a_phone_writes_is_applied(tmp_path, turns) -> None:
    """Quarter turns clockwise, as the display matrix in a track's header says them."""
    with VideoWriter(tmp_path / "own.mp4", 64, 32) as writer:
        writer.append(np.stack([split(64, 32)] * 9))
    video = bytearray((tmp_path / "own.mp4").read_bytes())
    matrix = {1: (0, 1, 0, -1, 0, 0), 2: (-1, 0, 0, 0, -1, 0), 3: (0, -1, 0, 1, 0, 0)}[turns]
    at = video.index(b"tkhd") + 44
    video[at : at + 24] = struct.pack(">6i", *(value << 16 for value in matrix))
    (tmp_path / "turned.mp4").write_bytes(video)
    footage = Footage(tmp_path / "turned.mp4")
    upright = np.rot90(split(64, 32), -turns)
    assert footage.size == (upright.shape[1], upright.shape[0])
    assert off(all_frames(footage, *footage.size), np.stack([upright] * 9)) < 4


def test_our_own_videos_come_back_with_their_colours(tmp_path) -> None:
    frames = np.stack([split(64, 64)] * 9)
    with VideoWriter(tmp_path / "own.mp4", 64, 64) as writer:
        writer.append(frames)
    seen = all_frames(Footage(tmp_path / "own.mp4"), 64, 64)
    assert seen.shape == (9, 64, 64, 3) and off(seen, frames) < 4


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_images_are_footage(tmp_path, suffix) -> None:
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (0, 100, 200)]
    path = tmp_path / f"moving.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=120)
    footage = Footage(path)
    assert not footage.is_still and footage.seconds == pytest.approx(0.36)
    levels = (all_frames(footage)[:, 0, 0, 0] * 255).round().tolist()
    np.testing.assert_allclose(levels, [0, 0, 100, 100, 200, 200], atol=3)


def test_long_footage_is_read_in_pieces(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 16 for i in range(200)], pix_fmt="yuv420p")
    pieces = Footage(path).frames(16, 16)
    assert len(next(pieces)) == 12
    pieces.close()


def test_of_what_a_video_begins_with_no_more_is_read_than_is_used() -> None:
    endless = (torch.full((12, 2, 2, 3), float(number)) for number in itertools.count())
    frames = first_frames(endless)
    assert len(frames) == 45 and frames[-1].unique().tolist() == [3.0]
    assert next(endless).unique().tolist() == [4.0]
    assert len(first_frames(iter([torch.zeros(1, 2, 2, 3)]))) == 1


def test_what_is_much_smaller_than_the_frame_is_noted(tmp_path) -> None:
    Image.fromarray(split(32, 32)).save(tmp_path / "small.png")
    footage = Footage(tmp_path / "small.png")
    all_frames(footage, 80, 80)
    assert footage.notes == ["small.png is only 32x32 and is enlarged to 80x80"]


def broken_files(folder) -> dict[str, str]:
    """Files that hold no frames, and what is said of each."""
    Image.fromarray(split(64, 64)).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("this is a letter, not an image\n" * 40)
    video = write_video(folder / "v.mp4", [i / 16 for i in range(16)], pix_fmt="yuv420p").read_bytes()
    (folder / "half.mp4").write_bytes(video[: len(video) // 2])
    with av.open(str(folder / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    unread = "cannot be read as an image or a video"
    return {
        "empty.png": unread,
        "cut.png": unread,
        "text.png": unread,
        "half.mp4": "half.mp4",
        "song.mp4": "song.mp4 has no video in it",
        "folder.mp4": "is not a file; give an image or a video",
        "pipe.mp4": "is not a file; give an image or a video",
        "none.mp4": "does not exist; give an image or a video",
    }


def test_files_without_frames_are_one_sentence(tmp_path) -> None:
    for name, sentence in broken_files(tmp_path).items():
        with pytest.raises(FootageError) as caught:
            all_frames(Footage(tmp_path / name))
        message = str(caught.value)
        assert name in message and sentence in message and "\n" not in message, message


def test_a_vast_image_is_one_sentence_and_a_strip_as_long_is_an_image(tmp_path) -> None:
    Image.new("1", (30000, 30000)).save(tmp_path / "vast.png")
    with pytest.raises(FootageError, match=r"vast.png has too many pixels; make it smaller first"):
        Footage(tmp_path / "vast.png")
    Image.new("L", (30000, 40), 128).save(tmp_path / "strip.png")
    frame = all_frames(Footage(tmp_path / "strip.png"))
    assert frame.shape == (1, 32, 32, 3) and math.isclose(float(frame.mean()), 128 / 255, abs_tol=0.01)
