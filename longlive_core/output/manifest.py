"""A manifest: JSON lines on the videos of a folder, each appended completely or not at all."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from .growing import open_locked
from .video import count_frames


class Manifest(AbstractContextManager):
    """The manifest at `path`, for one run at a time; BlockingIOError while another one has it.

    Lines that are no JSON objects with a `file`, as a crash may leave one, count for nothing.
    """

    def __init__(self, path: Path):
        self._path = path
        path.touch()
        self._file = open_locked(path)
        self._newest: dict[str, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, RecursionError, KeyError, TypeError):
                record = json.loads(line)
                self._newest[record["file"]] = record

    def is_finished(self, digest: str, outputs: Sequence[Path]) -> bool:
        """Whether the newest line on a video, the first output, has this hash, and all files are there."""
        video = outputs[0]
        record = self._newest.get(video.name, {})
        if record.get("hash") != digest or record.get("error") or not all(map(os.path.isfile, outputs)):
            return False
        return count_frames(video) == record.get("frames")

    def add(self, record: dict[str, Any]) -> None:
        """Append a line and wait until it is on disk. On OSError the file is as it was."""
        end = self._file.seek(0, os.SEEK_END)
        text = json.dumps(record, ensure_ascii=False)
        line = text.encode(errors="backslashreplace") + b"\n"  # half a character becomes JSON's \ud800
        if end and not self._path.read_bytes().endswith(b"\n"):
            line = b"\n" + line  # after what a crash left
        try:
            if self._file.write(line) < len(line):
                raise OSError("no room for another line")
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()
