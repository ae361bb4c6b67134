"""A run is taken back: what came before stays bit for bit, and the frozen schedule makes all of it again."""

import json
import resource
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch

from longlive_core.cli import main
from longlive_core.journal import RECORDS, Journal, folder_of
from longlive_core.output.sound import Sound
from longlive_core.output.video import VideoWriter, read_frames, read_settings
from longlive_core.pipeline import UNTIL_STOPPED, Chunk, Pipeline, Plan, Request, load_pipeline
from longlive_core.resume import Rewind, Snapshots
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.cue import ScheduleError
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.source import ReadAgain, Source
from longlive_core.steering.inbox import Ticket
from longlive_core.steering.live import Back, LiveControl, LiveError

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


def still() -> float:
    """A clock by which no state costs anything."""
    return 0.0


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
    "another seed after a blend": [(6, to(5, seed=9))],
    "another seed for a cue": [(3, to(2, seed=9))],
    "a cut, where a cue is": [(7, to(6, prompt=STAR, policy="cut"))],
    "to the beginning": [(4, to(0, prompt=STAR))],
    "another first seed": [(3, to(0, seed=9))],
    "twice": [(6, to(4, prompt=STAR)), (5, to(2, seed=9))],
    "twice, further on": [(3, to(2, seed=9)), (6, to(5, prompt=STAR))],
    "twice to the same block": [(5, to(3, prompt=STAR, seed=9)), (4, to(3, seed=8))],
}


@pytest.mark.parametrize(
    ("case", "has_states"), [*((case, True) for case in BACKS), ("twice", False), ("another prompt", False)]
)
def test_blocks_before_stay_and_the_frozen_schedule_makes_the_rest(pipeline, base, case, has_states) -> None:
    doings = BACKS[case]
    rewind = Rewind(lambda: has_states, clock=still)
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


def test_the_last_block_can_be_taken_back_until_the_run_has_ended(pipeline, base) -> None:
    class AtLast(Hook):
        def on_commit(self, block: int, *_) -> None:
            if block == 7 and not control.backs:
                settled(control.take_back(7, prompt=STAR, policy="keep"))

    control, chunks = LiveControl(), []
    with torch.inference_mode():
        for chunk in pipeline.run(pipeline.plan(request()), AtLast(), control, rewind=Rewind(clock=still)):
            chunks = [*(had for had in chunks if had.begins < chunk.begins), chunk]
    check_same(chunks, base, end=7)
    check_same(chunks, plain(pipeline, control.schedule()))
    with pytest.raises(LiveError, match="at its end"):
        control.take_back(3)


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


def made_of(kind: str, pipeline: Pipeline, base: list[Chunk]) -> dict:
    """Keywords of a request whose video is made of more than text."""
    frames = torch.rand(96, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    if kind == "source":
        return {"source": Source(ReadAgain(lambda: iter(frames.split(5))), length=96)}
    if kind == "image":
        return {"given": pipeline.encode(frames[:1].expand(9, -1, -1, -1))}
    past = torch.cat([chunk.block.latents for chunk in base[:2]], dim=2)
    return {"past": past, "cut_off": 5} if kind == "past" else {"positions": "endless"}


@pytest.mark.parametrize("kind", ["source", "image", "past", "endless"])
@pytest.mark.parametrize("block", [0, 4])
def test_whatever_a_video_is_made_of_it_can_be_taken_back(pipeline, base, kind, block) -> None:
    schedule, more = (
        PromptSchedule.parse("0 a red circle drifts right over navy"),
        made_of(kind, pipeline, base),
    )
    rewind = Rewind(lambda: block != 0, clock=still)
    plan = pipeline.plan(request(schedule, **more))
    newest = plan.blocks[-2]
    made, control = film(pipeline, plan, (newest, to(block, prompt=STAR, seed=9)), rewind=rewind)
    before = plain(pipeline, schedule, **more)
    check_same(made, before, end=block + len(before) - len(plan.blocks))
    check_same(made, plain(pipeline, control.schedule(), **more))


def test_of_a_video_until_stopped_the_rest_is_cut_off(pipeline) -> None:
    stop = (4, lambda control: control.stop())
    plan = pipeline.plan(request(WRITTEN, UNTIL_STOPPED))
    made, control = film(pipeline, plan, (6, to(2, prompt=STAR)), stop)
    assert [chunk.block.index for chunk in made][:5] == [0, 1, 2, 3, 4] and len(made) < 7
    check_same(made, plain(pipeline, control.schedule(), control.seconds, positions="endless"))


def test_what_cannot_be_done_is_refused_with_a_sentence(pipeline) -> None:
    refused = []

    def ask(control: LiveControl) -> None:
        for error, arguments in REFUSED:
            with pytest.raises(error) as refusal:
                control.take_back(**arguments)
            refused.append(str(refusal.value))
        control.stop()
        with pytest.raises(LiveError, match="the run is stopping"):
            control.take_back(0)

    _, control = film(pipeline, pipeline.plan(request()), (2, ask))
    assert all(sentence.count(". ") == 0 for sentence in refused) and len(refused) == len(REFUSED)
    with pytest.raises(LiveError, match="has ended"):
        control.take_back(0)


REFUSED = [
    *((ScheduleError, place) for place in ({}, {"block": 1, "seconds": 1.0}, {"block": -1}, {"block": True})),
    *((ScheduleError, {"seconds": seconds}) for seconds in (-1.0, float("nan"), "1")),
    *((LiveError, place) for place in ({"block": 3}, {"seconds": 4.0})),
    (ScheduleError, {"block": 1, "prompt": " "}),
    (ScheduleError, {"block": 1, "policy": "cut"}),
    (ScheduleError, {"block": 1, "seed": -4}),
]


@pytest.mark.parametrize("has_rewind", [True, False])
def test_a_run_that_keeps_nothing_or_reads_footage_once_cannot_be_taken_back(pipeline, has_rewind) -> None:
    control, once = LiveControl(), Source(iter(torch.rand(96, SIZE, SIZE, 3).split(12)))
    plan = pipeline.plan(request(**({"source": once} if has_rewind else {})))
    sentence = "footage can be read only once" if has_rewind else "nothing is kept to go back to"
    with torch.inference_mode():
        next(pipeline.run(plan, live=control, rewind=Rewind() if has_rewind else None))
    with pytest.raises(LiveError, match=sentence):
        control.take_back(0)


def test_a_prompt_that_cannot_be_encoded_takes_nothing_back(pipeline, base) -> None:
    def broken(prompt: str) -> torch.Tensor:
        if prompt == STAR:
            raise RuntimeError("no such word")
        return pipeline.encode_text(prompt)

    other = replace(pipeline, encode_text=broken, encode_ahead=None)
    made, control = film(other, pipeline.plan(request()), (4, to(1, prompt=STAR)))
    check_same(made, base)
    assert not control.backs and not control.was_steered


def test_states_keep_to_their_budget_and_the_newest_stays(pipeline) -> None:
    rewind = Rewind(clock=still)
    film(pipeline, pipeline.plan(request()), rewind=rewind)
    sizes = [state.num_bytes for state in rewind.states]
    assert [state.num_blocks for state in rewind.states] == [*range(1, len(sizes) + 1)]
    few = Rewind(budget=sum(sizes[-2:]), clock=still)
    film(pipeline, pipeline.plan(request()), rewind=few)
    assert [state.num_blocks for state in few.states] == [state.num_blocks for state in rewind.states][-2:]
    none = Rewind(budget=0, clock=still)
    film(pipeline, pipeline.plan(request()), rewind=none)
    assert not none.states and len(none.blocks) == 8


def test_a_state_is_taken_where_that_costs_little_of_the_time(pipeline) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    rewind = Rewind(clock=clock)  # a second a look: taking a state takes one, and a block as many
    film(pipeline, pipeline.plan(request()), rewind=rewind)
    assert len(rewind.states) == 1


def test_the_next_run_takes_over_the_blocks_that_are_the_same(pipeline, base) -> None:
    first, calls = Rewind(), []
    film(pipeline, pipeline.plan(request()), rewind=first)
    changed = PromptSchedule((*WRITTEN.cues[:-1], replace(WRITTEN.cues[-1], seed=5)))
    second, hook = Rewind(), Hook()
    hook.on_step = lambda block, *_: calls.append(block)
    second.take_over(first, 6)
    control = LiveControl()
    with torch.inference_mode():
        plan = pipeline.plan(request(changed))
        made = [*pipeline.run(plan, hook, control, restart=second.first_restart(), rewind=second)]
    assert {*calls} == {6, 7}
    check_same(made, base, end=6)
    check_same(made, plain(pipeline, changed))
    assert control.schedule() == changed and [*second.blocks] == [*range(8)]


@torch.inference_mode()
def test_the_latents_of_an_endless_run_are_on_disk_and_take_no_memory(pipeline, tmp_path) -> None:
    control, made = LiveControl(), {}
    plan = pipeline.plan(request(WRITTEN, UNTIL_STOPPED))
    doings = {32: to(28, prompt=STAR), 40: lambda control: control.stop()}
    with Journal(tmp_path / "v.mp4", {}) as journal:
        back = lambda _: journal.cut(control.backs[-1].block)  # noqa: E731
        for chunk in pipeline.run(plan, live=control, rewind=Rewind(on_back=back, disk=journal)):
            journal.add(chunk.block)
            made[chunk.block.index] = weakref.ref(chunk.block.latents)
            if doing := doings.pop(chunk.block.index, None):
                settled(doing(control))
        assert not doings and len(control.backs) == 1
        assert torch.equal(journal.latents(40), chunk.block.latents)
    control.finish()
    again = plain(pipeline, control.schedule(), control.seconds, positions="endless")
    assert torch.equal(again[-1].block.latents, chunk.block.latents)
    held = [index for index, latents in made.items() if latents() is not None]
    assert [*made] == [*range(41)] and min(held) > 20, "the decoder has the newest, and nothing the others"


def test_what_the_disk_has_no_room_for_stays_in_memory(base, tmp_path) -> None:
    with Journal(tmp_path / "v.mp4", {}) as journal:
        rewind = Rewind(disk=journal)

        def add(chunks: list[Chunk]) -> None:
            for chunk in chunks:
                rewind.add(chunk.block)
                journal.add(chunk.block)
            journal.latents(0)  # what is on its way is written now

        add(base[:3])
        with file_limit((folder_of(tmp_path / "v.mp4") / RECORDS).stat().st_size + 9):
            add(base[3:])
        rewind.add(base[-1].block)
        assert [block is None for block in rewind.blocks.values()] == [True] * 3 + [False] * 5
        for chunk, block in zip(base, rewind.made(), strict=True):
            assert torch.equal(chunk.block.latents, block.latents)
            assert (chunk.block.index, chunk.block.opens_scene) == (block.index, block.opens_scene)


def images(first: int, count: int) -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return np.stack([np.roll(picture, shift, 1) for shift in range(first, first + count)])


@contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write(path, until: list[int], sound: Sound | None, copy=None) -> None:
    """A video in blocks of 12 frames, taken back again and again; `until` so many blocks each time."""
    with VideoWriter(path, 64, 64, {"seed": 1}, sound=sound) as writer:
        places = [0]
        for index, end in enumerate(until):
            while len(places) <= end:
                writer.append(images(places[-1], 12 if len(places) > 1 else 9))
                places.append(places[-1] + (12 if len(places) > 1 else 9))
            if index + 1 < len(until):
                if copy and not index:
                    writer.save_copy(copy, {"seed": 2})
                back = PLACES[index]
                writer.cut(back)
                assert writer.can_be_cut and writer.num_frames == back
                del places[places.index(back) + 1 :]


PLACES = 45, 0, 93


@pytest.mark.parametrize("has_sound", [False, True])
def test_a_file_that_was_cut_is_as_if_it_had_never_been_longer(tmp_path, has_sound: bool) -> None:
    wave = np.sin(np.arange(48_000 * 7) / 20, dtype=np.float32)[None, None]
    sound = Sound.of_waveform(wave, 48_000) if has_sound else None
    write(tmp_path / "whole.mp4", [12], sound)
    write(tmp_path / "v.mp4", [6, 5, 9, 12], sound, tmp_path / "copy.mp4")
    assert (tmp_path / "v.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    write(tmp_path / "six.mp4", [6], sound)
    assert len(frames := [*read_frames(tmp_path / "copy.mp4")]) == 9 + 12 * 5
    assert np.array_equal(frames, [*read_frames(tmp_path / "six.mp4")])
    assert read_settings(tmp_path / "copy.mp4") == {"seed": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mp4", "six.mp4", "v.mp4", "whole.mp4"]


@pytest.mark.parametrize("part", [0, 0.5, 0.9])
def test_a_version_that_does_not_fit_on_the_disk_is_none_and_the_video_stays(tmp_path, part) -> None:
    path, copy = tmp_path / "v.mp4", tmp_path / "copy.mp4"
    write(tmp_path / "whole.mp4", [5], None)
    with VideoWriter(path, 64, 64, {"seed": 1}) as writer:
        for first, count in ((0, 9), (9, 12), (21, 12)):
            writer.append(images(first, count))
        writer.flush()
        sentence = r"copy\.mp4 cannot be written \(File too large\); the video itself stays as it was"
        with file_limit(int(part * path.stat().st_size)), pytest.raises(OSError, match=sentence):
            writer.save_copy(copy, {"seed": 2})
        assert sorted(found.name for found in tmp_path.iterdir()) == ["v.mp4", "whole.mp4"]
        assert sum(len(frame) for frame in read_frames(path)) == 33
        for first in (33, 45):
            writer.append(images(first, 12))
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_file_is_cut_between_its_parts_only_and_all_of_it_may_go(tmp_path) -> None:
    writer = VideoWriter(tmp_path / "v.mp4", 64, 64)
    writer.cut(0)
    writer.append(images(0, 9))
    with pytest.raises(ValueError, match="cut where can_be_cut was true"):
        writer.cut(5)
    writer.cut(0)
    writer.close()
    assert not [*tmp_path.iterdir()]


class Server(BaseHTTPRequestHandler):
    """Answers as a server of runs does, and keeps what it was asked."""

    asked: list[tuple[str, dict]] = []

    def do_GET(self) -> None:
        self.answer({"run": "a", "seconds": 20.0})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        self.answer({"run": "a", "block": 22, "seconds": 16.3125, "ticket": None})

    def answer(self, answer: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_command_takes_a_run_back_by_seconds_or_to_a_time(address, capsys) -> None:
    at, prompt = ["live", "--server", address], {"prompt": "it turns green", "policy": "cut"}
    assert main([*at, "--back", "4s", "it turns green", "--policy", "cut", "--keep"]) == 0
    assert main([*at, "--to", "0:12", "--seed", "7"]) == 0
    assert main([*at, "--back", "1:00"]) == 0
    back = "/longlive/runs/current/back"
    bodies = [prompt | {"seconds": 16.0, "keep": True}, {"seconds": 12.0, "seed": 7}, {"seconds": 0.0}]
    assert Server.asked == [(back, body) for body in bodies]
    assert capsys.readouterr().out == "run a: goes on at 0:16.3\n" * 3
    for wrong in (["--seed", "7"], ["--keep", "a"], ["--back", "1s", "--stop"], []):
        assert main([*at, *wrong]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert len(Server.asked) == 3


@torch.inference_mode()
@pytest.mark.parametrize("has_state", [False, True])
def test_a_prompt_sent_while_recorded_blocks_are_decoded_takes_effect_after_them(
    pipeline, base, has_state
) -> None:
    plan, states = pipeline.plan(request()), []
    list(pipeline.run(plan, snapshots=Snapshots(lambda block: block == 1, states.append)))
    rewind = Rewind()
    rewind.blocks = {chunk.block.index: chunk.block for chunk in base[:5]}
    rewind.states = states if has_state else []
    control, chunks = LiveControl(), []
    for chunk in pipeline.run(plan, live=control, rewind=rewind, restart=rewind.first_restart()):
        chunks.append(chunk)
        if chunk.block.index == 2:
            settled(control.send(STAR))
    assert 5 in control.cues() and control.cues()[5].prompt == STAR
    check_same(chunks, base, end=5)
    check_same(chunks, plain(pipeline, control.schedule()))
