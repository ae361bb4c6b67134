"""What is done once for a model or a file is not done again by the next run."""

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from longlive_core.config import LONGLIVE_1_3B
from longlive_core.geometry import FRAME_RATE, TIME_STRIDE, latent_size
from longlive_core.model.causal_wan import LayerCalls
from longlive_core.pipeline import Pipeline, Request, load_pipeline
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.files import sha256_of

READ: list[str] | None = None  # paths, while they are watched


class Stopped(Exception):
    """A caller stopped the run."""


class Notes(Hook):
    """Keeps the sentences for the user; stops after the first step if asked."""

    def __init__(self, stops: bool = False):
        self.texts: list[str] = []
        self.stops = stops

    def on_note(self, text: str) -> None:
        self.texts.append(text.split(":")[0])

    def on_step(self, *_) -> None:
        if self.stops:
            raise Stopped


def note_file(event: str, arguments: tuple) -> None:
    if READ is not None and event == "open" and not isinstance(arguments[0], int):
        READ.append(os.fsdecode(arguments[0]))


sys.addaudithook(note_file)


@contextmanager
def read_files():
    """The paths of all files that Python opens."""
    global READ
    READ = paths = []
    try:
        yield paths
    finally:
        READ = None


def notes_of(pipeline: Pipeline, seed: int, stops: bool = False) -> list[str]:
    """Sentences of a run of one block."""
    notes = Notes(stops)
    plan = pipeline.plan(Request(PromptSchedule.single("a red circle"), 0.5, seed=seed))
    with suppress(Stopped):
        list(pipeline.run(plan, notes))
    return notes.texts


def test_a_second_run_reads_compiles_and_reports_nothing(monkeypatch) -> None:
    calls, compiler = [], torch.compile

    def counting(*args, **options):
        calls.append(args)
        return compiler(*args, **options | {"backend": "eager", "options": None})

    monkeypatch.setattr(torch, "compile", counting)
    torch._dynamo.reset()
    pipeline = load_pipeline("mini", speed="compiled")
    assert notes_of(pipeline, 1) == ["compiling the layers"] and len(calls) == len(LayerCalls._fields)
    torch._dynamo.utils.counters.clear()
    with read_files() as paths:
        assert notes_of(pipeline, 2) == []
    assert paths == [] and len(calls) == len(LayerCalls._fields)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("stops", [False, True], ids=["whole", "stopped"])
def test_a_failure_of_the_compiler_is_reported_once_and_never_lost(monkeypatch, stops) -> None:
    def compiler(*_, **__):
        def fails(*_):
            raise RuntimeError("Compiler: cl is not found.")

        return fails

    monkeypatch.setattr(torch, "compile", compiler)
    pipeline = load_pipeline("mini", speed="compiled")
    first, second, third = notes_of(pipeline, 1, stops), notes_of(pipeline, 2), notes_of(pipeline, 3)
    assert first + second == ["compiling the layers", "not compiled, layers run eagerly"]
    assert third == []


def test_a_digest_is_computed_once_for_a_file_and_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first = sha256_of(path)
    with read_files() as paths:
        assert sha256_of(path) == first
    assert paths == []
    path.write_bytes(b"two!")
    second = sha256_of(path)
    os.utime(path, ns=(1, 1))
    with read_files() as paths:
        assert first != second == sha256_of(path)
    assert paths == [str(path)]


def test_what_an_endless_run_takes_is_as_the_tooltip_of_seconds_says() -> None:
    nodes = (Path(__file__).parents[1] / "nodes" / "stream.py").read_text("utf-8")
    assert "else until you stop it; at 832x480 its latents take 100 MB a minute" in nodes
    pipeline = load_pipeline("mini")
    plan = pipeline.plan(Request(PromptSchedule.single("a red circle"), 0.5))
    (block,) = pipeline.blocks(plan)
    height, width = latent_size(832, 480)
    values = LONGLIVE_1_3B.model.latent_channels * height * width
    minute = values * block.latents.itemsize * FRAME_RATE / TIME_STRIDE * 60
    assert minute == pytest.approx(100e6, rel=0.05)
