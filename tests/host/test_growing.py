"""A video watched over HTTP while it is written; run by the Python of each checkout, which has aiohttp."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("growing_server.py")
CHECKS = 6


def test_a_video_can_be_watched_while_it_is_made(checkout):
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, ROOT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [line[:2] for line in done.stdout.splitlines()] == ["OK"] * CHECKS, done.stdout
