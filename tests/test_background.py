"""Calls in a background thread: order, the bound, errors, the end; and the video writer that uses them."""

import threading
import time
from functools import partial

import av
import numpy as np
import pytest

from longlive_core.output.background import BackgroundQueue
from longlive_core.output.video import VideoWriter

SOON = 5.0  # seconds; nothing here takes that long


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("longlive-")]


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
