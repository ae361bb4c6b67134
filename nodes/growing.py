"""Serve a video over HTTP while it is written, and as an ordinary file afterwards; imports no nodes."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from ..longlive_core.output.growing import fragments_of, whole_bytes

if sys.platform == "win32":
    import _winapi
    import msvcrt

CHUNK_BYTES = 256 * 1024
POLL_SECONDS = 0.05
LATE_FRAGMENTS = 16  # 4 s of a frame-wise model, 12 s of others; a key frame comes every 3 s
SHARE_READ, SHARE_WRITE, SHARE_DELETE = 1, 2, 4  # what others may do on Windows to a file that is open
HEADERS = {"Content-Type": "video/mp4", "Cache-Control": "no-store"}


async def send_video(
    request: web.Request,
    path_of: Callable[[], Path],
    is_done: Callable[[], bool],
    is_late: bool = False,
    num_cuts: Callable[[], int] = lambda: 0,
) -> web.StreamResponse:
    """Answer with the whole video, also while it grows; then, if `is_late`, with its newest seconds.

    `path_of` returns the current path of the file, which may be moved or replaced while it is read. `is_done`
    turns true once the file is complete and in its place: from then on byte ranges are served too, and the
    answer is 404 if there is no file. Where `num_cuts` rises, before a part is cut off, the answer ends.
    """
    if is_done():
        return finished(path_of())
    begun = num_cuts()
    response = web.StreamResponse(headers=HEADERS | {"Accept-Ranges": "none"})
    try:
        with await opened(path_of, is_done) as file:
            await response.prepare(request)
            if request.method != "HEAD":
                start = await skip(file, response) if is_late else 0
                await follow(file, request, response, is_done, start, lambda: num_cuts() != begun)
    except (FileNotFoundError, PermissionError):
        return gone()
    except ConnectionResetError:  # the watcher has left
        pass
    return response


def finished(path: Path) -> web.StreamResponse:
    """A complete file, or a range of its bytes."""
    return web.FileResponse(path, headers=HEADERS) if path.is_file() else gone()


def gone() -> web.Response:
    return web.json_response({"error": "the video of this run is gone; run it again"}, status=404)


async def opened(path_of: Callable[[], Path], is_done: Callable[[], bool]) -> BinaryIO:
    """Open the file once it exists; FileNotFoundError or PermissionError when the run ends without one."""
    while True:
        was_done = is_done()
        try:
            return open_shared(path_of())
        except (FileNotFoundError, PermissionError):  # not yet there, or just being moved
            if was_done:
                raise
        await asyncio.sleep(POLL_SECONDS)


def open_shared(path: Path) -> BinaryIO:
    """Open a file for reading that others may still write, rename, replace and delete.

    On Windows this takes a flag, without which the run that writes the file could not finish it.
    """
    if sys.platform != "win32":
        return path.open("rb")
    share = SHARE_READ | SHARE_WRITE | SHARE_DELETE
    read, existing, null = _winapi.GENERIC_READ, _winapi.OPEN_EXISTING, _winapi.NULL
    handle = _winapi.CreateFile(str(path), read, share, null, existing, 0, null)
    return os.fdopen(msvcrt.open_osfhandle(handle, os.O_RDONLY), "rb")


async def skip(file: BinaryIO, response: web.StreamResponse) -> int:
    """Send what comes before the first fragment; returns where the newest fragments begin.

    They hold a key frame: a player shows nothing before one.
    """
    fragments = list(fragments_of(file))
    if len(fragments) <= LATE_FRAGMENTS:
        return 0
    file.seek(0)
    await response.write(file.read(fragments[0]))
    return fragments[-LATE_FRAGMENTS]


async def follow(
    file: BinaryIO,
    request: web.Request,
    response: web.StreamResponse,
    is_done: Callable[[], bool],
    sent: int,
    is_cut: Callable[[], bool],
) -> None:
    """Send every box of a growing file as soon as it is whole; ConnectionResetError when the client has left.

    A file that is replaced stays open here, complete and fragmented. It ends where a part of it is cut off.
    """
    was_done = False
    while not was_done and not is_cut():
        was_done = is_done()
        end = file.seek(0, os.SEEK_END) if was_done else whole_bytes(file, sent)
        while sent < end:
            file.seek(sent)
            chunk = file.read(min(CHUNK_BYTES, end - sent))
            if is_cut():  # it may be of the time after
                break
            await response.write(chunk)
            sent += len(chunk)
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError
        if not was_done:
            await asyncio.sleep(POLL_SECONDS)
    await response.write_eof()
