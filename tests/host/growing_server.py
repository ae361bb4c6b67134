"""Run by a checkout's Python: a video is sent over HTTP while another thread writes it.

Arguments: the pack; "windows", if an open file is to be kept from being replaced as it is there.
Prints `OK name` for everything that was as it should be.
"""

import asyncio
import importlib
import io
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import aiohttp
import av
import numpy as np
from aiohttp import web

PACK = Path(sys.argv[1])
for name, place in (("pack", PACK), ("pack.nodes", PACK / "nodes")):  # without the nodes, that need a host
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(place)]
growing = importlib.import_module("pack.nodes.growing")
VideoWriter = importlib.import_module("pack.longlive_core.output.video").VideoWriter

SIZE, BLOCK = 64, 12


def block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (BLOCK, SIZE, SIZE, 3), dtype=np.uint8)


def frames_of(source) -> np.ndarray:
    with av.open(source) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def replace_as_windows_does(source, target, replace=os.replace) -> None:
    """An open file may get another name there, where its reader allows that, but no other in its place."""
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    if os.path.realpath(target) in opened:
        raise PermissionError(5, "Access is denied", str(target))
    replace(source, target)


if sys.argv[2:] == ["windows"]:
    os.replace = replace_as_windows_does


class Run:
    """What a run of the pack would say about its video."""

    def __init__(self, path: Path):
        self.path, self.is_done, self.answers, self.num_cuts = path, False, [], 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        index = len(self.answers)
        self.answers.append("open")
        is_late = "late" in request.query
        about = (lambda: self.path, lambda: self.is_done, is_late, lambda: self.num_cuts)
        response = await growing.send_video(request, *about)
        self.answers[index] = response.status
        return response


class Watcher:
    """A client that keeps what it has read so far."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self.data, self.task = bytearray(), asyncio.create_task(self._read(session, url))

    async def _read(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url, headers={"Range": "bytes=0-"}) as response:
            assert response.status == 200 and response.content_type == "video/mp4"
            async for part in response.content.iter_any():
                self.data += part

    async def has(self, count: int) -> bool:
        for _ in range(200):
            await asyncio.sleep(0.02)
            if self.data and len(frames_of(io.BytesIO(self.data))) == count:
                return True
        return False


async def while_it_grows(run: Run, session: aiohttp.ClientSession, url: str) -> None:
    first = Watcher(session, url)
    await asyncio.sleep(0.1)  # it comes before there is a file
    writer = VideoWriter(run.path, SIZE, SIZE)
    for index in range(3):
        writer.append(block(index))
        assert await first.has(BLOCK * (index + 1)), len(first.data)
    print("OK every block is there once it is appended")
    late, leaving = Watcher(session, url), Watcher(session, url)
    assert await late.has(3 * BLOCK) and await leaving.has(3 * BLOCK)
    leaving.task.cancel()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if run.answers.count("open") == 2:
            break
    assert run.answers.count("open") == 2, run.answers
    print("OK a watcher that leaves is forgotten, also where nothing is written")
    async with session.head(url) as response:
        assert response.status == 200 and response.headers["Accept-Ranges"] == "none"
    writer.append(block(3))
    await asyncio.to_thread(writer.close)
    assert b"moof" not in run.path.read_bytes(), "it is an ordinary file now"
    assert not first.task.done()
    run.path = Path(shutil.move(run.path, run.path.with_name("moved.mp4")))
    run.is_done = True
    await asyncio.wait_for(asyncio.gather(first.task, late.task), 5)
    whole = frames_of(str(run.path))
    assert len(whole) == 4 * BLOCK
    assert all(np.array_equal(frames_of(io.BytesIO(w.data)), whole) for w in (first, late))
    print("OK a file that is replaced and moved is still read to its end")


async def once_it_is_done(run: Run, session: aiohttp.ClientSession, url: str) -> None:
    data = run.path.read_bytes()
    async with session.get(url) as response:
        assert response.status == 200 and await response.read() == data
    for asked, part in (("0-99", data[:100]), ("1000-", data[1000:]), ("-7", data[-7:])):
        async with session.get(url, headers={"Range": f"bytes={asked}"}) as response:
            assert response.status == 206 and await response.read() == part
    async with session.get(url, headers={"Range": f"bytes={len(data)}-"}) as response:
        assert response.status == 416
    print("OK a finished file is served in ranges")
    run.path.unlink()
    async with session.get(url) as response:
        assert response.status == 404 and "is gone" in (await response.json())["error"]
    print("OK a file that is gone is said to be")


async def a_run_without_a_video(run: Run, session: aiohttp.ClientSession, url: str) -> None:
    run.is_done = False
    asking = asyncio.create_task(session.get(url))
    await asyncio.sleep(0.1)
    run.is_done = True
    async with await asking as response:
        assert response.status == 404
    print("OK a run that ends without a video is said to")


async def only_the_newest_blocks(run: Run, session: aiohttp.ClientSession, url: str) -> None:
    run.is_done, num_blocks = False, growing.LATE_FRAGMENTS + 10
    with VideoWriter(run.path, SIZE, SIZE) as writer:
        for index in range(num_blocks):
            writer.append(block(index))
        early = Watcher(session, url)
        assert await early.has(BLOCK * num_blocks)
        late = Watcher(session, f"{url}?late")
        await asyncio.sleep(0.2)
        writer.append(block(num_blocks))
        assert await early.has(BLOCK * (num_blocks + 1))
        run.is_done = True
        await asyncio.wait_for(asyncio.gather(early.task, late.task), 5)
    shown, whole = frames_of(io.BytesIO(late.data)), frames_of(io.BytesIO(early.data))
    assert len(shown) <= BLOCK * (growing.LATE_FRAGMENTS + 1) and len(late.data) < 0.7 * len(early.data)
    assert np.array_equal(shown[-4 * BLOCK :], whole[-4 * BLOCK :])
    print("OK who comes late gets the newest blocks and what follows")


async def a_file_that_is_cut(run: Run, session: aiohttp.ClientSession, url: str) -> None:
    run.is_done = False
    run.path.unlink()
    with VideoWriter(run.path, SIZE, SIZE) as writer:
        for index in range(6):
            writer.append(block(index))
        early = Watcher(session, url)
        assert await early.has(6 * BLOCK)
        run.num_cuts += 1
        writer.cut(4 * BLOCK)
        await asyncio.wait_for(early.task, 5)
        assert len(frames_of(io.BytesIO(early.data))) == 6 * BLOCK
        again = Watcher(session, url)
        assert await again.has(4 * BLOCK)
        writer.append(block(9))
        assert await again.has(5 * BLOCK)
    run.is_done = True
    await asyncio.wait_for(again.task, 5)
    print("OK who watches a file that is cut is let go, and begins again")


def how_windows_is_asked_for_a_file(folder: Path) -> None:
    """The calls of its own module, as CPython's multiprocessing makes them too."""
    path, platform, asked = folder / "asked.mp4", sys.platform, []
    path.write_bytes(b"video")

    def create_file(name, access, share, security, disposition, flags, template) -> int:
        asked.append((access, share, security, disposition, flags, template))
        return os.open(name, os.O_RDONLY)

    names = {"GENERIC_READ": "read", "OPEN_EXISTING": "existing", "NULL": 0, "CreateFile": create_file}
    growing._winapi = types.SimpleNamespace(**names)
    growing.msvcrt = types.SimpleNamespace(open_osfhandle=lambda handle, flags: handle)
    sys.platform = "win32"
    try:
        with growing.open_shared(path) as file:
            assert file.read() == b"video"
    finally:
        sys.platform = platform
    assert asked == [("read", 1 | 2 | 4, 0, "existing", 0, 0)]
    print("OK Windows is asked to let others write, move and delete")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, app = Run(Path(folder, "v.mp4")), web.Application()
        app.router.add_get("/video", run.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/video"
        async with aiohttp.ClientSession() as session:
            parts = (while_it_grows, once_it_is_done, a_run_without_a_video, only_the_newest_blocks)
            parts += (a_file_that_is_cut,)
            for part in parts:
                await part(run, session, url)
        assert "open" not in run.answers
        await runner.cleanup()
        how_windows_is_asked_for_a_file(Path(folder))


asyncio.run(main())
