"""The growing mp4: what another process decodes from it while it grows, after a kill and at the end."""

import gc
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longlive_core.output.growing import PENDING, GrowingFile, part_of, whole_bytes
from longlive_core.output.video import VideoWriter, read_settings

SIZE = 96
BLOCKS = (9, *[12] * 10)
COLOURS = ((240, 120, 180), (255, 0, 0), (0, 255, 0), (20, 24, 60))
SIZES = ((64, 64), (832, 480), (480, 832), (1280, 720))
BT601, LIMITED, BT709 = 6, 1, 1  # matrix, range, primaries and transfer, by their numbers in H.264
PROCESSES = multiprocessing.get_context("fork")  # a fresh Python would import torch first


def frames_of(path: Path) -> np.ndarray:
    """All frames [F, H, W, 3] of a video."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def box_types(path: Path) -> list[bytes]:
    """The types of the boxes of an mp4, in order."""
    data, types, at = path.read_bytes(), [], 0
    while at < len(data):
        types.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4])
    return types


def write_blocks(path: Path, blocks: tuple[int, ...], written, wait) -> None:
    """Write a video, block after block; after each, report how many frames are written and wait."""
    gc.disable()  # the parent's encoders cannot be freed here: their threads were not forked
    rng = np.random.default_rng(0)
    with VideoWriter(path, SIZE, SIZE, {"seed": 1}) as writer:
        for count in blocks:
            writer.append(rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
            writer.flush()
            written.send(writer.num_frames)
            wait()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The frames of a finished file, and those that another process found in it after k blocks."""
    path, seen = tmp_path_factory.mktemp("grown") / "v.mp4", {}
    reports, written = PROCESSES.Pipe()
    writer = PROCESSES.Process(daemon=True, target=write_blocks, args=(path, BLOCKS, written, written.recv))
    writer.start()
    for block in range(1, len(BLOCKS) + 1):
        assert reports.poll(30) and reports.recv() == sum(BLOCKS[:block])
        if block in (1, 2, 10, len(BLOCKS)):
            seen[block] = frames_of(path)
        reports.send("go on")
    writer.join()
    assert writer.exitcode == 0
    return frames_of(path), seen


@pytest.mark.parametrize("block", [1, 2, 10, len(BLOCKS)])
def test_another_process_reads_exactly_the_frames_made_so_far(grown, block) -> None:
    finished, seen = grown
    assert len(finished) == sum(BLOCKS)
    assert np.array_equal(seen[block], finished[: sum(BLOCKS[:block])])


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.011])
def test_a_killed_writer_leaves_whole_blocks(grown, tmp_path, delay) -> None:
    """After kill -9 while blocks are written all announced ones are there, and at most one more."""
    path, blocks = tmp_path / "v.mp4", BLOCKS * 50
    reports, written = PROCESSES.Pipe()
    writer = PROCESSES.Process(daemon=True, target=write_blocks, args=(path, blocks, written, lambda: None))
    writer.start()
    announced = [reports.recv() for _ in range(5)]
    time.sleep(delay)
    writer.kill()
    writer.join()
    while reports.poll():
        announced.append(reports.recv())
    left, finished = frames_of(path), grown[0]
    assert len(left) in np.cumsum(blocks)[len(announced) - 1 : len(announced) + 1]
    common = min(len(left), len(finished))
    assert np.array_equal(left[:common], finished[:common])


def test_what_is_half_written_does_not_count(tmp_path) -> None:
    """Every way in which a kill can cut a fragment off."""
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(12))
    writer.flush()
    before = path.stat().st_size
    writer.append(noise(12, seed=1))
    writer.flush()
    data = path.read_bytes()
    pending = data[: before + 4] + PENDING + data[before + 8 :]
    for end in (before + 8, before + 100, (before + len(data)) // 2, len(data)):
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(pending[:end])
        assert len(frames_of(cut)) == 12
        with cut.open("rb") as file:
            assert whole_bytes(file, 0) == before
    writer.close()


def test_a_finished_file_is_an_ordinary_mp4_whose_index_and_metadata_come_first(tmp_path) -> None:
    path = tmp_path / "v: 1.mp4"
    workflow = json.dumps({"nodes": ["ünïcode ✨", "x" * 100_000]})
    with VideoWriter(path, SIZE, SIZE, {"seed": 1}, {"workflow": workflow, "prompt": "{}"}) as writer:
        writer.append(noise(30))
        writer.flush()
        assert box_types(path) == [b"ftyp", b"moov", b"moof", b"mdat"]
        with av.open(str(path)) as growing:
            assert growing.metadata["workflow"] == workflow
        writer.describe({"seed": 2})
    assert box_types(path) == [b"ftyp", b"moov", b"free", b"mdat"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with av.open(f"file:{path}") as container:
        assert container.metadata["workflow"] == workflow and container.metadata["prompt"] == "{}"
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.start_time) == (30, 16, 0)
        assert stream.duration * stream.time_base == 30 / 16
    assert read_settings(path) == {"seed": 2}


def test_five_seconds_are_eighty_frames_while_the_file_grows_and_once_it_is_finished(tmp_path) -> None:
    """With every PyAV that may be installed; put another one on PYTHONPATH to try it."""
    path = tmp_path / "v.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        for seed, count in enumerate((9, *[12] * 5, 11)):
            writer.append(noise(count, seed))
        writer.flush()
        assert (*rate_and_seconds(path), len(grown := frames_of(path))) == (16, 5, 80)
    assert b"moof" not in box_types(path)
    assert (*rate_and_seconds(path), len(frames_of(path))) == (16, 5, 80)
    assert np.array_equal(frames_of(path), grown)


def rate_and_seconds(path: Path) -> tuple[Fraction, float]:
    """Frames a second, and the length by the packets, which a growing file tells in no header."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
        last = max(packets, key=lambda packet: packet.pts)
        return container.streams.video[0].average_rate, (last.pts + last.duration) * last.time_base


class Losing:
    """An output container that loses one packet."""

    def __init__(self, container):
        self._container, self._has_lost = container, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._container.close()

    def __getattr__(self, name):
        return getattr(self._container, name)

    def mux(self, packet) -> None:
        if self._has_lost:
            self._container.mux(packet)
        self._has_lost = True


def test_a_finished_copy_that_lacks_a_frame_replaces_nothing(tmp_path, monkeypatch, caplog) -> None:
    path, opened = tmp_path / "v.mp4", av.open
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(12))
    writer.flush()

    def losing(*args, **words):
        container = opened(*args, **words)
        return Losing(container) if "w" in args else container

    monkeypatch.setattr(av, "open", losing)
    writer.close()
    monkeypatch.undo()
    assert f"stays a fragmented mp4: PyAV {av.__version__}" in caplog.text
    assert len(frames_of(path)) == 12 and b"moof" in box_types(path)
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def stripes(width: int, height: int) -> np.ndarray:
    """Three frames of four flat colours next to each other."""
    row = np.repeat(np.array(COLOURS, np.uint8), width // len(COLOURS), axis=0)
    return np.ascontiguousarray(np.broadcast_to(row, (3, height, width, 3)))


def colours_of(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    return frame[height // 2, width // 8 :: width // 4].astype(int)


def tags_of(path: Path) -> tuple[int, ...]:
    """Matrix, range, primaries and transfer as a decoder sees them."""
    with av.open(str(path)) as container:
        next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        return context.colorspace, context.color_range, context.color_primaries, context.color_trc


def frame_by_ffmpeg(path: Path, width: int, height: int) -> np.ndarray:
    options = ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = ["ffmpeg", "-v", "error", "-i", str(path), *options]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_colours_are_tagged_and_come_back(tmp_path, width, height) -> None:
    """While the file grows and finished, by the container and by H.264 alone: a copy may keep only that."""
    growing, finished = tmp_path / "growing.mp4", tmp_path / "v.mp4"
    with VideoWriter(finished, width, height) as writer:
        writer.append(stripes(width, height))
        writer.append(stripes(width, height))
        writer.flush()
        shutil.copyfile(finished, growing)
    for path in (growing, finished):
        bare, data = tmp_path / "bare.mp4", path.read_bytes()
        assert b"colr" in data
        bare.write_bytes(data.replace(b"colr", b"free"))
        for file in (path, bare):
            assert tags_of(file) == (BT601, LIMITED, BT709, BT709), file
            assert np.abs(colours_of(frames_of(file)[-1]) - COLOURS).max() <= 3, file
            if shutil.which("ffmpeg"):
                assert np.abs(colours_of(frame_by_ffmpeg(file, width, height)) - COLOURS).max() <= 3, file


def test_a_video_without_settings_says_nothing_of_how_it_was_made(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
        writer.flush()
        growing = path.read_bytes()
        writer.describe({"schedule": "a red circle"})
        writer.describe(None)
    assert not any(b"longlive" in data.lower() or b"red" in data for data in (growing, path.read_bytes()))
    with pytest.raises(ValueError, match="no LongLive settings"):
        read_settings(path)


def test_a_writer_that_nobody_closed_can_be_collected(tmp_path) -> None:
    """PyAV 14 to 16 end the process here unless the encoder is closed first."""
    code = """
        import gc, sys, numpy
        from longlive_core.output.video import VideoWriter
        for name in "abc":  # the thread of the one before may still be writing
            VideoWriter(sys.argv[1] + name, 64, 64).append(numpy.zeros((3, 64, 64, 3), numpy.uint8))
            gc.collect()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "v.mp4.")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_single_frames_and_nothing_at_all(tmp_path) -> None:
    with VideoWriter(tmp_path / "v.mp4", SIZE, SIZE) as writer:
        writer.append(noise(0))
        for index in range(3):
            writer.append(noise(1, seed=index))
            writer.flush()
            assert len(frames_of(writer.path)) == index + 1
    assert len(frames_of(tmp_path / "v.mp4")) == 3
    VideoWriter(tmp_path / "none.mp4", SIZE, SIZE).close()
    assert not (tmp_path / "none.mp4").exists()


def test_the_file_is_not_much_larger_than_its_frames_need(tmp_path) -> None:
    """A still with a moving square: 10 s at 256x256 in less than 100 kB, fragments and all."""
    still = np.zeros((160, 256, 256, 3), np.uint8) + np.linspace(0, 255, 256, dtype=np.uint8)[:, None]
    for index, frame in enumerate(still):
        frame[100:140, index : index + 40] = (255, 0, 0)
    with VideoWriter(tmp_path / "v.mp4", 256, 256) as writer:
        for block in np.split(still, range(9, 160, 12)):
            writer.append(block)
        writer.flush()
        growing = writer.path.stat().st_size
    assert writer.path.stat().st_size < 100_000 and growing < 1.2 * writer.path.stat().st_size


def test_an_earlier_video_stays_until_there_is_a_frame_for_another(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(12))
    before = path.read_bytes()
    VideoWriter(path, SIZE, SIZE).close()
    assert path.read_bytes() == before
    with pytest.raises(ZeroDivisionError), VideoWriter(path, SIZE, SIZE) as writer:
        assert path.read_bytes() == before
        writer.append(noise(1 // 0))
    assert path.read_bytes() == before
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
    assert len(frames_of(path)) == 3


def test_files_of_others_and_links_stay(tmp_path) -> None:
    path, link, part = tmp_path / "v.mp4", tmp_path / "link.mp4", tmp_path / "v.mp4.part"
    part.write_bytes(b"of someone else")
    link.symlink_to(path.name)
    with VideoWriter(link, SIZE, SIZE) as writer:
        writer.append(noise(3))
        writer.flush()
        assert len(frames_of(path)) == 3
    assert link.is_symlink() and b"moof" not in box_types(path)
    assert part.read_bytes() == b"of someone else"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.mp4", "v.mp4", "v.mp4.part"]


def test_settings_are_read_whatever_the_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter("a:b.mp4", SIZE, SIZE, {"seed": 1}) as writer:
        writer.append(noise(3))
    assert read_settings("a:b.mp4") == {"seed": 1}


@pytest.mark.parametrize("place", ["nowhere/v.mp4", "folder"])
def test_what_cannot_be_written_is_refused_at_once(tmp_path, place) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=place):
        VideoWriter(tmp_path / place, SIZE, SIZE)


def refuse(monkeypatch, name: str, is_refused=lambda *_: True) -> None:
    """Let a function of os answer as Windows does where a file is open."""
    allowed = getattr(os, name)

    def refusing(*args, **words):
        if is_refused(*args):
            raise PermissionError(13, "The process cannot access the file", str(args[0]))
        return allowed(*args, **words)

    monkeypatch.setattr(os, name, refusing)


def test_a_file_that_is_read_on_windows_is_finished_if_the_reader_lets_it(tmp_path, monkeypatch) -> None:
    """An open file cannot be replaced there, but renamed, and then another put in its place."""
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(12))
    writer.flush()
    refuse(monkeypatch, "replace", lambda _, target: Path(target).exists())
    writer.close()
    assert b"moof" not in box_types(path) and len(frames_of(path)) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_a_file_that_a_reader_on_windows_holds_stays_as_it_grew(tmp_path, monkeypatch, caplog) -> None:
    path, empty = tmp_path / "v.mp4", tmp_path / "empty.mp4"
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(12))
    writer.flush()
    nothing = VideoWriter(empty, SIZE, SIZE)
    refuse(monkeypatch, "replace")
    refuse(monkeypatch, "unlink")
    writer.close()
    nothing.close()
    assert "stays a fragmented mp4" in caplog.text and b"moof" in box_types(path)
    assert len(frames_of(path)) == 12


class FullFile:
    """A raw file on a disk with room for so many bytes more."""

    def __init__(self, file, room: int):
        self._file, self._room = file, room

    def write(self, data) -> int:
        taken = min(len(data), self._room)
        self._room -= taken
        if not taken:
            raise OSError(28, "No space left on device")
        return self._file.write(data[:taken])

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [9_000, 139_000, 253_453])
def test_a_full_disk_leaves_whole_fragments(tmp_path, room) -> None:
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, SIZE, SIZE, {"schedule": "x" * 100_000})
    writer.append(noise(12))
    writer.flush()
    writer._file._file = FullFile(writer._file._file, room)
    with pytest.raises(OSError, match="No space left on device; what was written"), writer:
        for _ in range(100):
            writer.append(noise(12))
    assert len(frames_of(path)) == writer.num_frames >= 12
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("room", [0, 100, 900, 40_000])
def test_a_disk_that_is_full_at_once_costs_nobody_the_earlier_video(tmp_path, room) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"an earlier video")
    writer = VideoWriter(path, SIZE, SIZE)
    writer._file._file = FullFile(writer._file._file, room)
    with pytest.raises(OSError, match="No space left on device") as error, writer:
        writer.append(noise(12))
    assert "playable" not in str(error.value) and path.read_bytes() == b"an earlier video"
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def write_until(path: Path, num_writes: int, is_before: bool) -> None:
    """Write a video; die at one of its writes to the disk, before it or in the middle of it."""
    write, left = GrowingFile._put, num_writes

    def put(file, offset: int, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            write(file, offset, data[: 0 if is_before else len(data) // 2])
            os._exit(9)
        write(file, offset, data)

    gc.disable()
    GrowingFile._put = put
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(9))
        writer.append(noise(12))


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("num_writes", range(3))
def test_a_kill_at_any_write_leaves_the_earlier_video_or_blocks(tmp_path, num_writes, is_before) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(30))
    doomed = PROCESSES.Process(daemon=True, target=write_until, args=(path, num_writes, is_before))
    doomed.start()
    doomed.join()
    assert doomed.exitcode == 9
    assert len(frames_of(path)) == (9 if num_writes else 30)
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
    assert len(frames_of(path)) == 3 and [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_a_name_in_use_is_refused_before_and_after_the_first_block(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        for seed in range(3):
            for name in (path, *tmp_path.glob("v.mp4")):
                with pytest.raises(BlockingIOError, match=r"another run is writing this file.*v\.mp4"):
                    VideoWriter(name, SIZE, SIZE)
            writer.append(noise(12, seed))
            writer.flush()
    assert len(frames_of(path)) == 36
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
    assert len(frames_of(path)) == 3 and [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_a_video_that_another_writer_began_meanwhile_is_not_replaced(tmp_path) -> None:
    """As where the first writer's part was not seen, on a disk without locks."""
    path = tmp_path / "v.mp4"
    late = VideoWriter(path, SIZE, SIZE)
    late._file._now = late._file._now.rename(tmp_path / "another.part")
    with VideoWriter(path, SIZE, SIZE) as first:
        first.append(noise(12))
        first.flush()
        with pytest.raises(BlockingIOError, match="another run"), late:
            late.append(noise(3))
        first.append(noise(12))
    assert len(frames_of(path)) == 24 and not late.num_frames


def unlink(path: Path) -> None:
    path.unlink()


def exchange(path: Path) -> None:
    path.rename(path.with_name("moved.mp4"))
    path.write_bytes(b"of someone else")


def remove_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize("is_at_the_end", [False, True])
@pytest.mark.parametrize("change", [unlink, exchange, remove_folder])
def test_a_file_that_disappears_meanwhile_is_an_error(tmp_path, change, is_at_the_end) -> None:
    path = tmp_path / "videos" / "v.mp4"
    path.parent.mkdir()
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(12))
    writer.flush()
    change(path)
    with pytest.raises(FileNotFoundError, match=r"moved, deleted or replaced.*v\.mp4"):
        if not is_at_the_end:
            writer.append(noise(12))
        writer.close()
    assert writer.num_frames == 12
    assert not path.exists() or path.read_bytes() == b"of someone else"
    assert not path.parent.exists() or len(list(path.parent.iterdir())) == (2 if change is exchange else 0)


def test_the_other_names_of_an_earlier_video_keep_it(tmp_path) -> None:
    path, other = tmp_path / "v.mp4", tmp_path / "other.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(12))
    other.hardlink_to(path)
    before = other.read_bytes()
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
        writer.flush()
        assert other.read_bytes() == before
    assert other.read_bytes() == before and len(frames_of(path)) == 3


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path) -> None:
    """Left by a run that was killed a while ago, by one just now, and of one that has only been paused."""
    abandoned, recent = part_of(tmp_path / "killed.mp4"), part_of(tmp_path / "just_now.mp4")
    paused = VideoWriter(tmp_path / "paused.mp4", SIZE, SIZE)
    waiting = part_of(paused.path)
    for part in (abandoned, recent):
        part.write_bytes(b"x" * 1000)
    for part in (abandoned, waiting):
        os.utime(part, (0, 0))
    with VideoWriter(tmp_path / "v.mp4", SIZE, SIZE) as writer:
        assert {recent, waiting} <= set(tmp_path.iterdir()) and not abandoned.exists()
        writer.append(noise(3))
    paused.close()
    assert set(tmp_path.iterdir()) == {recent, writer.path}


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path) -> None:
    path = tmp_path / f"{'v' * 251}.mp4"
    with VideoWriter(path, SIZE, SIZE) as writer:
        writer.append(noise(3))
    assert len(frames_of(path)) == 3 and b"moof" not in box_types(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_where_the_finished_copy_has_no_room_the_fragments_stay(tmp_path, caplog) -> None:
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, SIZE, SIZE)
    writer.append(noise(24))
    writer.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, limits[1]))
    try:
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "stays a fragmented mp4" in caplog.text
    assert len(frames_of(path)) == 24 and [file.name for file in tmp_path.iterdir()] == ["v.mp4"]
