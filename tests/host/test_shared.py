"""Weights that ComfyUI holds, in every state it may leave them in; run by the Python of each checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("shared_weights.py")
LIMITS = {"loaded": 1e-6, "patched": 1e-5, "unpatched": 1e-6, "low-vram": 1e-5, "fp8": 0.05, "whole": 0}
LIMITS["fp8-for-a-gpu"] = 0.05


def test_flows_agree_in_every_state(checkout, small_models):
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, checkout, ROOT, small_models]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("STATE ")]
    found = {state: float(difference) for _, state, difference in lines}
    assert found.pop("a-lora-changes-it") > 0.05
    assert found.keys() == LIMITS.keys()
    assert all(found[state] <= LIMITS[state] for state in LIMITS), found
