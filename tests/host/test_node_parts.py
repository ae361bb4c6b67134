"""Parts of the nodes that no graph of a test can bring about; run by the Python of each checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("node_parts.py")
CHECKS = 11


def test_parts_of_the_nodes(checkout):
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, checkout, ROOT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    assert [line[:2] for line in done.stdout.splitlines()].count("OK") == CHECKS, done.stdout
