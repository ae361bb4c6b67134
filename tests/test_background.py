"""Work beside the caller's: order, errors, an early end, the bound, modes; Mini's frames as without it."""

import contextvars
import threading
import time
from functools import partial

import av
import numpy as np
import pytest
import torch

from longlive_core import PromptSchedule, load_pipeline
from longlive_core.output.background import BackgroundQueue, ahead
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Request
from longlive_core.rollout.rollout import Hook

SOON = 5.0  # seconds; nothing here takes that long
SCHEDULE = "0:00 a red circle drifts right over navy\n2s => it turns blue\n3s => cut: a green square"


class Watched:
    """A generator that says how far it went, where it ran, and whether it was closed."""

    def __init__(self, count: int = 10, fails_at: int | None = None):
        self.made, self.thread, self.is_closed = 0, None, False
        self._count, self._fails_at = count, fails_at

    def items(self):
        try:
            for item in range(self._count):
                self.thread = threading.current_thread()
                if item == self._fails_at:
                    raise OSError(f"no item {item}")
                self.made += 1
                yield item
        finally:
            self.is_closed = True


def wait_for(condition) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.001)


def background_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("longlive-")}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not background_threads()


# Ahead


@pytest.mark.parametrize("depth", [0, 1, 2, 20])
def test_items_come_in_order(depth) -> None:
    watched = Watched()
    assert list(ahead(watched.items(), depth)) == list(range(10))
    assert (watched.thread is threading.current_thread()) == (depth == 0)


@pytest.mark.parametrize("depth", [1, 3])
def test_never_further_ahead_than_the_depth_and_the_first_item_comes_alone(depth) -> None:
    watched = Watched()
    for taken, _ in enumerate(ahead(watched.items(), depth), start=1):
        most = taken + depth if taken > 1 else 1
        wait_for(lambda most=most: watched.made >= min(10, most))
        time.sleep(0.005)
        assert watched.made <= most


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("depth", [1, 3])
def test_few_items(depth, count) -> None:
    watched = Watched(count)
    assert list(ahead(watched.items(), depth)) == list(range(count)) and watched.is_closed


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_comes_after_all_items_before_it(depth) -> None:
    taken = []
    with pytest.raises(OSError, match="no item 4"):
        for item in ahead(Watched(fails_at=4).items(), depth):
            taken.append(item)
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [1, 3])
def test_an_error_of_the_caller_ends_the_worker(depth) -> None:
    watched, stop = Watched(), threading.Event()

    def take() -> None:
        for item in ahead(watched.items(), depth, stop=stop):
            if item == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take()
    assert watched.is_closed and stop.is_set() and watched.made <= 3 + depth
    assert not background_threads()


def test_closing_early_joins_the_worker_and_what_looks_at_stop_ends_at_once() -> None:
    stop, begun, made = threading.Event(), threading.Event(), []

    def endless():
        yield from range(2)
        begun.set()
        while not stop.wait(0.001):
            pass
        made.append("stopped")
        yield 2

    items = ahead(endless(), stop=stop)
    assert [next(items), next(items)] == [0, 1]
    assert begun.wait(SOON)
    items.close()
    assert made == ["stopped"] and not background_threads()


def test_the_worker_sees_the_callers_context_and_modes() -> None:
    node = contextvars.ContextVar("node")
    node.set("7")

    def items():
        for _ in range(2):
            yield node.get(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.ones(1)

    for is_inference in (False, True):
        with torch.inference_mode(is_inference):
            found = list(ahead(items()))
        assert [item[:3] for item in found] == [("7", False, is_inference)] * 2
        assert all(item[3].is_inference() == is_inference for item in found)
    assert torch.is_grad_enabled()


# The rollout ahead of its decoder


def frames_of(blocks_ahead: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    pipeline = load_pipeline("mini")
    pipeline.blocks_ahead = blocks_ahead
    chunks = list(pipeline.run(Request(PromptSchedule.parse(SCHEDULE), 4.1, seed=3)))
    return [chunk.frames for chunk in chunks], [chunk.block.latents for chunk in chunks]


def test_decoded_beside_the_rollout_is_decoded_inline_bit_for_bit() -> None:
    for beside, inline in zip(frames_of(1), frames_of(0), strict=True):
        assert len(beside) == len(inline) == 6
        assert all(torch.equal(a, b) for a, b in zip(beside, inline, strict=True))


class Interrupted(BaseException):
    """As a host stops a run: from a hook."""


class Interrupting(Hook):
    def __init__(self, block: int, step: int):
        self.at, self.seen, self.threads = (block, step), [], set()

    def on_step(self, block: int, step: int, flow, clean) -> None:
        self.seen.append((block, step))
        self.threads.add(threading.current_thread().name)
        if (block, step) == self.at:
            raise Interrupted


def test_an_interrupt_in_a_hook_ends_the_run_and_keeps_what_is_made() -> None:
    hook, taken, pipeline = Interrupting(2, 1), [], load_pipeline("mini")
    pipeline.blocks_ahead = 1
    with pytest.raises(Interrupted):
        for chunk in pipeline.run(Request(PromptSchedule.single("a red circle"), 3600), hook):
            taken.append(chunk.block.index)
    assert taken == [0, 1] and hook.seen[-1] == (2, 1)
    assert threading.current_thread().name not in hook.threads


def test_whoever_leaves_early_waits_for_no_block() -> None:
    """Closing stops the rollout at its next denoising step."""
    hook, pipeline, reached = Interrupting(-1, -1), load_pipeline("mini"), threading.Event()
    pipeline.blocks_ahead = 1

    def on_step(block, step, flow, clean) -> None:
        hook.seen.append((block, step))
        if (block, step) == (2, 0):
            reached.set()
            time.sleep(0.2)

    hook.on_step = on_step
    chunks = pipeline.run(Request(PromptSchedule.single("a red circle"), 3600), hook)
    assert [next(chunks).block.index, next(chunks).block.index] == [0, 1]
    assert reached.wait(SOON)
    chunks.close()
    assert hook.seen[-1] == (2, 0)


# Calls in the background


class Calls:
    """Calls for a queue: they note their numbers, wait until they may run, and one of them may fail."""

    def __init__(self, fails_at: int | None = None):
        self.done, self.thread, self._fails_at = [], None, fails_at
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, number: int) -> None:
        assert self.may_run.wait(SOON)
        self.thread = threading.current_thread()
        if number == self._fails_at:
            raise OSError("disk full")
        self.done.append(number)


def test_all_calls_have_run_in_order_before_close_returns() -> None:
    queue, calls = BackgroundQueue(), Calls()
    for number in range(50):
        queue.put(partial(calls, number))
    queue.close()
    assert calls.done == list(range(50)) and calls.thread is not threading.current_thread()
    queue.close()


def test_flush_waits_for_what_is_queued_and_the_queue_goes_on() -> None:
    queue, calls = BackgroundQueue(), Calls()
    for number in range(3):
        queue.put(partial(calls, number))
        queue.flush()
        assert calls.done == list(range(number + 1))
    queue.close()


def test_put_returns_at_once_until_too_many_calls_are_pending() -> None:
    queue, calls = BackgroundQueue(depth=2), Calls()
    calls.may_run.clear()
    queue.put(partial(calls, 0))
    queue.put(partial(calls, 1))
    assert not calls.done
    threading.Timer(0.05, calls.may_run.set).start()
    start = time.monotonic()
    queue.put(partial(calls, 2))
    assert time.monotonic() - start > 0.04 and calls.done
    queue.close()
    assert calls.done == [0, 1, 2]


@pytest.mark.parametrize("fails_at", [0, 2])
def test_an_error_is_raised_once_and_later_calls_are_dropped(fails_at) -> None:
    queue, calls = BackgroundQueue(), Calls(fails_at)
    with pytest.raises(OSError, match="disk full"):
        for number in range(10):
            queue.put(partial(calls, number))
            time.sleep(0.002)
    queue.put(partial(calls, 10))
    queue.flush()
    queue.close()
    assert calls.done == list(range(fails_at))


@pytest.mark.parametrize("last", [BackgroundQueue.flush, BackgroundQueue.close])
def test_flush_and_close_raise_what_no_put_could(last) -> None:
    queue = BackgroundQueue()
    queue.put(partial(Calls(fails_at=0), 0))
    with pytest.raises(OSError, match="disk full"):
        last(queue)
    queue.close()


def test_an_interrupted_wait_loses_no_call_and_no_error(monkeypatch) -> None:
    """Ctrl-C arrives while `put` waits for a call that then fails."""
    queue, calls = BackgroundQueue(depth=1), Calls(fails_at=0)
    queue.put(partial(calls, 0))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("concurrent.futures.Future.result", interrupt)
        queue.put(partial(calls, 1))
    with pytest.raises(OSError, match="disk full"):
        queue.close()


def interrupt(*_) -> None:
    raise KeyboardInterrupt


# The writer on its queue


def test_frames_are_written_in_the_background_also_when_the_caller_fails(tmp_path, monkeypatch) -> None:
    threads = []
    write = VideoWriter._write
    monkeypatch.setattr(
        VideoWriter, "_write", lambda *args: (threads.append(threading.current_thread()), write(*args))
    )
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4", 16, 16) as writer:
        for _ in range(2):
            writer.append(np.zeros((3, 16, 16, 3), np.uint8))
        raise KeyboardInterrupt
    assert writer.num_frames == 6 and threading.current_thread() not in threads
    with av.open(str(writer.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_after_an_error_the_file_is_finished_with_what_was_written(tmp_path, monkeypatch) -> None:
    writer = VideoWriter(tmp_path / "v.mp4", 16, 16)
    writer.append(np.zeros((3, 16, 16, 3), np.uint8))
    writer.flush()
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(VideoWriter, "_fragment", fail)
        writer.append(np.zeros((3, 16, 16, 3), np.uint8))
        writer.close()
    writer.close()
    assert writer.num_frames == 3 and b"moof" not in writer.path.read_bytes()


def fail(*_) -> None:
    raise OSError("disk full")
