"""The benchmarks run and say what they mean; no figure of theirs is judged here."""

import importlib
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import comfyui, gpu
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


def clip(shown: int, steady: float, **more) -> dict:
    return {"seconds": 5.0, "fps_shown": shown, "fps_steady": steady, **more}


def setting_of(*runs: dict, warnings: int = 0) -> dict:
    return {"runs": list(runs), "allocator_warnings": warnings, "peak_gib": 6.4}


WHOLE = setting_of(clip(9, 38.0), clip(36, 38.0))
GREEN = setting_of(clip(9, 35.0), clip(33, 35.0))
SLOW_CLIP, SLOW = setting_of(clip(28, 38.0)), setting_of(clip(30, 31.0))
FAILED = setting_of(clip(30, 38.0), clip(0, 0.0, error="not enough memory"))


@pytest.mark.parametrize(
    ("measured", "unconstrained", "wrong"),
    [
        (WHOLE, None, []),
        (GREEN, WHOLE, []),
        (SLOW_CLIP, None, ["the clip ran at 0.74 of the steady speed"]),
        (SLOW, WHOLE, ["0.82 of the speed with all of the memory"]),
        (FAILED, WHOLE, ["run 2 failed: not enough memory"]),
        (GREEN, FAILED, []),
        (setting_of(clip(0, 38.0)), None, ["no speed was shown"]),
        (setting_of(clip(38, 38.0), warnings=24), None, ["24 warnings of the allocator"]),
    ],
)
def test_a_setting_in_comfyui_is_red_for_a_reason(measured, unconstrained, wrong) -> None:
    judged = comfyui.judged(measured, unconstrained)
    assert (judged["verdict"], judged["wrong"]) == ("red" if wrong else "green", wrong)
    assert comfyui.line("fp8", judged).split("\n    ")[1:] == wrong


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], list(comfyui.SETTINGS)),
        (["--free"], list(comfyui.SETTINGS)),
        (["--free", "6.5"], ["fp8, tiny", "fp8, fp8 cache, tiny"]),
        (["--free", "4", "--only", "bf16, Wan"], ["bf16, Wan"]),
    ],
)
def test_memory_that_is_left_chooses_what_should_run_in_it(options, chosen) -> None:
    assert list(comfyui.chosen_settings(comfyui.parse(["--comfyui", "x", *options]))) == chosen


def test_nothing_is_promised_in_too_little_memory() -> None:
    with pytest.raises(SystemExit, match=r"nothing runs in 2 GiB; choose at least 5"):
        comfyui.chosen_settings(comfyui.parse(["--comfyui", "x", "--free", "2"]))


def test_with_free_every_setting_is_measured_with_all_and_with_its_own_memory() -> None:
    class Bench:
        def measure(self, setting, free_gib):
            return WHOLE | {"free_gib": free_gib}

    measured = dict(comfyui.run(Bench(), comfyui.SETTINGS, "goal"))
    goals = {f"{name}, {s.goal:g} GiB free": s.goal for name, s in comfyui.SETTINGS.items()}
    assert {name: figures["free_gib"] for name, figures in measured.items()} == goals | dict.fromkeys(
        comfyui.SETTINGS
    )


def test_all_but_so_much_of_a_gpu_is_held_and_the_peak_of_others_is_seen(monkeypatch) -> None:
    """A GPU of 24 GiB, made of numbers."""
    free = [24 * comfyui.GIB]

    class Held:
        def __init__(self, size: int, **_):
            self.size = size
            free[0] -= size

        def __del__(self):
            free[0] += self.size

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 24 * comfyui.GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    memory = comfyui.Memory("cuda")
    monkeypatch.setattr(torch, "empty", Held)
    with memory.held_but(6.5), memory.watched() as peak:
        assert free[0] == 6.5 * comfyui.GIB
        other, deadline = Held(4 * comfyui.GIB), time.monotonic() + 20
        while memory.lowest > free[0] and time.monotonic() < deadline:
            time.sleep(0.005)
        del other
    assert peak["peak_gib"] == 4 and free[0] == 24 * comfyui.GIB


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("CUDAMallocAsyncAllocator.cpp:301 Warning: Attempting uncaptured free of a captured allocation", 1),
        (
            "Using async weight offloading with 2 streams\nDevice: cuda:0 NVIDIA H200 : cudaMallocAsync",
            0,
        ),
        ("UserWarning: record_stream is called on a tensor whose stream is already that one", 1),
    ],
)
def test_warnings_of_an_allocator_are_counted_in_a_log(text, count) -> None:
    assert len(comfyui.WARNING.findall(text)) == count
