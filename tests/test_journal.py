"""A killed run of `longlive generate` goes on: with the same video, state and sheet, whatever was damaged."""

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors import safe_open

from longlive_core import journal as journals
from longlive_core.cli import generate, main
from longlive_core.config import Policy
from longlive_core.journal import Journal, folder_of
from longlive_core.output import growing
from longlive_core.output.contact_sheet import ContactSheet
from longlive_core.output.growing import GrowingFile, frames_kept
from longlive_core.output.video import VideoWriter, count_frames, read_settings
from longlive_core.pipeline import load_pipeline
from longlive_core.resume import VideoState
from longlive_core.rollout.rollout import Block
from longlive_core.schedule.cue import Cue

pytestmark = pytest.mark.usefixtures("mini_once")
ROOT = Path(__file__).parent.parent
SCHEDULE = """0 a red circle drifts right over navy
1s blend 2s: a blue square drifts up over navy
4s cut, seed 4: a green star circles over plum
"""
SECONDS = 7
ZEROS = torch.zeros(1, 4, 3, 2, 2)  # latents of a block


class Killed(BaseException):
    """Stands for a kill: what would be finished after an error is not."""


def command(*more: str, seconds: float = SECONDS) -> list[str]:
    Path("schedule.txt").write_text(SCHEDULE)
    outputs = ["--out=v.mp4", "--state=v.safetensors", "--contact-sheet=v.png"]
    return [
        "generate",
        "--schedule=schedule.txt",
        f"--seconds={seconds}",
        "--snapshot-every=2",
        *outputs,
        *more,
    ]


def contents() -> list:
    """What was made: of the state, whose file may have any order, what it holds."""
    with safe_open("v.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        state = file.metadata() | tensors
    return [Path("v.mp4").read_bytes(), Path("v.png").read_bytes(), state]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list:
    """What a run makes that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        assert main(command()) == 0
        assert not folder_of("v.mp4").exists()
        return contents()


def cut_off(monkeypatch, after_frames: int, *more: str, seconds: float = SECONDS) -> None:
    """Leave behind what a kill leaves at that moment, all that was queued written."""
    kill(monkeypatch, after_frames, command(*more, seconds=seconds))


def kill(monkeypatch, after_frames: int, arguments: list[str]) -> None:
    with monkeypatch.context() as patch:
        append = ContactSheet.append

        def killing(self, frames):
            if self._seen >= after_frames:
                raise Killed
            return append(self, frames)

        patch.setattr(ContactSheet, "append", killing)
        patch.setattr(ContactSheet, "save", lambda *_: None)
        patch.setattr(VideoWriter, "_finish", lambda self: None)
        patch.setattr(generate, "keep_growing", lambda path: None)
        with pytest.raises(Killed):
            main(arguments)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory) -> Path:
    """The folder of a run that was killed after 6.5 of its 7 seconds; states stand at 45 and 93 frames."""
    folder = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cut_off(patch, 93)
    names = sorted(path.name for path in folder_of(folder / "v.mp4").iterdir())
    assert names == ["records", "state-45.safetensors", "state-93.safetensors"]
    return folder


@pytest.fixture
def left(broken_off, tmp_path, monkeypatch) -> Path:
    """The journal in a copy of that folder, which is the current one."""
    monkeypatch.chdir(shutil.copytree(broken_off, tmp_path / "copy"))
    return folder_of("v.mp4")


def goes_on(capsys, whole: list, *more: str) -> str:
    """What the same command prints; it makes the files of the uninterrupted run."""
    capsys.readouterr()
    assert main(command(*more)) == 0
    assert contents() == whole and not folder_of("v.mp4").exists()
    return capsys.readouterr().err


def test_real_kills_leave_the_same_video() -> None:
    """A few at random moments; benchmarks/kills.py makes many, with all kinds of videos."""
    kills = ["-m", "benchmarks.kills", "--kills=3", "--seconds=5", "--snapshot-every=2", "--with=sheet"]
    done = subprocess.run([sys.executable, *kills], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "the same video" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def begins(monkeypatch) -> list[tuple[int, int, list[str]]]:
    """Of each run that goes on: frames before its state, those that stay of its file, hidden files."""
    found, restart = [], Journal.restart

    def watched(self) -> tuple:
        begin, kept = restart(self)
        hidden = [path.name for path in self._folder.glob(".*")]
        found.append((begin.state.num_frames, kept, hidden))
        return begin, kept

    monkeypatch.setattr(Journal, "restart", watched)
    return found


def test_a_run_goes_on_from_its_newest_state(left, whole, capsys, begins) -> None:
    assert "goes on at 0:05" in goes_on(capsys, whole)
    assert begins == [(93, 93, [])]


@pytest.mark.parametrize("damage", ["bits", "short", "gone"])
def test_a_damaged_state_is_not_used(left, whole, capsys, begins, damage) -> None:
    newest = left / "state-93.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 16
    {"bits": lambda: newest.write_bytes(data), "gone": newest.unlink}.get(
        damage, lambda: os.truncate(newest, len(data) // 3)
    )()
    assert "goes on at 0:05" in goes_on(capsys, whole)
    assert begins == [(45, 45, [])]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forked")
def test_a_kill_before_a_state_takes_its_name_leaves_the_one_before(
    left, whole, capsys, monkeypatch, begins
) -> None:
    """The file that it was written to, at true size 3.2 GiB, is removed when the run goes on."""
    newest = left / "state-93.safetensors"
    state = VideoState.load(newest)
    newest.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(growing, "replace_open", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        writer = multiprocessing.get_context("fork").Process(target=state.save, args=[newest])
        writer.start()
        writer.join()
    assert writer.exitcode == -signal.SIGKILL and VideoState.load(growing.part_of(newest)).num_frames == 93
    goes_on(capsys, whole)
    assert begins == [(45, 45, [])]


def test_without_states_the_latents_suffice(left, whole, capsys) -> None:
    for path in left.glob("state-*"):
        path.write_bytes(b"nothing")
    assert "goes on at 0:05" in goes_on(capsys, whole)


def test_a_journal_is_used_up_to_what_is_damaged(left, whole, capsys) -> None:
    """Here that is in its middle: the newer state has blocks that are not recorded any more."""
    records = left / "records"
    data = bytearray(records.read_bytes())
    data[len(data) // 2] ^= 1
    records.write_bytes(data)
    assert re.search("goes on at 0:0[1-4]", goes_on(capsys, whole))


def test_a_journal_whose_beginning_is_damaged_is_replaced(left, whole, capsys) -> None:
    (left / "records").write_bytes(b"x" * 100)
    said = goes_on(capsys, whole)
    assert (
        "this run starts over: the journal of the unfinished one is damaged" in said and "goes on" not in said
    )


def test_a_video_that_was_cut_or_is_gone_is_made_up_for(left, whole, capsys) -> None:
    os.truncate("v.mp4", os.path.getsize("v.mp4") // 2)
    goes_on(capsys, whole)


def test_another_command_starts_over_and_says_in_what_it_differs(left, capsys) -> None:
    assert main(command("--seed=5", seconds=1)) == 0
    said = capsys.readouterr().err
    assert (
        "starts over: the unfinished one was made with another seconds, seed" in said
        and "goes on" not in said
    )
    assert not left.exists()


def test_fresh_starts_over(left, whole, capsys) -> None:
    said = goes_on(capsys, whole, "--fresh")
    assert "goes on" not in said and "starts over" not in said


def test_no_snapshots_are_made_without_them(tmp_path, whole, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cut_off(monkeypatch, 60, "--snapshot-every=0")
    assert [path.name for path in folder_of("v.mp4").iterdir()] == ["records"]
    assert "goes on at 0:04" in goes_on(capsys, whole, "--snapshot-every=0")


def test_after_ctrl_c_the_file_is_finished_and_the_run_goes_on_all_the_same(
    tmp_path, whole, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        append = ContactSheet.append

        def stopped(self, frames):
            if self._seen >= 60:
                raise KeyboardInterrupt
            return append(self, frames)

        patch.setattr(ContactSheet, "append", stopped)
        assert main(command()) == 130
    assert not frames_kept(Path("v.mp4")) and read_settings("v.mp4")["seed"] == 0
    kept = []
    init = VideoWriter.__init__
    monkeypatch.setattr(
        VideoWriter, "__init__", lambda self, *a, **k: kept.append(k["kept"]) or init(self, *a, **k)
    )
    goes_on(capsys, whole)
    assert kept == [45]


def test_a_run_that_made_nothing_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "append", raise_killed)
        main(command())
    assert not folder_of("v.mp4").exists() and not Path("v.mp4").exists()


def raise_killed(*_) -> None:
    raise Killed


def test_two_runs_do_not_share_a_journal(tmp_path, capsys) -> None:
    with Journal(tmp_path / "v.mp4", {}) as _, pytest.raises(BlockingIOError):
        Journal(tmp_path / "v.mp4", {})


def test_a_journal_keeps_latents_and_cues_and_ends_at_what_is_damaged(tmp_path) -> None:
    video, facts = tmp_path / "v.mp4", {"seed": 3, "window": (3, 9)}
    latents = [torch.randn(1, 4, 3, 2, 2) for _ in range(4)]
    cue = Cue(1.5, "a red circle", Policy.BLEND, 2.0, seed=7)
    with Journal(video, facts) as journal:
        for block, one in enumerate(latents):
            one = one.bfloat16() if block == 2 else one
            journal.add(Block(block, one, block == 1), *([cue, True] if block == 1 else []))
        journal.add(Block(1, latents[0], False))
        assert torch.equal(journal.latents(3), latents[3])
    records = folder_of(video) / "records"
    with records.open("ab") as file:
        file.write(b"\1\2\3")
    size = records.stat().st_size
    with Journal(video, facts) as journal:
        assert records.stat().st_size == size - 3 and journal.num_blocks == 4 and not journal.note
        assert torch.equal(journal.latents(1), latents[1]) and journal.latents(4) is None
        assert journal.latents(2).dtype == torch.bfloat16
        assert journal.cues() == {1: (cue, True)}
        assert [journal.block(block).opens_scene for block in range(4)] == [False, True, False, False]
    os.truncate(records, size - 10)
    with Journal(video, facts) as journal:
        assert journal.num_blocks == 3
        journal.add(Block(3, latents[3], False))
    with Journal(video, facts) as journal:
        assert torch.equal(journal.latents(3), latents[3])


@pytest.mark.parametrize("flipped", [1, 5, 9, 200])
def test_any_damage_ends_a_journal_where_it_is(tmp_path, flipped) -> None:
    video = tmp_path / "v.mp4"
    with Journal(video, {}) as journal:
        journal.add(Block(0, ZEROS, True))
        begin = (folder_of(video) / "records").stat().st_size if journal.latents(0) is not None else 0
        journal.add(Block(1, ZEROS, False))
    records = folder_of(video) / "records"
    data = bytearray(records.read_bytes())
    data[begin + flipped] ^= 128
    records.write_bytes(data)
    with Journal(video, {}) as journal:
        assert journal.num_blocks == 1 and records.stat().st_size == begin


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run_with_a_sentence_and_it_goes_on_with_room(
    tmp_path, whole, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        fill_up_after(patch, GrowingFile, "_append", 5)
        assert main(command()) == 2
    said = capsys.readouterr().err
    assert "No space left on device; what was written before stays playable" in said
    assert count_frames("v.mp4") >= 45
    assert "goes on at 0:0" in goes_on(capsys, whole)


def test_without_room_for_the_journal_the_run_goes_on_and_after_a_kill_from_what_is_there(
    tmp_path, whole, capsys, monkeypatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        fill_up_after(patch, Journal, "_write", 6)
        cut_off(patch, 93)
    assert caplog.text.count("records cannot be written (No space left on device)") == 1
    assert "goes on at 0:03" in goes_on(capsys, whole)


def fill_up_after(patch, owner: type, name: str, calls: int) -> None:
    """Let that many calls of a method write, and all later ones find no room."""
    write, left = getattr(owner, name), [calls]

    def limited(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise FULL
        return write(self, *arguments)

    patch.setattr(owner, name, limited)


def test_without_room_for_a_state_the_run_goes_on(tmp_path, whole, capsys, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VideoState, "save", save_unless_snapshot)
    goes_on(capsys, whole)
    assert "the video goes on without this snapshot" in caplog.text


save = VideoState.save


def save_unless_snapshot(state: VideoState, path: str | Path) -> None:
    if "state-" in str(path):
        raise FULL
    save(state, path)


def test_what_was_not_recorded_cannot_be_read(tmp_path, monkeypatch) -> None:
    """A write that ends in the middle of a record, as with a nearly full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "v.mp4", {}) as journal:
        journal.add(Block(0, ZEROS, True))
        assert journal.latents(0) is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            for block in range(1, 9):
                journal.add(Block(block, ZEROS, False))
            with pytest.raises(OSError, match="block 8 is not in"):
                journal.latents(8)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(tmp_path / "v.mp4", {}) as journal:
        assert 0 < journal.num_blocks < 8 and torch.equal(journal.latents(0), ZEROS)


@pytest.mark.parametrize("kind", ["image", "extend", "video", "scene"])
def test_footage_is_gone_on_with(tmp_path, capsys, monkeypatch, kind) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["generate", "--prompt=a red circle drifts right over navy", "--seconds=0.6", "--out=c.mp4"])
        == 0
    )
    Path("schedule.txt").write_text(SCHEDULE)
    more = [f"--{kind}=c.mp4", *(["--with-source"] if kind == "extend" else [])]
    if kind == "scene":
        iio.imwrite("c.png", np.full((64, 64, 3), 99, np.uint8))
        scene = "2s image c.png: a green star rests over plum\n"
        monkeypatch.setitem(globals(), "SCHEDULE", SCHEDULE.partition("4s")[0] + scene)
        more = []
    main(command(*more, seconds=4))
    expected = contents()
    cut_off(monkeypatch, 48, *more, seconds=4)
    capsys.readouterr()
    assert list(folder_of("v.mp4").glob("state-*"))
    assert main(command(*more, seconds=4)) == 0
    assert contents() == expected and "goes on at 0:0" in capsys.readouterr().err


def test_a_batch_goes_on_in_the_middle_of_a_video(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schedule.txt").write_text(SCHEDULE)
    job = {"schedule": "schedule.txt", "seconds": 4, "snapshot_every": 1}
    jobs = [
        {"prompt": "a red circle drifts right over navy", "seconds": 0.5, "name": "a"},
        job | {"name": "b"},
    ]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    arguments = ["batch", "jobs.jsonl", "--out=out"]
    kill(monkeypatch, 48, arguments)
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.mp4",
        "b.mp4",
        "b.mp4.resume",
        "manifest.jsonl",
    ]
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "1 of 2 videos are finished already" in said and "goes on at 0:0" in said
    assert main(["generate", "--schedule=schedule.txt", "--seconds=4", "--out=b.mp4"]) == 0
    assert Path("out/b.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.mp4", "b.mp4", "manifest.jsonl"]


def test_what_a_kill_left_can_be_finished(left, whole, capsys) -> None:
    assert main(["finish", "v.mp4"]) == 0
    said = capsys.readouterr().out
    assert "v.mp4: " in said and "delete" in said
    assert not frames_kept(Path("v.mp4")) and read_settings("v.mp4")["schedule"].startswith("0")
    assert main(["finish", "v.mp4"]) == 2 and "finished already" in capsys.readouterr().err
    goes_on(capsys, whole)


def test_a_video_that_is_being_written_is_not_finished(tmp_path, capsys) -> None:
    writer = VideoWriter(tmp_path / "v.mp4", 64, 64)
    writer.append(torch.zeros(9, 64, 64, 3, dtype=torch.uint8).numpy())
    writer.flush()
    assert main(["finish", str(tmp_path / "v.mp4")]) == 2
    assert "another run is writing this file" in capsys.readouterr().err
    writer.close()
    (tmp_path / "w.mp4").write_bytes(b"no video")
    assert main(["finish", str(tmp_path / "w.mp4")]) == 2


def test_facts_are_of_all_that_decides_a_video(tmp_path) -> None:
    pipeline = load_pipeline()
    plan = pipeline.plan(generate.Request(generate.PromptSchedule.single("a"), 1.0))
    (tmp_path / "lora").write_bytes(b"1")
    facts = journals.facts_of(pipeline.settings(plan), plan, lora=[tmp_path / "lora"], past=torch.zeros(2))
    assert facts["threads"] == torch.get_num_threads() and facts["seed"] == 0
    (tmp_path / "lora").write_bytes(b"22")
    other = journals.facts_of(pipeline.settings(plan), plan, lora=[tmp_path / "lora"], past=torch.zeros(3))
    assert {name for name in facts if facts[name] != other[name]} == {"lora", "past"}
    assert journals.digest(facts) != journals.digest(other)
