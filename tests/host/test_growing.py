"""A video watched over HTTP while it is written; run by the Python of each checkout, which has aiohttp."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("growing_server.py")
CHECKS = 9
COUNT = """
import av, sys
with av.open(sys.argv[1]) as video:
    print(sum(1 for _ in video.decode(video=0)))
"""


@pytest.mark.parametrize("system", ["", "windows"])
def test_a_video_can_be_watched_while_it_is_made(checkout, system):
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, ROOT, *system.split()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [line[:2] for line in done.stdout.splitlines()] == ["OK"] * CHECKS, done.stdout


def frames_in(file: Path) -> int:
    """How many frames another process decodes from a file."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(file)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def frames_of_blocks(blocks: int) -> int:
    return 12 * blocks - 3


@pytest.mark.newest
def test_what_a_killed_server_made_is_there(checkout, comfy, tmp_path):
    """After 1, 2 and 10 blocks the file decodes to whole blocks, and after kill -9 to all that were told."""
    server = comfy.Server(checkout, tmp_path / "base", "http://127.0.0.1:9")
    try:
        stream = {"width": 64, "height": 64, "seconds": 60, "seed": 3, "pace": "real time"}
        links = {"model": ["1", 0], "schedule": ["2", 0], "vae": ["1", 2]}
        prompts = {"clip": ["1", 1], "prompts": "a red circle drifts right over navy"}
        nodes = {"LongLiveLoadMini": {}, "LongLivePromptSchedule": prompts, "LongLiveStream": links | stream}
        graph = enumerate(nodes.items(), 1)
        graph = {str(n): {"class_type": name, "inputs": inputs} for n, (name, inputs) in graph}
        graph["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}}
        server.post("/prompt", {"prompt": graph})
        for blocks in (1, 2, 10):
            told = until_made(server, frames_of_blocks(blocks))
            (file,) = (server.base / "output" / "longlive").glob("*.mp4")
            frames = frames_in(file)
            assert frames >= told and (frames + 3) % 12 == 0, (frames, told)
        told = until_made(server, frames_of_blocks(11))
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
    frames = frames_in(file)
    assert told <= frames <= told + 24 and (frames + 3) % 12 == 0, (frames, told)


def until_made(server, frames: int) -> int:
    """The frames in the file, as the run tells, once there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runs = server.get("/longlive/runs")["runs"]
        if runs and runs[0]["num_frames"] >= frames:
            return runs[0]["num_frames"]
        time.sleep(0.05)
    raise AssertionError(f"there never were {frames} frames: {runs}")
