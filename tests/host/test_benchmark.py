"""`benchmarks.comfyui` at a tiny size: what it measures on a GPU, tried on the CPU in a real ComfyUI."""

import json

import pytest

from benchmarks import comfyui

CHOSEN = ("fp8, fp8 cache, tiny", "bf16, Wan")


@pytest.mark.xdist_group("page newest-page")  # not while that page plays videos: it takes both cores
def test_the_benchmark_runs_the_published_workflows(comfy, tmp_path, monkeypatch, capsys):
    pytest.importorskip("websocket", reason="HOST TESTS NOT RUN: pip install websocket-client")
    if not comfy.checkouts():
        pytest.skip(
            "HOST TESTS NOT RUN: no ComfyUI checkout; clone one to ~/comfy/ComfyUI or set COMFYUI_PATH"
        )
    monkeypatch.setattr(comfyui, "RUNS", 2)
    out, where = tmp_path / "comfyui.json", ["--comfyui", str(comfy.checkouts()[0])]
    comfyui.main(
        [*where, "--small", "--only", *CHOSEN, "--folder", str(tmp_path / "base"), "--out", str(out)]
    )
    settings, said = json.loads(out.read_text())["settings"], capsys.readouterr().out
    assert tuple(settings) == CHOSEN
    for name, figures in settings.items():
        assert len(figures["runs"]) == 2 and not any("error" in run for run in figures["runs"]), figures
        for run in figures["runs"]:
            assert 0 < run["stream_seconds"] <= run["seconds"] and run["fps_shown"] and run["fps_steady"]
        assert figures["allocator_warnings"] == 0 and figures["comfyui"]
        assert f"{name}: {figures['verdict']}; " in said
    first = settings[CHOSEN[0]]["runs"][0]["notes"]
    assert any("longlive-1.3b, fp8" in note for note in first) and any(
        "blue circle" in note for note in first
    )
