"""A run steered while it goes on: when prompts take effect, what holds it, and playing it again."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import Tensor

from longlive_core.cli import main
from longlive_core.config import Policy, WindowConfig
from longlive_core.pipeline import UNTIL_STOPPED, Pipeline, Request, load_pipeline
from longlive_core.rollout.rollout import Hook, RolloutError
from longlive_core.schedule.cue import ScheduleError
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.inbox import Room, Ticket
from longlive_core.steering.live import SHOWN_CHARACTERS, SHOWN_CUES, LiveControl, LiveError

BLOCK = 3
SCHEDULE = PromptSchedule.parse("0 first\n3.2 => keep: second\n")  # second begins at block 5


def encode(prompt: str) -> Tensor:
    return torch.full((1, 2, 4), float(len(prompt)))


def script_for(control: LiveControl, blocks: int = 100, encode=encode, **more):
    timeline = SCHEDULE.resolve(BLOCK)
    return control.script(timeline, encode, range(blocks), BLOCK, **more)


def wait_for(is_met, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < deadline, "the wait is over and it has not come"
        time.sleep(0.002)


def holds_no_embeddings(ticket: Ticket) -> bool:
    return not any(isinstance(value, Tensor) for value in vars(ticket).values())


class Clock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def in_a_thread(call, *arguments):
    """A call in another thread, whose result or error is in the future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *arguments)


def test_a_prompt_takes_effect_at_the_first_block_after_it_is_encoded():
    go = threading.Event()

    def slow(prompt: str) -> Tensor:
        assert prompt == "first" or go.wait(10)
        return encode(prompt)

    control = LiveControl()
    script = script_for(control, encode=slow)
    assert script(0).embeds.mean() == len("first")
    start = time.monotonic()
    ticket = control.send("live  one", "cut")
    assert time.monotonic() - start < 0.2 and ticket.state == "encoding"
    assert script(1) is None and control.snapshot()["pending"]["state"] == "encoding"
    go.set()
    wait_for(lambda: ticket.state == "ready")
    assert control.snapshot()["pending"] == {
        **{
            "ticket": 1,
            "state": "ready",
            "error": None,
            "prompt": "live one",
            "policy": "cut",
            "blend": None,
            "image": None,
        }
    }
    switch = script(2)
    assert switch.policy is Policy.CUT and switch.embeds.mean() == len("live one")
    assert ticket.state == "played" and holds_no_embeddings(ticket)
    assert control.snapshot()["pending"] is None
    assert control.schedule().cues[-1].seconds == 1.3125
    assert [script(block) is not None for block in (3, 4, 5)] == [False, False, True]


def test_what_is_in_every_prompt_is_in_those_that_are_sent_too():
    timeline = PromptSchedule.parse("always: film,\n0 first\n3.2 => keep: second").resolve(BLOCK)
    encoded, control = [], LiveControl()
    script = control.script(
        timeline, lambda prompt: encoded.append(prompt) or encode(prompt), range(9), BLOCK
    )
    script(0)
    ticket = control.send("live one")
    wait_for(lambda: ticket.state == "ready")
    assert [script(block) is not None for block in range(1, 6)] == [True, False, False, False, True]
    assert encoded == ["film, first", "film, live one", "film, second"]
    assert script.state().prompt == "film, second"
    assert [cue["prompt"] for cue in control.snapshot()["cues"]] == ["first", "live one", "second"]
    assert control.schedule().to_text().startswith("always: film,\n0s => first\n0.5625s => live one\n")


def test_the_newest_prompt_replaces_the_one_that_waits_and_wins_over_the_schedule():
    control = LiveControl(on_switch=Policy.REFRESH)
    script = script_for(control)
    tickets = [control.send(prompt) for prompt in ("one", "two!")]
    wait_for(lambda: tickets[1].state == "ready")
    assert tickets[0].state == "replaced"
    assert script(0).embeds.mean() == len("two!")  # sent before the first block: the first cue of all
    for block in range(1, 5):
        assert script(block) is None
    ticket = control.send("three", "blend", 1.5)
    wait_for(lambda: ticket.state == "ready")
    assert script(5).embeds.mean() == 4.5 and script(6).embeds.mean() == 5
    assert control.schedule().to_text() == "0s => refresh: two!\n3.5625s => blend 1.5s: three\n"


def test_a_prompt_that_wins_over_a_cue_takes_its_seed_and_others_keep_the_one_in_effect():
    control = LiveControl()
    timeline = PromptSchedule.parse("0 first\n3.2 => keep, seed 7: second\n").resolve(BLOCK)
    script = control.script(timeline, encode, range(9), BLOCK)
    for block in range(5):
        script(block)
    for block, prompt in ((5, "sent"), (6, "another")):
        ticket = control.send(prompt)
        wait_for(lambda ticket=ticket: ticket.state == "ready")
        script(block)
    played = "0s => first\n3.5625s => seed 7: sent\n4.3125s => another\n"
    assert control.schedule().to_text() == played


def test_where_there_is_no_room_the_encoder_runs_between_two_blocks():
    places = []

    class Full(Room):
        def is_free(self) -> bool:
            return False

        @contextmanager
        def cleared(self):
            places.append("cleared")
            yield
            places.append("back")

    def noted(prompt: str) -> Tensor:
        places.append((prompt, threading.current_thread() is threading.main_thread()))
        return encode(prompt)

    control = LiveControl(room=Full())
    script = script_for(control, encode=noted)
    script(0)
    ticket = control.send("live")
    wait_for(lambda: ticket.is_held)
    assert script(1).embeds.mean() == 4
    assert places == [("first", True), "cleared", ("live", True), "back"]


def test_a_room_that_cannot_be_asked_fails_one_prompt_and_no_other():
    class Broken(Room):
        is_broken = True

        def is_free(self) -> bool:
            if self.is_broken:
                raise RuntimeError("no such device")
            return True

    room = Broken()
    control = LiveControl(room=room)
    script = script_for(control)
    script(0)
    ticket = control.send("bad")
    wait_for(lambda: ticket.state == "failed")
    assert "no such device" in ticket.error
    room.is_broken = False
    good = control.send("good")
    wait_for(lambda: good.state == "ready")


def test_a_prompt_that_cannot_be_encoded_fails_alone():
    def broken(prompt: str) -> Tensor:
        if prompt == "bad":
            raise RuntimeError("no such word")
        return encode(prompt)

    control = LiveControl()
    script = script_for(control, encode=broken)
    script(0)
    ticket = control.send("bad")
    wait_for(lambda: ticket.state == "failed")
    assert "no such word" in control.snapshot()["pending"]["error"] and script(1) is None
    good = control.send("good")
    wait_for(lambda: good.state == "ready")
    assert ticket.state == "failed" and script(2) is not None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((" ",), "the prompt is empty"),
        ((7,), "is not text"),
        (("a" * 20_001,), "at most 20000"),
        (("a", "jump"), "is not a policy"),
        (("a", "cut", 2.0), "only blend takes seconds"),
        (("a", "blend", float("nan")), "blend"),
    ],
)
def test_bad_prompts_are_refused_with_a_sentence(arguments, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        LiveControl().send(*arguments)


def test_pause_holds_the_next_block_and_resume_lets_it_go():
    control = LiveControl()
    script = script_for(control)
    script(0)
    control.pause()
    control.pause()
    assert control.state == "paused"
    with in_a_thread(script, 1) as future:
        time.sleep(0.2)
        assert not future.done()
        control.resume()
        assert future.result(5) is None
    assert control.state == "running"


def test_stop_ends_at_the_next_block_but_makes_one():
    control = LiveControl()
    control.stop()
    assert not control.was_steered
    with pytest.raises(LiveError, match="nothing was played yet"):
        control.schedule()
    script = script_for(control)
    blocks = list(control.until_stopped(script(block) and block for block in range(9)))
    assert blocks == [0]
    with pytest.raises(LiveError, match="stopping"):
        control.send("late")
    control.stop()
    control.finish()
    assert control.state == "stopped" and control.was_steered
    for call in (lambda: control.send("late"), control.pause, control.resume, control.stop):
        with pytest.raises(LiveError, match="has ended"):
            call()


def test_a_held_run_ends_when_its_check_raises():
    class Interrupted(BaseException):
        pass

    is_over = threading.Event()

    def check() -> None:
        if is_over.is_set():
            raise Interrupted

    control = LiveControl(check=check)
    control.pause()
    with in_a_thread(script_for(control), 0) as future:
        is_over.set()
        with pytest.raises(Interrupted):
            future.result(5)


def test_real_time_is_never_more_than_a_block_ahead_and_pauses_do_not_count():
    clock = Clock()
    control = LiveControl("real time", clock=clock)
    script = script_for(control)
    script(0)
    script(1)  # begins at 0.5625 s
    with in_a_thread(script, 2) as future:
        clock.now += 0.55
        time.sleep(0.12)
        assert not future.done()
        clock.now += 0.02
        future.result(5)
    control.pause()
    clock.now += 60
    control.resume()
    with in_a_thread(script, 3) as future:
        time.sleep(0.12)
        assert not future.done()
        clock.now += 0.75
        future.result(5)
    control.out(0, 9)
    assert control.snapshot()["fps"] == pytest.approx(9 / 1.32, abs=0.01)


def test_latency_is_from_sending_to_frames_that_are_out():
    clock = Clock()
    control = LiveControl(clock=clock)
    script = script_for(control)
    script(0)
    ticket = control.send("live")
    wait_for(lambda: ticket.state == "ready")
    script(1)
    clock.now += 0.5
    control.out(0, 9)
    assert control.snapshot()["cues"][-1]["latency"] is None
    control.out(1, 21)
    assert control.snapshot()["cues"][-1] == {
        **{"block": 1, "seconds": 0.5625, "prompt": "live", "policy": None, "blend": None, "image": None},
        **{"origin": "live", "ticket": 1, "latency": 0.5},
    }
    assert control.snapshot()["block"] == 1 and control.snapshot()["seconds"] == 21 / 16


def test_a_snapshot_stays_small_and_the_schedule_is_whole():
    control = LiveControl()
    script = script_for(control, blocks=1000)
    script(0)
    for block in range(1, SHOWN_CUES + 20):
        ticket = control.send(f"{block} " + "long " * 1000)
        wait_for(lambda ticket=ticket: ticket.state == "ready")
        script(block)
    snapshot = control.snapshot()
    assert len(json.dumps(snapshot)) < 2 * SHOWN_CHARACTERS
    assert snapshot["cues"][-1]["prompt"].startswith(f"{SHOWN_CUES + 19} ")
    assert len(control.schedule().cues) == SHOWN_CUES + 20


def test_many_senders_at_once_leave_one_prompt_and_every_ticket_settled():
    changes = []
    control = LiveControl(on_change=lambda: changes.append(control.snapshot()["state"]))
    script = script_for(control, blocks=10_000)
    script(0)
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(control.send, f"prompt {n}") for n in range(800)]
        for block in range(1, 400):
            script(block)
        tickets = [future.result() for future in sent]
    wait_for(lambda: all(ticket.state != "encoding" for ticket in tickets))
    control.finish()
    states = {ticket.state for ticket in tickets}
    assert states <= {"played", "replaced", "dropped"} and "replaced" in states
    assert all(map(holds_no_embeddings, tickets))
    played = sorted(ticket.number for ticket in tickets if ticket.state == "played")
    shown = [cue["ticket"] for cue in control.snapshot()["cues"] if cue["origin"] == "live"]
    assert shown == [number for number in shown if number in played] and changes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--server", "http://127.0.0.1:9", "it turns blue"], "no server answers at http://127.0.0.1:9"),
        (["--server", "127.0.0.1:8188", "it turns blue"], "not the address of a server"),
        (["--stop", "--policy", "cut"], "go with a prompt"),
        (["--stop", "--image", "a.png"], "go with a prompt"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(arguments, sentence, capsys):
    assert main(["live", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@contextmanager
def server_that_says(status: int, body: bytes, length: int | None = None):
    """The address of a server that gives everyone the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"3", b'{"error": null}', b'{"text": 1}', b"x"])
def test_a_server_of_another_kind_is_one_sentence(status, body, tmp_path, capsys):
    with server_that_says(status, body) as address:
        for what in (["a"], ["--status"], ["--stop"], ["--freeze", str(tmp_path / "f.txt")]):
            assert main(["live", "--server", address, *what]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"longlive: {address} ") and said.count("\n") == 1
            assert "ComfyUI-LongLive" in said
    assert not (tmp_path / "f.txt").exists()


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_is_cut_off_is_one_sentence(status, capsys):
    with server_that_says(status, b'{"run"', length=99) as address:
        assert main(["live", "--server", address, "a"]) == 2
        assert address in (said := capsys.readouterr().err) and said.count("\n") == 1


class Proxy:
    """A server that wants a login and redirects what comes to it; keeps method, path, login, body of each."""

    def __init__(self, status: int = 0, location: str = ""):
        self.asked: list[tuple] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.asked.append((self.command, self.path, self.headers["Authorization"], body))
                is_first = len(proxy.asked) == 1 and status
                self.send_response(status if is_first else 200)
                if is_first:
                    self.send_header("Location", location or f"http://{self.headers['Host']}/comfy/x")
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                self.wfile.write(b'{"run": "7", "ticket": 3, "error": null}')

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


LOGIN = "Basic bWU6cCB3QA=="  # me:p w@


@pytest.mark.parametrize("status", [0, 307, 308])
def test_a_login_in_the_address_goes_to_the_server_and_on_with_redirects(status, capsys):
    with Proxy(status) as proxy:
        address = f"http://me:p%20w%40@{proxy.host}/comfy/"
        assert main(["live", "--server", address, "it turns blue"]) == 0
        assert capsys.readouterr().out == "run 7: prompt 3 takes effect at the next block\n"
        first = ("POST", "/comfy/longlive/runs/current/prompt", LOGIN, b'{"prompt": "it turns blue"}')
        assert proxy.asked[0] == first and len(proxy.asked) == 1 + bool(status)
        assert proxy.asked[-1] == (first if not status else ("POST", "/comfy/x", *first[2:]))
        assert main(["live", "--server", f"http://{proxy.host}", "--status"]) == 0
        assert proxy.asked[-1][2] is None


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_login_is_not_sent_to_another_host(status):
    with Proxy(308) as other, Proxy(status, f"http://{other.host}/") as proxy:
        main(["live", "--server", f"http://me:pw@{proxy.host}", "--stop"])
        assert [login for *_, login, _ in proxy.asked] == ["Basic bWU6cHc="]
        assert len(other.asked) == 2 and {login for *_, login, _ in other.asked} == {None}


@pytest.mark.parametrize(
    "address",
    [
        *("http://me:secret@127.0.0.1:9", "http://me:sec/ret@127.0.0.1:9", "http://me:sec#ret@127.0.0.1:9"),
        *("ftp://me:secret@host", "me:secret@127.0.0.1:9", "http://me:secret@[::1", "http://me:secret@"),
        *("http://me:secret@127.0.0.1:9/ \x1b", "http://me:sec@ret@127.0.0.1:9", "http://secret@127.0.0.1:9"),
    ],
)
def test_a_password_is_never_printed(address, capsys):
    assert main(["live", "--server", address, "--stop"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("longlive: ") and error.count("\n") == 1
    assert not [part for part in ("secret", "sec", "ret@", "me:") if part in error]


def test_a_server_that_wants_a_login_is_said_to(capsys):
    with server_that_says(401, b"who are you?") as address:
        assert main(["live", "--server", address, "--stop"]) == 2
        assert "write --server http://user:password@..." in capsys.readouterr().err


def test_an_unknown_pace_is_refused():
    with pytest.raises(ValueError, match="full speed, real time"):
        LiveControl("warp")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("mini")


PLAYED = PromptSchedule.parse("0 a red circle drifts right over navy\n3s => it turns blue\n")
SENDS = {
    1: ("it turns into a white star", "blend", 1.5),
    2: ("it moves over plum", "keep", None),
    4: ("a green square rests over slate", "cut", None),
}


@torch.inference_mode()
def latents(pipeline: Pipeline, schedule: PromptSchedule, control: LiveControl | None = None) -> Tensor:
    """Of seven blocks; with a control, the prompts of SENDS are sent as their blocks come out."""
    parts = []
    for chunk in pipeline.run(pipeline.plan(Request(schedule, 5.25, seed=4)), live=control):
        parts.append(chunk.block.latents)
        if control and chunk.block.index in SENDS:
            ticket = control.send(*SENDS[chunk.block.index])
            wait_for(lambda ticket=ticket: ticket.state != "encoding")
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("always, seed", [("", None), ("a pink star", None), ("", 9)])
def test_blocks_before_a_prompt_are_untouched_and_the_frozen_schedule_replays_it(pipeline, always, seed):
    first, *others = PLAYED.cues
    control, written = LiveControl(), PromptSchedule((first, replace(others[0], seed=seed)), always=always)
    live, plain = latents(pipeline, written, control), latents(pipeline, written)
    control.finish()
    cues = control.snapshot()["cues"]
    sent = [cue for cue in cues if cue["origin"] == "live"]
    assert [cue["prompt"] for cue in sent] == [send[0] for send in SENDS.values()]
    assert all(block < cue["block"] <= block + 2 for block, cue in zip(SENDS, sent, strict=True))
    first = sent[0]["block"] * BLOCK
    assert torch.equal(live[:, :, :first], plain[:, :, :first])
    assert not torch.equal(live[:, :, first : first + BLOCK], plain[:, :, first : first + BLOCK])
    frozen = control.schedule()
    assert frozen.always == always and frozen.cues[0] == written.cues[0]
    assert torch.equal(latents(pipeline, frozen), live)
    assert PromptSchedule.parse(frozen.to_text()) == PromptSchedule.parse(frozen.to_json()) == frozen


@torch.inference_mode()
def test_what_a_run_that_failed_had_played_can_be_played_again(pipeline):
    control = LiveControl()

    class FailInTheBlockOfAPrompt(Hook):
        def on_step(self, block, step, flow, clean):
            if len(control.snapshot()["cues"]) > 1:
                raise RolloutError(block, "as a test wants it")

    with pytest.raises(RolloutError):
        for chunk in pipeline.run(
            pipeline.plan(Request(PLAYED, 5.0, seed=4)), FailInTheBlockOfAPrompt(), control
        ):
            if chunk.block.index == 1:
                ticket = control.send("it moves over plum")
                wait_for(lambda ticket=ticket: ticket.state == "ready")
    assert len(control.snapshot()["cues"]) == 2 and ticket.state == "played"
    control.finish("failed")
    assert [cue["prompt"] for cue in control.snapshot()["cues"]] == [PLAYED.cues[0].prompt]
    assert control.schedule().cues == PLAYED.cues[:1] and control.seconds > 0
    pipeline.plan(Request(control.schedule(), control.seconds))


@torch.inference_mode()
def test_a_video_without_end_goes_on_until_a_stop(pipeline):
    control = LiveControl()
    request = Request(PLAYED, UNTIL_STOPPED, seed=4)
    assert pipeline.plan(request).window.endless
    made = []
    for chunk in pipeline.run(pipeline.plan(request), live=control):
        made.append(len(chunk.frames))
        if chunk.block.index == 2:
            control.stop()
    assert made[0] == 9 and set(made[1:]) == {12} and 3 <= len(made) <= 5
    control.finish()
    assert control.snapshot()["num_blocks"] is None and control.seconds == sum(made) / 16
    with pytest.raises(ValueError, match="full attention"):
        pipeline.plan(
            Request(
                PLAYED, UNTIL_STOPPED, window=WindowConfig(sink_latent_frames=0, window_latent_frames=None)
            )
        )
