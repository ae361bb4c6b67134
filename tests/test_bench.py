"""The benchmarks run and say what they mean; no figure of theirs is judged here."""

import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import gpu
from longlive_core import cli
from longlive_core.bench import random_model
from longlive_core.bench.end_to_end import late_to_early
from longlive_core.bench.limits import block_flops, frames_per_second, least_seconds
from longlive_core.bench.phases import MEMORY, Phases
from longlive_core.config import LONGLIVE_1_3B, TINY_WAN, Preset, WanAutoencoderConfig
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.tiny import TinyAutoencoder

SCRIPTS = Path(gpu.__file__).parent
SCHEDULE = "0 a red circle drifts right over navy\n4s => it turns into a blue star"


def test_the_limit_is_the_arithmetic_of_the_paper_size() -> None:
    """141 TFLOP a block of 832x480; 60 frames a second in bf16 on an H200."""
    flops = block_flops(LONGLIVE_1_3B, 832, 480)
    assert flops.linears / 5e12 == pytest.approx(11.7, abs=0.05)
    assert flops.self_attention / 5e12 == pytest.approx(16.1, abs=0.05)
    assert flops.cross_attention / 5e12 == pytest.approx(0.4, abs=0.05)
    assert flops.total / 1e12 == pytest.approx(141, abs=1)
    seconds = least_seconds(flops, "NVIDIA H200")
    assert frames_per_second(LONGLIVE_1_3B, seconds) == pytest.approx(60, abs=1)
    assert least_seconds(flops, "NVIDIA H200", bits=8) < seconds
    assert least_seconds(flops, "GeForce 256") is None


def test_phases_are_of_every_block_and_the_recache_stands_apart() -> None:
    pipeline, phases = load_pipeline("mini"), Phases(torch.device("cpu"))
    plan = pipeline.plan(Request(PromptSchedule.parse(SCHEDULE), 6))
    made = list(pipeline.blocks(plan, phases))
    blocks = phases.seconds()
    assert len(blocks) == len(made) == 9
    assert [index for index, block in enumerate(blocks) if block["recache"]] == [6]
    assert all(block["denoise"] > block["commit"] > 0 for block in blocks)
    assert all(block["block"] == pytest.approx(block["denoise"] + block["commit"]) for block in blocks)


def test_late_to_early_compares_the_ends() -> None:
    assert late_to_early([1.0, 1.0, 5.0, 2.0, 2.0], 2) == 2.0
    assert late_to_early([1.0, 1.0, 1.0], 2) is None


def narrow_decoder(preset: Preset, name: str) -> torch.nn.Module:
    if name == "wan":
        return WanAutoencoder(WanAutoencoderConfig(width=8))
    return TinyAutoencoder(replace(TINY_WAN, widths=(16, 16, 8, 8)))


FIRST = ("ready", "latents", "frames", "first_frames")


def test_the_script_for_gpus_runs_here_at_a_small_size(tmp_path, monkeypatch, capsys) -> None:
    """Every case of benchmarks/gpu.py with two narrow layers and decoders, the compiler left out."""
    narrow = replace(LONGLIVE_1_3B.model, dim=96, ffn_dim=192, num_heads=2, text_dim=16, text_tokens=8)
    monkeypatch.setattr(gpu, "LONGLIVE_1_3B", replace(LONGLIVE_1_3B, model=narrow))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(random_model, "build_decoder", narrow_decoder)
    monkeypatch.setattr(gpu, "PLAIN_BLOCKS", 1)
    monkeypatch.setattr(gpu, "first_frames_figures", partial(gpu.first_frames_figures, repeats=1))
    monkeypatch.setattr(gpu, "SWITCH_EVERY_SECONDS", 3.5)
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--layers", "2", "--size", "16x16", "--seconds", "4", "--out", str(out)]
    gpu.main(options)
    cases = json.loads(out.read_text())["cases"]
    assert list(cases) == list(gpu.Bench(gpu.parse(options)).cases())
    assert not [case for case in cases.values() if "failed" in case], cases
    for name in ("dit plain", "dit compiled", "dit fp8-fast"):
        assert cases[name]["frames_per_second"] > 0 and cases[name]["recache_seconds"] > 0
        assert len(cases[name]["seconds_by_block"]) == cases[name]["blocks"] == 6
    for name in ("all tiny", "all wan"):
        assert cases[name]["first_frames_seconds"] < cases[name]["arrivals"][-1]
    for name in ("first tiny", "first wan"):
        ready, latents, frames, whole = (cases[name][f"{part}_seconds"] for part in FIRST)
        assert 0 < max(ready, latents, frames) < whole < 2 * (ready + latents + frames)
    for setting in gpu.SETTINGS:
        assert set(cases[f"memory {' '.join(setting)}"]) == {"planned_gib", *MEMORY, "commit"}
    assert cases["attention"]["sdpa"] > 0 and "needs an NVIDIA GPU" in cases["attention"]["cudnn-even"]
    assert Image.open(out.with_suffix(".png")).width == 1500
    assert "dit plain" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda file: file.stem)
def test_every_script_finds_what_it_imports(script) -> None:
    module = importlib.import_module(f"benchmarks.{script.stem}")
    assert hasattr(module, "main") == ("__main__" in script.read_text())


def test_the_bench_command(capsys) -> None:
    assert cli.main(["bench", "--seconds", "3", "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["rollout"]["blocks"] == 5 and figures["all"]["frames_per_second"] > 0


def test_a_video_of_one_block_has_no_steady_speed(capsys) -> None:
    assert cli.main(["bench", "--seconds", "0.5", "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["all"]
    assert figures["steady_frames_per_second"] is None and figures["frames_per_second"] > 0


def test_the_bench_command_prints_a_table(capsys) -> None:
    assert cli.main(["bench", "--seconds", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mini on cpu\n\ntransformer alone\n  blocks ") and "prompt to H.264 file" in said


def test_the_bench_of_attention_is_a_sentence(capsys) -> None:
    assert cli.main(["bench", "attention"]) == 2
    assert "bench attention was removed: --attention auto chooses by the GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--layers", "0"], ["--seconds", "0"], ["--model", "mini", "--device", "cuda"]]
)
def test_what_cannot_be_measured_is_one_sentence(wrong, capsys) -> None:
    assert cli.main(["bench", *wrong]) == 2
    assert "choose" in capsys.readouterr().err
