"""Tuning under torchrun that is killed; the launcher for Ray; the benchmark of its memory and time."""

import json
import os
import runpy
import signal
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure, tuning
from benchmarks import tuning_kills as kills
from longlive_core.config import LONGLIVE_1_3B, WanAutoencoderConfig
from longlive_training.distil.parallel import ALL

ROOT = Path(__file__).parent.parent
STEPS = 6  # enough for two kills, each at most a tenth of a second after an iteration


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU")
def test_a_run_that_is_killed_is_the_undisturbed_one_bit_for_bit(tmp_path: Path, monkeypatch) -> None:
    """One of two ranks, which torchrun starts again; then everything, and the same command again."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(kills, "LATEST_SECONDS", 0.1)
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    kills.undisturbed(whole, ALL, STEPS)
    assert kills.disturbed(disturbed, ALL, STEPS, [kills.ONE, kills.EVERYTHING]) == 2
    assert kills.differing(whole, disturbed) == []
    assert len((disturbed / "log.jsonl").read_text().splitlines()) == STEPS


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU")
def test_ranks_end_when_torchrun_is_killed(tmp_path: Path, monkeypatch) -> None:
    """Else they would write into the folder of the run that goes on."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = kills.start(tmp_path, ALL, 10_000)
    kills.wait_for_a_line(tmp_path / "log.jsonl", process)
    ranks = kills.children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}/fd/0").exists() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)  # a process that has ended has no open files
    alive = [rank for rank in ranks if Path(f"/proc/{rank}/fd/0").exists()]
    for rank in alive:
        os.kill(rank, signal.SIGKILL)
    assert len(ranks) == 2 and not alive
    assert "torchrun is gone" in (tmp_path / "output.txt").read_text()


def test_ray_train_starts_the_command(monkeypatch) -> None:
    """With a stand-in for Ray that runs the work of one worker."""
    seen = {}

    class TorchTrainer:
        def __init__(self, work, train_loop_config, scaling_config, run_config):
            seen.update(scaling_config | run_config | run_config["failure_config"])
            self.fit = lambda: SimpleNamespace(return_value=work(train_loop_config))

    modules = {
        "ray": types.ModuleType("ray"),
        "ray.train": SimpleNamespace(
            FailureConfig=lambda failures: {"failures": failures},
            RunConfig=lambda **options: options,
            ScalingConfig=lambda **options: options,
        ),
        "ray.train.torch": SimpleNamespace(TorchTrainer=TorchTrainer),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    own = ["--workers", "2", "--cpu", "--storage", "/shared/ray", "--"]
    monkeypatch.setattr(sys, "argv", ["ray_train.py", *own, "--steps", "7"])
    monkeypatch.setattr("longlive_training.__main__.main", lambda: sys.exit(" ".join(sys.argv)))
    with pytest.raises(SystemExit, match=r"^longlive_training distil --steps 7$"):
        runpy.run_path(str(ROOT / "docs" / "ray_train.py"), run_name="__main__")
    assert (seen["num_workers"], seen["use_gpu"], seen["failures"]) == (2, False, 5)
    assert len((ROOT / "docs" / "ray_train.py").read_text().splitlines()) <= 40


def test_the_benchmark_of_tuning_runs_at_a_small_size(tmp_path: Path, monkeypatch) -> None:
    """Two layers, a quarter of the width, a teacher that is wider; a token a latent frame."""
    narrow = replace(LONGLIVE_1_3B.model, dim=384, ffn_dim=2240, num_heads=3)
    monkeypatch.setattr(tuning, "LONGLIVE_1_3B", replace(LONGLIVE_1_3B, model=narrow))
    monkeypatch.setitem(tuning.TEACHERS, "14b", replace(narrow, dim=512, num_heads=4))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(tuning, "WanAutoencoderConfig", lambda: WanAutoencoderConfig(width=8))
    tuning.main(["--device", "cpu", "--layers", "2", "--size", "16x16", "--critic-parts", "1"])
    found = json.loads((tmp_path / "tuning.json").read_text())
    assert found["layers"] == 2 and found["peak_gib"] is None and found["planned_gib"] > 0
    assert min(found[f"{part}_seconds"] for part in ("student_part", "critic_part", "updates")) > 0
