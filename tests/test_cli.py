"""The longlive command on the packaged Mini: what it writes, what it prints, and what it refuses."""

import argparse
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from longlive_core import PromptSchedule, load_pipeline
from longlive_core.cli import build_parser, main
from longlive_core.cli.generate import request_from
from longlive_core.cli.options import lora
from longlive_core.config import MINI, VERSION
from longlive_core.mini.loader import WEIGHTS, load_mini
from longlive_core.model.attention import REMOVED
from longlive_core.output.contact_sheet import ContactSheet
from longlive_core.output.video import VideoWriter, read_settings
from longlive_core.pipeline import Request
from longlive_core.resume import VideoState
from longlive_core.rollout.rollout import Hook

pytestmark = pytest.mark.usefixtures("mini_once")
ROOT = Path(__file__).parent.parent
PROMPT = "a red circle drifts right over navy"
LARGER_THAN_A_VIDEO = 8_000  # bytes; of a second, and less than its contact sheet
COMMANDS = ("generate", "batch", "live", "share", "info", "plan", "download", "convert", "bench", "beats")


def num_video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 16 and stream.pix_fmt == "yuv420p"
        return sum(1 for _ in container.decode(stream))


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.3])
def test_a_video_has_exactly_the_frames_asked_for(tmp_path, seconds) -> None:
    out = tmp_path / "video.mp4"
    assert main(["generate", "--prompt", PROMPT, "--seconds", str(seconds), "--out", str(out)]) == 0
    assert num_video_frames(out) == round(seconds * 16)


def test_a_video_says_how_it_was_made(tmp_path, capsys) -> None:
    out, sheet, schedule = tmp_path / "v.mp4", tmp_path / "v.png", tmp_path / "s.txt"
    schedule.write_text(
        "always: a star,\n0:00 a red circle drifts right over navy\n1s => keep: it turns blue ✨ שלום\n"
    )
    arguments = ["generate", "--schedule", str(schedule), "--seconds", "2", "--seed", "7", "--out", str(out)]
    assert main([*arguments, "--contact-sheet", str(sheet)]) == 0
    assert sheet.stat().st_size > 1000
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (
        settings["seed"] == 7 and settings["seconds"] == 2 and settings["window"]["sink_latent_frames"] == 3
    )
    assert PromptSchedule.parse(settings["schedule"]) == PromptSchedule.parse(schedule.read_text("utf-8"))
    assert PromptSchedule.parse(settings["schedule"]).always == "a star,"


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_video_may_say_nothing_of_how_it_was_made(is_interrupted, tmp_path, monkeypatch, capsys) -> None:
    out, sheet = tmp_path / "v.mp4", tmp_path / "v.png"
    if is_interrupted:
        monkeypatch.setattr(ContactSheet, "append", fail(KeyboardInterrupt()))
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(out), "--no-metadata"]
    assert main([*arguments, "--contact-sheet", str(sheet)]) == (130 if is_interrupted else 0)
    assert num_video_frames(out) == (9 if is_interrupted else 16)
    for file in tmp_path.iterdir():
        assert not any(word in file.read_bytes().lower() for word in (b"circle", b"longlive", b"seed"))
    assert main(["info", str(out)]) == 2 and "has no LongLive settings" in capsys.readouterr().err


def test_same_seed_same_latents() -> None:
    pipeline = load_pipeline("mini")
    request = Request(PromptSchedule.single(PROMPT), 2.0, seed=3)
    one, other = ([c.block.latents for c in pipeline.run(pipeline.plan(request))] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_stream_yields_frames_as_they_are_made() -> None:
    chunks = list(load_pipeline("mini").stream(PROMPT, seconds=1.5, seed=0))
    assert [len(c) for c in chunks] == [9, 12, 3]
    assert chunks[0].shape[1:] == (64, 64, 3) and chunks[0].min() >= 0 and chunks[0].max() <= 1


class Steps(Hook):
    """Keeps the denoising steps made; raises at one of them, as ComfyUI interrupts a run."""

    def __init__(self, interrupt_at: tuple[int, int] | None = None):
        self.interrupt_at, self.made = interrupt_at, []

    def on_step(self, block: int, step: int, flow, clean) -> None:
        self.made.append((block, step))
        if self.made[-1] == self.interrupt_at:
            raise KeyboardInterrupt


def an_hour(hook):
    """Chunks of a long video."""
    pipeline = load_pipeline("mini")
    return pipeline.run(pipeline.plan(Request(PromptSchedule.single(PROMPT), 3600)), hook)


def test_an_interrupt_in_a_hook_ends_the_run_and_keeps_what_is_made() -> None:
    steps, taken = Steps(interrupt_at=(2, 1)), []
    with pytest.raises(KeyboardInterrupt):
        for chunk in an_hour(steps):
            taken.append(chunk.block.index)
    assert taken == [0, 1] and steps.made[-1] == (2, 1)


def test_a_caller_that_leaves_early_waits_for_no_block() -> None:
    steps = Steps()
    chunks = an_hour(steps)
    assert [next(chunks).block.index for _ in range(2)] == [0, 1]
    chunks.close()
    assert steps.made[-1] == (1, 3)


def as_in_a_terminal() -> None:
    """A shell's background jobs ignore SIGINT, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("signals", ["SIGINT", "SIGTERM", "SIGHUP SIGHUP SIGTERM"])
def test_interrupt_leaves_a_finished_file_and_exit_code_130(request, tmp_path, signals) -> None:
    """Ctrl-C, docker stop, and a terminal that is closed."""
    out, sheet = tmp_path / "long.mp4", tmp_path / "long.png"
    command = [sys.executable, "-m", "longlive_core", "generate", "--prompt", PROMPT, "--seconds", "3600"]
    command += ["--out", str(out), "--contact-sheet", str(sheet)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal
    )
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out.exists() and out.stat().st_size > 20_000):
        time.sleep(0.05)
    for name in signals.split():
        process.send_signal(getattr(signal, name))
    _, printed = process.communicate(timeout=60)
    count = num_video_frames(out)
    assert process.returncode == 130 and f"longlive: stopped; {out} keeps the first {count} frames" in printed
    assert count > 12 and b"moof" not in out.read_bytes() and sheet.read_bytes()[:4] == b"\x89PNG"


def test_signals_are_only_taken_while_a_video_is_made_and_if_nobody_else_did(tmp_path, monkeypatch) -> None:
    seen = []

    def look(*_) -> None:
        seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)])

    monkeypatch.setattr(VideoWriter, "append", look)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        main(["generate", "--prompt", PROMPT, "--seconds", "0.1", "--out", str(tmp_path / "v.mp4")])
        assert seen[0][1] == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert callable(seen[0][0]) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("seconds", "num_bytes", "kept"),
    [("0.5", 900, ""), ("20", 900, ""), ("20", 20_000, "; what was written before stays playable")],
)
def test_a_full_disk_is_one_sentence(tmp_path, seconds, num_bytes, kept, capsys) -> None:
    out, limits = tmp_path / "v.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    out.write_bytes(b"an earlier video")
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        assert main(["generate", "--prompt", PROMPT, "--seconds", seconds, "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"File too large{kept}: '{out}'" in capsys.readouterr().err
    assert num_video_frames(out) >= 9 if kept else out.read_bytes() == b"an earlier video"
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_two_runs_do_not_write_one_file(tmp_path, monkeypatch, capsys) -> None:
    """The second is refused before it loads a model, and the first loses nothing."""
    out = tmp_path / "v.mp4"
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(out)]
    with VideoWriter(out, 64, 64) as writer, monkeypatch.context() as patch:
        patch.setattr("longlive_core.cli.generate.load_pipeline", fail(AssertionError("loaded a model")))
        for _ in range(2):
            assert main(arguments) == 2
            assert "another run is writing this file" in capsys.readouterr().err
            writer.append(np.zeros((3, 64, 64, 3), np.uint8))
            writer.flush()
    assert num_video_frames(out) == 6
    assert main(arguments) == 0 and num_video_frames(out) == 16


def test_a_video_that_is_removed_while_it_is_written_is_not_reported(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "v.mp4"
    monkeypatch.setattr(ContactSheet, "append", lambda *_: out.exists() and out.unlink())
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "3", "--out", str(out)]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "moved, deleted or replaced while it was written" in printed.err and not printed.out
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4.resume"]


def test_a_failure_before_the_first_frame_leaves_no_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("longlive_core.rollout.noise.SeededNoise.__call__", not_a_number)
    sheet = tmp_path / "v.png"
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "2", "--out", str(tmp_path / "v.mp4")]
    assert main([*arguments, "--contact-sheet", str(sheet)]) == 2
    assert "block 0" in capsys.readouterr().err and not list(tmp_path.iterdir())
    (tmp_path / "v.mp4").write_bytes(b"an earlier video")
    assert main(arguments) == 2
    assert (tmp_path / "v.mp4").read_bytes() == b"an earlier video"


def not_a_number(noise, block: int, step: int) -> torch.Tensor:
    return torch.full(noise.shape, float("nan"))


def test_a_cue_of_a_continued_video_counts_from_its_beginning() -> None:
    timeline = PromptSchedule.parse("0s a\n0.75s b").resolve(3, 3.0, first_block=5)
    assert [(s.block, s.seconds) for s in timeline.segments] == [(0, 0.0), (1, 0.75)]


@pytest.mark.parametrize(("seconds", "endless"), [("10", False), ("300", True)])
def test_automatic_positions_also_with_a_window_of_ones_own(seconds, endless) -> None:
    options = build_parser().parse_args(["generate", "--prompt", "a", "--seconds", seconds, "--window", "9"])
    pipeline = load_pipeline("mini")
    assert pipeline.plan(request_from(options, pipeline.preset)).window.endless is endless


def test_longlive_alone_prints_help(capsys) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in COMMANDS)


def test_the_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"longlive {VERSION}\n"


def test_a_video_has_ten_seconds_unless_asked_otherwise() -> None:
    options = build_parser().parse_args(["generate", "--prompt", "a"])
    assert request_from(options, MINI).seconds == 10 and options.out == Path("longlive.mp4")


def test_a_download_that_is_missing_is_named(tmp_path, capsys) -> None:
    out, model = tmp_path / "v.mp4", ["--model", "longlive-1.3b", "--folder", str(tmp_path / "models")]
    assert main(["generate", "--prompt", "a", "--out", str(out), *model]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"longlive: longlive-1.3b needs {tmp_path / 'models'}")
    assert error.endswith(f"run longlive download longlive-1.3b --folder {tmp_path / 'models'}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", REMOVED)
@pytest.mark.parametrize("command", [["generate", "--prompt", PROMPT], ["bench"]], ids=lambda c: c[0])
def test_names_of_earlier_versions_are_replaced_with_a_note(command, attention, capsys) -> None:
    options = build_parser().parse_args([*command, "--speed", "graphs", "--attention", attention])
    assert (options.speed, options.attention) == ("compiled", "auto")
    notes = capsys.readouterr().err
    assert "speed graphs was replaced by compiled" in notes and f"attention {attention} was replaced" in notes


def test_a_video_is_made_with_an_attention_of_an_earlier_version(tmp_path, capsys) -> None:
    out = tmp_path / "v.mp4"
    old = ["--attention", "sdpa-flash", "--seconds", "0.1", "--out", str(out)]
    assert main(["generate", "--prompt", PROMPT, *old]) == 0
    assert capsys.readouterr().err.count("sdpa-flash was replaced by auto") == 1
    assert read_settings(out)["attention"] == "auto" and num_video_frames(out) == 2


@pytest.mark.parametrize(
    ("option", "allowed"), [("--speed", "plain, compiled"), ("--attention", "auto, sdpa, ")]
)
def test_an_unknown_speed_or_attention_names_those_that_exist(option, allowed, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "--prompt", PROMPT, option, "warp"])
    assert f"{option}: unknown " in (error := capsys.readouterr().err) and f"choose one of {allowed}" in error


BAD = {
    "--seconds 0": "more than 0",
    "--seconds -3": "more than 0",
    "--seconds nan": "more than 0",
    "--seconds inf": "more than 0",
    "--seconds 1e9": "at most",
    "--size 64x60": "multiples of 16",
    "--size 160000x160000": "at most 8192",
    "--window 4": "at least 6",
    "--sink 12": "a smaller sink",
    "--model nothing": "mini",
    "--out /nowhere/at/all.mp4": "cannot be written",
    "--attention flash2": "needs an NVIDIA GPU",
    "--window 0 --sink 2": "leave one of them out",
    "--contact-sheet sheet.xyz": "cannot be written as an image",
    "--contact-sheet sheet.psd": "cannot be written as an image",
    "--contact-sheet sheet.xbm": "cannot be written as an image",
    "--out v.webm": "ends in .mp4 or .m4v",
    "--out /dev/null": "no ordinary file",
    "--state /dev/null": "no ordinary file",
    "--precision int8": "--precision cannot be used with the built-in model mini",
    "--lora x.pt --tile 64 --text-encoder t": "--lora, --text-encoder, --tile cannot be used with",
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_options_are_one_clear_sentence(bad, tmp_path, capsys) -> None:
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(tmp_path / "v.mp4")]
    assert main([*arguments, *bad.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert BAD[bad] in error and "\n" not in error
    assert not (tmp_path / "v.mp4").exists()


@pytest.mark.parametrize("command", [["generate", "--prompt", PROMPT, "--seconds", "1"], ["plan"], ["bench"]])
def test_a_video_of_no_pixels_is_not_the_default(command, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--size", "0x0"])
    assert "'0x0' is not a size" in capsys.readouterr().err


def test_a_plan_knows_a_download_by_its_name(capsys) -> None:
    assert main(["plan", "--model", "sgf-plus"]) == main(["plan", "--model", "sgf-plus-chunkwise"]) == 0
    first, second = capsys.readouterr().out.strip().split("832x480")[1:]
    assert first.strip() == second.strip()


@pytest.mark.parametrize("vram", ["inf", "nan", "1e300", "-1"])
def test_a_gpu_has_a_memory_that_is_possible(vram, capsys) -> None:
    assert main(["plan", f"--vram={vram}"]) == 2
    assert "is not possible; choose more than 0" in capsys.readouterr().err


def fail(error: BaseException):
    def failing(*_, **__):
        raise error

    return failing


def test_a_sheet_that_fails_loses_neither_the_video_nor_its_state(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ContactSheet, "save", fail(KeyError("PNG")))
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--contact-sheet", "v.png"]
    assert main([*arguments, "--state", "a.state"]) == 2
    error = capsys.readouterr().err
    assert "the contact sheet v.png cannot be written ('PNG')" in error
    assert error.endswith("longlive: longlive.mp4 is complete, its contact sheet is missing\n")
    assert num_video_frames(Path("longlive.mp4")) == VideoState.load("a.state").num_frames == 16
    monkeypatch.setattr("longlive_core.cli.generate.Film._film", fail(OSError("no room")))
    assert main(arguments) == 2
    *_, note, error = capsys.readouterr().err.strip().splitlines()
    assert "contact sheet" in note and error == "longlive: no room"


def test_a_sheet_that_does_not_fit_the_disk_leaves_the_earlier_one(tmp_path, capsys) -> None:
    out, sheet, limits = tmp_path / "v.mp4", tmp_path / "v.png", resource.getrlimit(resource.RLIMIT_FSIZE)
    sheet.write_bytes(b"an earlier sheet")
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(out)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGER_THAN_A_VIDEO, limits[1]))
    try:
        assert main([*arguments, "--contact-sheet", str(sheet)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the contact sheet" in capsys.readouterr().err and num_video_frames(out) == 16
    assert sheet.read_bytes() == b"an earlier sheet"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.mp4", "v.png"]


def test_a_sheet_is_written_where_its_link_leads(tmp_path) -> None:
    target, link = tmp_path / "sheet.png", tmp_path / "link.png"
    link.symlink_to(target.name)
    sheet = ContactSheet(1)
    sheet.append(np.zeros((1, 64, 64, 3), np.uint8))
    sheet.save(link)
    assert link.is_symlink() and target.read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_ctrl_c_says_what_is_kept_and_what_is_not(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "3", "--out", "v.mp4"]
    monkeypatch.setattr(ContactSheet, "append", fail(KeyboardInterrupt()))
    assert main([*arguments, "--state", "a.state"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "longlive: stopped; v.mp4 keeps the first 9 frames; a.state was not written"
    monkeypatch.setattr(VideoWriter, "append", fail(KeyboardInterrupt()))
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith("longlive: stopped; nothing was made yet\n")


def test_a_video_is_made_also_where_its_progress_cannot_be_shown(tmp_path, monkeypatch) -> None:
    class Broken(io.StringIO):
        write = flush = fail(BrokenPipeError(32, "Broken pipe"))

    out = tmp_path / "v.mp4"
    for stderr in (Broken(), None):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(out)]) == 0
        assert num_video_frames(out) == 16
        out.unlink()
        assert main(["generate", "--prompt", PROMPT, "--seconds", "-1", "--out", str(out)]) == 2


def test_a_lora_has_a_strength_that_is_a_number() -> None:
    assert lora("C:/style.pt").path == Path("C:/style.pt") and lora("style.pt:0.5").strength == 0.5
    for text in ("style.pt:nan", "style.pt:inf"):
        with pytest.raises(argparse.ArgumentTypeError, match="choose a number"):
            lora(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("0:00 a\n5x b", "line 2"),
        ("3s a", "0"),
        ("0s a\n9s b\n1s c", "line 3"),
        ("0s a\n-1s b", "line 2"),
    ],
)
def test_bad_schedules_are_one_clear_sentence(text, says, tmp_path, capsys) -> None:
    schedule = tmp_path / "s.txt"
    schedule.write_text(text)
    code = main(["generate", "--schedule", str(schedule), "--seconds", "2", "--out", str(tmp_path / "v.mp4")])
    assert code == 2 and says in capsys.readouterr().err


def test_a_schedule_that_is_not_text_or_not_there(tmp_path, capsys) -> None:
    (tmp_path / "s.txt").write_bytes(os.urandom(500) + b"\xff\xfe\xff")
    for name in ("s.txt", "missing.txt"):
        assert main(["generate", "--schedule", str(tmp_path / name), "--seconds", "2"]) == 2
    assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", ["0 a café".encode("cp1252"), "0 a".encode("utf-16"), b"0\0 \0a\0"], ids=repr
)
def test_text_of_windows_editors_is_to_be_saved_as_utf_8(data, tmp_path, capsys, monkeypatch) -> None:
    file = tmp_path / "s.txt"
    file.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    for source in (str(file), "-"):
        assert (
            main(["generate", "--schedule", source, "--seconds", "1", "--out", str(tmp_path / "v.mp4")]) == 2
        )
        error = capsys.readouterr().err
        assert error.startswith("longlive: ") and error.endswith("; save it as UTF-8\n") and "\0" not in error


def test_a_schedule_comes_from_standard_input(tmp_path, monkeypatch) -> None:
    text = "\ufeff0:00 a red circle\r\n1s => it turns blue ✨\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "cp1252"))
    out = tmp_path / "v.mp4"
    assert main(["generate", "--schedule", "-", "--seconds", "1.5", "--out", str(out)]) == 0
    assert PromptSchedule.parse(read_settings(out)["schedule"]) == PromptSchedule.parse(text)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other", "missing"])
def test_damaged_weights_are_one_clear_sentence(damage, tmp_path) -> None:
    data, file = bytearray(WEIGHTS.read_bytes()), tmp_path / "mini.safetensors"
    if damage == "flipped":
        data[9:40] = b"\x00" * 31
    contents = {"truncated": data[: len(data) // 2], "empty": b"", "other": b"not a model at all"}
    if damage != "missing":
        file.write_bytes(contents.get(damage, data))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_mini(file)


def test_info_of_other_files_says_so(tmp_path, capsys) -> None:
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    assert main(["info", str(tmp_path / "x.mp4")]) == 2
    assert main(["info", str(tmp_path / "none.mp4")]) == 2
    assert "longlive:" in capsys.readouterr().err


HOSTILE = {
    "[" * 100_000: "no JSON",
    '{"a":' * 100_000: "no JSON",
    '{"a": ' + "[" * 5000 + "]" * 5000 + "}": "no JSON|nested too deeply",  # by the version of Python
    "hello": "no JSON",
    "": "no JSON",
    "{": "no JSON",
    '{"seed": ' + "9" * 5000 + "}": "no JSON",
    "[]": "another kind",
    "null": "another kind",
    "7": "another kind",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:12]} {len(text)}")
def test_hostile_metadata_is_one_sentence_with_the_name_of_the_file(
    text, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(VideoWriter, "describe", lambda self, _: self._metadata.update(longlive=text))
    with VideoWriter(tmp_path / "evil.mp4", 64, 64) as writer:
        writer.append(np.zeros((2, 64, 64, 3), np.uint8))
    assert main(["info", str(tmp_path / "evil.mp4")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("longlive: ") and error.count("\n") == 1 and len(error) < 500
    assert f"{tmp_path / 'evil.mp4'} " in error and re.search(HOSTILE[text], error)


def test_cues_beyond_the_end_warn_and_the_video_is_made(tmp_path, capsys) -> None:
    schedule, out = tmp_path / "prompts.txt", tmp_path / "out.mp4"
    schedule.write_text(f"0 {PROMPT}\n5s => it rests\n9s => it turns blue\n")
    assert main(["generate", "--schedule", str(schedule), "--seconds", "1", "--out", str(out)]) == 0
    assert "2 cues after 0:01 are not played\n" in capsys.readouterr().err and num_video_frames(out) == 16
    whole = PromptSchedule.parse(read_settings(out)["schedule"])
    assert len(whole.cues) == 3, "a longer video can be made from it"


def test_ten_thousand_cues(tmp_path) -> None:
    text = "\n".join(f"{i / 100}s {PROMPT}" for i in range(10_000))
    timeline = PromptSchedule.parse(text).resolve(3, 100.0)
    assert len(timeline.segments) == 134 and timeline.warnings


def test_a_continued_video_has_the_frames_asked_for() -> None:
    pipeline = load_pipeline("mini")
    schedule = PromptSchedule.single(PROMPT)
    first = torch.cat([c.block.latents for c in pipeline.run(pipeline.plan(Request(schedule, 3.0)))], dim=2)
    chunks = list(pipeline.run(pipeline.plan(Request(schedule, 2.0, past=first))))
    assert [len(c.frames) for c in chunks] == [12, 12, 8]
    assert [c.block.index for c in chunks] == [5, 6, 7] and not chunks[0].block.opens_scene


def test_any_clip_is_continued_and_what_cannot_be_is_one_sentence() -> None:
    """Any number of latent frames, a single image's too; sizes are in pixels."""
    pipeline, schedule = load_pipeline("mini"), PromptSchedule.single(PROMPT)
    clip = torch.randn(1, 16, 20, 8, 8, generator=torch.Generator().manual_seed(1))
    for length in (20, 13, 3, 1):
        chunks = pipeline.run(pipeline.plan(Request(schedule, 1.0, past=clip[:, :, -length:])))
        assert sum(len(chunk.frames) for chunk in chunks) == 16
    size = "the earlier video is 64x64, this one 96x64; set width and height to 64$"
    for past, width, sentence in (
        (clip, 96, size),
        (
            clip[..., :6],
            None,
            "the earlier video is 48x64, this one 64x64; set width and height to 48 and 64$",
        ),
        (clip[:, :, :0], None, "cannot be continued: expected"),
        (clip[0], None, "cannot be continued: expected"),
        (clip[:, :4], None, "cannot be continued: expected"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pipeline.plan(Request(schedule, 2.0, width=width, past=past))


def test_the_schedule_is_never_overwritten(tmp_path, capsys) -> None:
    schedule = tmp_path / "prompts.txt"
    schedule.write_text(PROMPT)
    for option in ("--out", "--contact-sheet"):
        arguments = ["generate", "--schedule", str(schedule), "--seconds", "1", option, str(schedule)]
        assert main(arguments) == 2
        assert "the schedule itself" in capsys.readouterr().err
    assert schedule.read_text() == PROMPT


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_no_other_name_of_a_file_that_is_read_is_overwritten(tmp_path, link, capsys) -> None:
    """A link of either kind to the schedule, the state, a checkpoint, a LoRA or a VAE."""
    one, other = tmp_path / "one.file", tmp_path / "other.mp4"
    one.write_bytes(b"0 a red circle")
    link(one, other)
    arguments = ["generate", "--prompt", PROMPT, "--seconds", "1", "--out", str(tmp_path / "v.mp4")]
    reads = {
        "state": "--resume",
        "earlier video": "--with-source",
        "model": "--model",
        "VAE": "--vae",
        "text encoder": "--text-encoder",
    }
    for name, option in (reads | {"LoRA": "--lora"}).items():
        for write in ("--out", "--state"):
            assert main([*arguments, option, str(one), write, str(other)]) == 2
            assert f"other.mp4 is the {name} itself" in capsys.readouterr().err
    assert main(["generate", "--schedule", str(one), "--seconds", "1", "--out", str(other)]) == 2
    assert "other.mp4 is the schedule itself" in capsys.readouterr().err
    assert main([*arguments, "--state", str(one), "--contact-sheet", str(other)]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert one.read_bytes() == b"0 a red circle" and len(list(tmp_path.iterdir())) == 2


def test_a_part_is_not_overwritten_by_the_next_unless_it_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    made = ["generate", "--prompt", PROMPT, "--seconds", "1"]
    assert main([*made, "--state", "a.state"]) == 0
    part = Path("longlive.mp4").read_bytes()
    assert main([*made, "--resume", "a.state"]) == 2
    assert "name another file with --out" in capsys.readouterr().err
    assert Path("longlive.mp4").read_bytes() == part
    assert main([*made, "--resume", "a.state", "--out", "longlive.mp4"]) == 0
    assert Path("longlive.mp4").read_bytes() != part
    Path("longlive.mp4").unlink()
    assert main([*made, "--resume", "a.state"]) == 0 and Path("longlive.mp4").exists()


def test_all_scripts_come_out_of_a_pipe_of_windows(tmp_path, monkeypatch) -> None:
    """There Python gives a pipe an encoding that knows few letters."""
    out = tmp_path / "v.mp4"
    assert main(["generate", "--prompt", "دائرة a red circle 🔴", "--seconds", "0.1", "--out", str(out)]) == 0
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="cp1252"))
    assert main(["info", str(out)]) == 0
    sys.stdout.flush()
    assert "دائرة a red circle 🔴" in json.loads(pipe.getvalue().decode())["schedule"]


STEERING = "\x1b]0;owned\a\x08\x9b31m\u202e\r\x7f"


def is_shown(text: str) -> bool:
    """Whether nothing in a text steers a terminal; a progress bar goes back to the beginning of its line."""
    return all(c.isprintable() or c in "\n\r" for c in text) and "owned" in text


def test_what_could_steer_a_terminal_is_escaped_everywhere(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"v{STEERING}\n.mp4"
    made = ["generate", "--prompt", f"a red {STEERING} circle", "--seconds", "0.1"]
    assert main([*made, "--out", out, "--state", "a.state"]) == 0
    shown = capsys.readouterr()
    assert is_shown(shown.err) and is_shown(shown.out) and "\\x1b]0;owned\\x07\\x08\\x9b31m" in shown.err
    assert shown.out == "v\\x1b]0;owned\\x07\\x08\\x9b31m\\u202e\\r\\x7f\\n.mp4: 2 frames\n"
    assert main(["info", out]) == 0
    shown = capsys.readouterr().out
    assert is_shown(shown) and STEERING.rstrip("\r\x7f") in json.loads(shown)["schedule"]
    state = VideoState.load("a.state")
    replace(state, model=f"mini{STEERING}").save("b.state")
    Path("s.txt").write_text(f"0 a\n{STEERING[:-2]} b")
    for wrong in (
        ["info", f"none{STEERING}\n.mp4"],
        ["generate", "--prompt", "a", "--model", STEERING],
        ["generate", "--schedule", "s.txt"],
        ["generate", "--prompt", "a", "--seconds", "1", "--resume", "b.state", "--out", "w.mp4"],
        ["live", "--server", f"http://127.0.0.1:9/{STEERING}", "--stop"],
    ):
        assert main(wrong) == 2, wrong
        error = capsys.readouterr().err
        assert is_shown(error) and error.startswith("longlive: ") and error.count("\n") == 1, error
    with pytest.raises(SystemExit):
        main(["plan", STEERING])
    assert is_shown(capsys.readouterr().err)


def test_joiners_and_marks_of_scripts_are_shown(capsys) -> None:
    words = "یم‌گ \u200fא 👨\u200d👩"
    assert main(["info", words]) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_fit_any_memory_is_one_sentence_too(tmp_path, capsys) -> None:
    out = str(tmp_path / "v.mp4")
    day = ["--window", "0", "--seconds", "86400", "--size", "1024x1024"]
    assert main(["generate", "--prompt", PROMPT, "--out", out, *day]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "does not fit the memory" in last and "choose a smaller --size" in last
