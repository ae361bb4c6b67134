"""A run is taken back: what came before stays bit for bit, and the frozen schedule makes all of it again."""

import time
from collections.abc import Callable
from threading import Thread

import pytest
import torch

from longlive_core.pipeline import Chunk, Pipeline, Plan, Request, load_pipeline
from longlive_core.resume import Rewind
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.inbox import Ticket
from longlive_core.steering.live import Back, LiveControl

WRITTEN = PromptSchedule.parse(
    "0 a red circle drifts right over navy\n"
    "1.5s blend 2s: a blue square drifts up over navy\n"
    "4s cut, seed 4: a green star circles over plum"
)
SIZE, SEED, SECONDS = 32, 3, 5.25  # seven blocks, and a part of the eighth
STAR = "it turns into a white star"
Doing = tuple[int, Callable[[LiveControl], Back | Ticket | None]]  # once the block is out


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline()


def request(schedule: PromptSchedule = WRITTEN, seconds: float = SECONDS, **more) -> Request:
    return Request(schedule, seconds, SEED, SIZE, SIZE, steps=2, **more)


def wait_for(is_met: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < deadline, "the wait is over and it has not come"
        time.sleep(0.002)


def settled(back: Back | Ticket | None) -> None:
    """Wait until a prompt is encoded."""
    ticket = back.ticket if isinstance(back, Back) else back
    wait_for(lambda: ticket is None or ticket.state != "encoding")


@torch.inference_mode()
def film(
    pipeline: Pipeline, plan: Plan, *doings: Doing, rewind: Rewind | None = None, hook: Hook | None = None
) -> tuple[list[Chunk], LiveControl]:
    """The chunks that stay of a run, in which things are done, and its control."""
    control, chunks, left = LiveControl(), [], [*doings]
    for chunk in pipeline.run(plan, hook, live=control, rewind=rewind or Rewind()):
        assert chunk.begins in (0, *(had.begins + len(had.frames) for had in chunks))
        chunks = [*(had for had in chunks if had.begins < chunk.begins), chunk]
        if left and left[0][0] == chunk.block.index:
            settled(left.pop(0)[1](control))
    assert not left
    control.finish()
    return chunks, control


@torch.inference_mode()
def plain(pipeline: Pipeline, schedule: PromptSchedule = WRITTEN, seconds: float = SECONDS, **more) -> list:
    return [*pipeline.run(pipeline.plan(request(schedule, seconds, **more)))]


def check_same(ours: list[Chunk], others: list[Chunk], first: int = 0, end: int | None = None) -> None:
    assert end or len(ours) == len(others)
    for one, other in zip(ours[first:end], others[first:end], strict=True):
        assert one.block.index == other.block.index and one.block.opens_scene == other.block.opens_scene
        assert torch.equal(one.block.latents, other.block.latents) and torch.equal(one.frames, other.frames)


@pytest.fixture(scope="module")
def base(pipeline) -> list[Chunk]:
    return plain(pipeline)


def to(block: int, **more) -> Callable[[LiveControl], Back]:
    return lambda control: control.take_back(block, **more)


BACKS = {
    "another prompt": [(5, to(3, prompt=STAR))],
    "another seed": [(6, to(5, seed=9))],
    "both, in the middle of a blend": [(6, to(4, prompt=STAR, policy="blend", blend_seconds=1.5, seed=9))],
    "another seed, in the middle of a blend": [(5, to(4, seed=9))],
    "another seed after a blend": [(5, to(5, seed=9))],
    "another seed for a cue": [(3, to(2, seed=9))],
    "a cut, where a cue is": [(7, to(6, prompt=STAR, policy="cut"))],
    "to the beginning": [(4, to(0, prompt=STAR))],
    "another first seed": [(3, to(0, seed=9))],
    "at the last block": [(7, to(7, prompt=STAR, policy="keep"))],
    "twice": [(6, to(4, prompt=STAR)), (5, to(2, seed=9))],
    "twice, further on": [(3, to(2, seed=9)), (6, to(5, prompt=STAR))],
    "twice to the same block": [(5, to(3, prompt=STAR, seed=9)), (4, to(3, seed=8))],
}


@pytest.mark.parametrize(
    ("case", "has_states"), [*((case, True) for case in BACKS), ("twice", False), ("another prompt", False)]
)
def test_blocks_before_stay_and_the_frozen_schedule_makes_the_rest(pipeline, base, case, has_states) -> None:
    doings = BACKS[case]
    rewind = Rewind(lambda: has_states)
    made, control = film(pipeline, pipeline.plan(request()), *doings, rewind=rewind)
    assert bool(rewind.states) == has_states
    block = min(back.block for back in control.backs)
    assert len(control.backs) == len(doings)
    check_same(made, base, end=block)
    assert not torch.equal(made[block].block.latents, base[block].block.latents)
    assert sum(len(chunk.frames) for chunk in made) == SECONDS * 16 == control.seconds * 16
    assert [*rewind.blocks] == [chunk.block.index for chunk in made] == [*range(8)]
    frozen = control.schedule()
    check_same(made, plain(pipeline, frozen))
    assert PromptSchedule.parse(frozen.to_text()) == frozen and control.was_steered


def test_without_a_prompt_or_a_seed_the_schedule_is_played_again(pipeline, base) -> None:
    made, control = film(
        pipeline, pipeline.plan(request()), (1, lambda control: control.send(STAR)), (5, to(2))
    )
    check_same(made, base)
    assert not control.was_steered and control.schedule() == WRITTEN
    assert len(control.backs) == 1


@pytest.mark.parametrize("block", [0, 4])
def test_a_run_that_is_paused_is_taken_back_at_once_and_stays_paused(pipeline, base, block) -> None:
    rewind, states = Rewind(), []

    def pause(control: LiveControl) -> None:
        control.pause()
        control.take_back(block, prompt=STAR)
        Thread(target=lambda: (wait_for(lambda: control.backs), control.resume())).start()

    class Watching(Hook):
        def on_step(self, index: int, *_) -> None:
            states.append((index, control_of[0].state))

    control_of = [LiveControl()]
    chunks = []
    with torch.inference_mode():
        plan = pipeline.plan(request())
        for chunk in pipeline.run(plan, Watching(), live=control_of[0], rewind=rewind):
            chunks = [*(had for had in chunks if had.begins < chunk.begins), chunk]
            if chunk.block.index == 5 and not control_of[0].backs:
                pause(control_of[0])
    check_same(chunks, base, end=block)
    check_same(chunks, plain(pipeline, control_of[0].schedule()))
    assert {state for _, state in states} == {"running"}, "nothing is made while it is paused"
