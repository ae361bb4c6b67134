"""Converted files through our loader and the stock one: bit for bit checkpoint and LoRA."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("converted_files.py")
FP8_SINCE = (0, 27)  # before, ComfyUI rounds the linears outside the layers to fp8 too


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_latents_are_those_of_checkpoint_and_lora(precision, checkout, small_models, tmp_path):
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, checkout, ROOT, small_models, precision]
    command.append(tmp_path / "converted.safetensors")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=checkout, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("OURS ", "STOCK ")))
    assert found.pop("OURS") == "0.0"
    if precision != "fp8" or version_of(checkout) >= FP8_SINCE:
        assert found.pop("STOCK") == "0.0"


def version_of(checkout: Path) -> tuple[int, ...]:
    text = (checkout / "comfyui_version.py").read_text()
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", text).groups()))
