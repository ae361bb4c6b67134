"""What tuning makes, by ComfyUI's own LoRA loader: every tensor of it finds its weight."""

import subprocess
import sys
from pathlib import Path

import pytest

from longlive_training.distil.export import convert

SCRIPT = Path(__file__).with_name("tuned_lora.py")


@pytest.mark.newest
def test_comfyui_loads_a_converted_lora_by_its_names(checkout, small_models, tmp_path):
    lora, base = tmp_path / "mine.safetensors", small_models / "diffusion_models" / "small_wan.safetensors"
    convert(small_models / "loras" / "longlive_lora.pt", lora)
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, SCRIPT, checkout, base, lora]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    assert "not loaded" not in done.stderr
    lines = map(str.split, done.stdout.splitlines())
    found = {
        words[0]: float(words[1]) for words in lines if words[:1] in (["CHANGED"], ["TENSORS"], ["ERROR"])
    }
    assert 0 < 2 * found["CHANGED"] == found["TENSORS"] and found["ERROR"] < 1e-2
