"""A video that was broken off goes on: from an exact state, from recorded blocks, from a growing file."""

import os
import signal

import numpy as np
import pytest
import torch

from longlive_core.output.growing import frames_kept
from longlive_core.output.sound import Sound
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Chunk, Request, load_pipeline
from longlive_core.resume import Ending, Restart, Snapshots, VideoState
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.schedule import PromptSchedule

SCHEDULE = PromptSchedule.parse(
    "0 a red circle drifts right over navy\n"
    "1.5s blend 2s: a blue square drifts up over navy\n"
    "4s cut, seed 4: a green star circles over plum\n"
    "5s seed 9: a red circle drifts left over navy"
)
SECONDS = 6
SIZE = 64


@pytest.fixture(scope="module")
def whole() -> tuple[list[Chunk], list[VideoState], VideoState]:
    """All chunks of a video, states in the middle of it, and that at its end."""
    states: list[VideoState] = []
    chunks, ending = made(Snapshots(lambda block: block in (2, 4, 6), states.append))
    return chunks, states, ending


def made(
    snapshots: Snapshots | None = None, restart: Restart | None = None
) -> tuple[list[Chunk], VideoState]:
    pipeline, ending = load_pipeline(), Ending()
    plan = pipeline.plan(Request(SCHEDULE, SECONDS, seed=3))
    return list(pipeline.run(plan, ending=ending, snapshots=snapshots, restart=restart)), ending.state


def test_states_on_the_way_change_nothing(whole) -> None:
    plain, _ = made()
    for one, other in zip(plain, whole[0], strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.block.latents, other.block.latents)


@pytest.mark.parametrize("index", [None, 0, 1, 2])
@pytest.mark.parametrize("num_recorded", [0, 3, 7])
def test_the_rest_is_the_same_from_any_state_and_any_number_of_recorded_blocks(
    whole, index: int | None, num_recorded: int
) -> None:
    chunks, states, ending = whole
    state = None if index is None else states[index]
    recorded = {chunk.block.index: chunk.block.latents for chunk in chunks[:num_recorded]}
    rest, again = made(restart=Restart(recorded.get, state))
    begin = state.num_blocks if state else 0
    for one, other in zip(chunks[begin:], rest, strict=True):
        assert one.block.index == other.block.index
        assert torch.equal(one.frames, other.frames) and torch.equal(one.block.latents, other.block.latents)
    assert (again.num_frames, again.script.prompt) == (ending.num_frames, ending.script.prompt)
    assert torch.equal(again.rollout.tensors["recent"], ending.rollout.tensors["recent"])
    assert all(torch.equal(again.rollout.tensors[name], had) for name, had in ending.rollout.tensors.items())


def test_a_restarted_video_denoises_no_recorded_block(whole) -> None:
    calls = []
    pipeline = load_pipeline()
    plan = pipeline.plan(Request(SCHEDULE, SECONDS, seed=3))
    recorded = {chunk.block.index: chunk.block.latents for chunk in whole[0][:6]}
    hook = Hook()
    hook.on_step = lambda block, *_: calls.append(block)
    list(pipeline.run(plan, hook, restart=Restart(recorded.get)))
    assert set(calls) == {6, 7, 8}


def images(first: int, count: int) -> np.ndarray:
    base = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    return np.stack([np.roll(base, shift, 1) for shift in range(first, first + count)])


def write(path, sound: Sound | None, kept: int = 0, killed_at: int | None = None) -> list[int]:
    """Write a video in blocks; where it may be cut."""
    writer, places = VideoWriter(path, SIZE, SIZE, {"seed": 1}, sound=sound, kept=kept), []
    at, count = kept, 12 if kept else 9
    while at < 9 + 12 * 11:
        places += [at] if writer.can_be_cut else []
        writer.append(images(at, count))
        at, count = at + count, 12
        if at == killed_at:
            writer.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    writer.close()
    return places


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forked")
@pytest.mark.parametrize("has_sound", [False, True])
def test_a_file_that_a_kill_left_goes_on_byte_for_byte(tmp_path, has_sound: bool) -> None:
    wave = np.sin(np.arange(48_000 * 7) / 20, dtype=np.float32)[None, None]
    sound = Sound.of_waveform(wave, 48_000) if has_sound else None
    places = write(tmp_path / "whole.mp4", sound)
    assert places == [0, 45, 93]
    if not (process := os.fork()):
        write(tmp_path / "v.mp4", sound, killed_at=117)
    os.waitpid(process, 0)
    kept = frames_kept(tmp_path / "v.mp4")
    assert [*kept] == [9 + 12 * block for block in range(10)]
    assert kept[117] == os.path.getsize(tmp_path / "v.mp4")
    write(tmp_path / "v.mp4", sound, kept=93)
    assert (tmp_path / "v.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert frames_kept(tmp_path / "v.mp4") == {}  # it is an ordinary file now
