"""Weights that ComfyUI holds, in every state it may leave them in; run by the Python of each checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("shared_weights.py")
QUANTISED = Path(__file__).with_name("quantised_models.py")
LIMITS = {"loaded": 1e-6, "patched": 1e-5, "unpatched": 1e-6, "low-vram": 1e-5, "fp8": 0.05}
LIMITS |= {"whole": 0, "two-sets": 0}
LIMITS["fp8-for-a-gpu"] = 0.05
# ComfyUI also quantises what the last ones are multiplied with.
FORMATS = dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8"), 1e-4)
FORMATS |= {"int8_tensorwise": 0.01, "int8_rotated": 0.01, "asym_w4a8_int8": 0.01, "convrot_w4a4": 0.05}
WITH_A_LORA = 0.01


def states(checkout: Path, script: Path, *arguments: Path) -> dict[str, float]:
    """The differences that a script prints, by state."""
    python = checkout / ".venv" / "bin" / "python"
    command = [python if python.exists() else sys.executable, script, checkout, ROOT, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("STATE ")]
    return {state: float(difference) for _, state, difference in lines}


def test_flows_agree_in_every_state(checkout, small_models):
    found = states(checkout, SCRIPT, small_models)
    assert found.pop("a-lora-changes-it") > 0.05
    assert found.keys() == LIMITS.keys()
    assert all(found[state] <= LIMITS[state] for state in LIMITS), found


def test_a_quantised_model_makes_what_its_weights_say(checkout, small_models, tmp_path):
    """Each format of this ComfyUI, with a LoRA too; a format unknown here has no limit and fails."""
    if not (found := states(checkout, QUANTISED, small_models, tmp_path)):
        pytest.skip("this ComfyUI reads no quantised models")
    limits = FORMATS | {f"{name}-lora": WITH_A_LORA for name in FORMATS}
    assert all(difference <= limits[state] for state, difference in found.items()), found
