"""Files that others may read while they are written: an earlier file stays until the new one is playable."""

import errno
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PENDING = b"skip"  # type of a box that is not completely on disk yet; players skip it
BOX_HEADER_BYTES = 8  # an mp4 box begins with its length, then its type
TYPE_BYTES = slice(4, BOX_HEADER_BYTES)
COUNT = slice(4, 8)  # in `trun` the number of frames, in `tfhd` that of the track
VIDEO_TRACK = (1).to_bytes(4, "big")
PARTS = ".longlive-{}.part"
ABANDONED_SECONDS = 3600.0  # after which an unlocked part belongs to a run that was killed
LOCKED_BYTE = 2**62  # Windows lets nobody else read a locked byte: far behind the end of any video
BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # other errors: a file system without locks
IS_BUSY = "another run is writing this file; wait for its end or choose another name"
IS_GONE = "it was moved, deleted or replaced while it was written; leave it in place until the run has ended"


class GrowingFile:
    """A file to which pieces are added, each completely or not at all, by one writer at a time.

    The first piece replaces an earlier file, unless the first `kept` bytes of it stay. Raises OSError at once
    if no file can be written there, and BlockingIOError while another writer is at it.
    """

    def __init__(self, path: Path, kept: int = 0):
        self._path, self._now, self._end = path, path if kept else part_of(path), kept
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no ordinary file; choose another name", str(path))
        try:
            self._check_free()
            remove_abandoned(path.parent)
            self._now.touch()
            self._open()
            if kept:
                self._file.truncate(kept)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _check_free(self) -> None:
        if self._path.exists():
            open_locked(self._path).close()

    def _open(self) -> None:
        self._file = open_locked(self._now)
        self._identity = os.fstat(self._file.fileno())

    def check(self) -> None:
        """Raise FileNotFoundError if the file is no longer in its place."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._now), self._identity):
                return
        raise FileNotFoundError(errno.ENOENT, IS_GONE, str(self._path))

    def add(self, piece: bytes) -> None:
        """Append mp4 boxes. Raises OSError if they cannot be written; the file is then as before."""
        self.check()
        try:
            if self._end:
                self._append(piece)
            else:
                self._begin(piece)
        except OSError as error:
            with suppress(OSError, ValueError):  # ValueError: it is closed
                self._file.truncate(self._end)
            kept = "; what was written before stays playable" if self._end else ""
            raise OSError(error.errno, f"{error.strerror}{kept}", str(self._path)) from error
        self._end += len(piece)

    def _begin(self, piece: bytes) -> None:
        self._file.truncate(0)  # a killed run may have left something
        self._put(0, piece)
        self._check_free()
        self._file.close()  # Windows moves no open file
        replace_open(self._path, self._now)
        self._now = self._path
        self._open()

    @property
    def is_begun(self) -> bool:
        """Whether anything is in it."""
        return self._end > 0

    def cut(self, end: int) -> None:
        """Drop all but the first `end` bytes, where a piece ended."""
        self.check()
        self._file.truncate(end)
        self._end = end

    def _append(self, piece: bytes) -> None:
        """The type of the first box is written last, which makes all of them valid at once."""
        self._put(self._end, piece[: TYPE_BYTES.start] + PENDING + piece[TYPE_BYTES.stop :])
        self._put(self._end + TYPE_BYTES.start, piece[TYPE_BYTES])

    def _put(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(data)
        while left:  # a nearly full disk writes only a part
            left = left[self._file.write(left) :]

    def replace(self, make: Callable[[Path], None]) -> None:
        """Close the file and replace it by the one that `make` writes. On an error it stays as it was."""

        def make_and_close(part: Path) -> None:
            make(part)
            self.check()
            self._file.close()

        write_whole(self._path, make_and_close)

    def close(self) -> None:
        """If nothing was added, no file is left except an earlier one."""
        self._file.close()
        if not self._end:
            with suppress(OSError):
                self.check()
                self._now.unlink()


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its place; also for the longest name that a disk allows."""
    return path.with_name(PARTS.format(f"{zlib.crc32(os.fsencode(path.name)):08x}"))


def remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left there."""
    for part in folder.glob(PARTS.format("*")):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                open_locked(part).close()
                part.unlink()


def open_locked(path: Path) -> BinaryIO:
    """Open a file to change it, locked until it is closed; BlockingIOError while another writer has it."""
    file = path.open("r+b", buffering=0)
    try:
        if sys.platform == "win32":
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            file.close()
            raise BlockingIOError(errno.EAGAIN, IS_BUSY, str(path)) from error
    return file


def write_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write a file; an earlier one stays until the new one is whole, which keeps its mode.

    `make` raises BlockingIOError where another run is writing the same file.
    """
    part = part_of(path)
    try:
        make(part)
        sync(part)
        with suppress(OSError):  # there is no earlier one, or the disk knows no modes
            shutil.copymode(path, part)
        replace_open(path, part)
    except BlockingIOError:  # the part is another run's
        raise
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def replace_open(path: Path, new: Path) -> None:
    """Replace a file that another process may be reading. On OSError it stays as it was."""
    try:
        os.replace(new, path)
    except PermissionError:  # Windows replaces no open file, but renames it if its reader allows that
        aside = new.with_suffix(".old")
        os.replace(path, aside)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(aside, path)
            raise
        with suppress(PermissionError):
            aside.unlink()


def frames_kept(path: Path) -> dict[int, int]:
    """Where a growing file may be cut: numbers of frames, and how many bytes they take.

    Empty for a finished file, and for what is none.
    """
    kept, count = {}, 0
    with suppress(OSError), path.open("rb") as file:
        starts = [*fragments_of(file)]
        for start, end in zip(starts, [*starts[1:], whole_bytes(file, 0)], strict=False):
            file.seek(start)
            count += sum(
                frames_in(body) for kind, body in boxes_in(file.read(end - start)) if kind == b"moof"
            )
            kept[count] = end
    return kept


def header_bytes(path: Path) -> int:
    """How many bytes of a growing file come before its first frames; 0 where there are none."""
    with path.open("rb") as file:
        return next(fragments_of(file), 0)


def frames_in(moof: bytes) -> int:
    """Frames of the video in a fragment, by its `moof`."""
    tracks = [dict(boxes_in(body)) for kind, body in boxes_in(moof) if kind == b"traf"]
    counts = [track[b"trun"][COUNT] for track in tracks if track[b"tfhd"][COUNT] == VIDEO_TRACK]
    return sum(int.from_bytes(count, "big") for count in counts)


def boxes_in(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of one box after the other."""
    while len(data) >= BOX_HEADER_BYTES:
        length = max(BOX_HEADER_BYTES, int.from_bytes(data[: TYPE_BYTES.start], "big"))
        yield data[TYPE_BYTES], data[BOX_HEADER_BYTES:length]
        data = data[length:]


def fragments_of(file: BinaryIO) -> Iterator[int]:
    """Where the complete fragments of a growing file begin."""
    at, end = 0, whole_bytes(file, 0)
    while at < end:
        file.seek(at)
        header = file.read(BOX_HEADER_BYTES)
        if header[TYPE_BYTES] == b"moof":
            yield at
        at += int.from_bytes(header[: TYPE_BYTES.start], "big")


def whole_bytes(file: BinaryIO, start: int) -> int:
    """Where the last complete box of a growing file ends, reading on from the box at `start`."""
    size = file.seek(0, os.SEEK_END)
    while start + BOX_HEADER_BYTES <= size:
        file.seek(start)
        header = file.read(BOX_HEADER_BYTES)
        length = int.from_bytes(header[: TYPE_BYTES.start], "big")
        if header[TYPE_BYTES] == PENDING or length < BOX_HEADER_BYTES or start + length > size:
            break
        start += length
    return start
