"""longlive batch on the packaged Mini: what it makes, skips and refuses, and what it notes."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longlive_core.cli import main
from longlive_core.cli.generate import load_pipeline
from longlive_core.output.contact_sheet import ContactSheet
from longlive_core.output.growing import open_locked
from longlive_core.output.manifest import Manifest
from longlive_core.output.video import VideoWriter, count_frames, read_settings
from longlive_core.rollout.noise import SeededNoise

pytestmark = pytest.mark.usefixtures("mini_once")
PROMPT = "a red circle drifts right over navy"
LOADER = "longlive_core.cli.generate.load_pipeline"
JOB = {"prompt": PROMPT, "seconds": 0.5}
NAN_SEED = 13


@pytest.fixture
def loads(monkeypatch) -> list:
    """An entry for each time that a model is loaded."""
    made = []

    def load(*given, **options):
        made.append(options)
        return load_pipeline(*given, **options)

    monkeypatch.setattr(LOADER, load)
    return made


@pytest.fixture
def one_seed_fails(monkeypatch) -> None:
    """The noise of one seed is no number."""
    noise = SeededNoise.__call__

    def failing(self, block: int, step: int) -> torch.Tensor:
        made = noise(self, block, step)
        return made * torch.nan if self.seed == NAN_SEED else made

    monkeypatch.setattr(SeededNoise, "__call__", failing)


def batch(folder: Path, *jobs: dict | str, out: str = "out") -> int:
    """Run the jobs, which are written to the folder, as a batch."""
    lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    (folder / "jobs.jsonl").write_text("\n".join(lines), "utf-8")
    return main(["batch", str(folder / "jobs.jsonl"), "--out", str(folder / out)])


def noted(folder: Path) -> list[dict]:
    lines = (folder / "out" / "manifest.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def image(path: Path) -> Path:
    Image.fromarray(np.full((64, 64, 3), (20, 30, 90), np.uint8)).save(path)
    return path


def twenty(folder: Path) -> list[dict]:
    """Jobs of all kinds, three of them bad in ways that only show when they are made."""
    (folder / "in").mkdir()
    image(folder / "in" / "a.png")
    (folder / "in" / "s.txt").write_text(f"0s {PROMPT}\n0.5s it turns blue\n")
    with VideoWriter(folder / "in" / "v.mp4", 64, 64) as writer:
        writer.append(np.full((12, 64, 64, 3), 90, np.uint8))
    jobs = [JOB | {"seed": seed, "name": f"seed {seed}"} for seed in range(1, 15)]  # one is NAN_SEED
    jobs += [
        {"schedule": "in/s.txt", "seconds": 1, "name": "timed.mp4", "contact_sheet": "timed.png"},
        JOB | {"image": "in/a.png", "name": "begun", "on-switch": "keep", "size": "64x64"},
        JOB | {"extend": "in/v.mp4", "with_source": True, "name": "joined"},
        {"prompt": PROMPT, "video": "in/v.mp4", "strength": 0.5, "seconds": None},
        JOB | {"image": "in/v.mp4", "name": "no longer than its beginning"},
        {"schedule": "in/cut.txt", "seconds": 0.5, "image": "in/a.png", "name": "cut at once"},
    ]
    (folder / "in" / "cut.txt").write_text(f"0s cut: {PROMPT}")
    return jobs


def test_bad_jobs_stop_no_others_and_what_is_finished_is_skipped(
    tmp_path, monkeypatch, capsys, loads, one_seed_fails
) -> None:
    jobs, out = twenty(tmp_path), tmp_path / "out"
    assert batch(tmp_path, *jobs) == 1 and len(loads) == 1
    printed = capsys.readouterr()
    *_, first, second, third = printed.err.strip().splitlines()
    assert f"jobs.jsonl, line {NAN_SEED}: seed {NAN_SEED}.mp4 failed: " in first and "block 0" in first
    assert "line 19" in second and "already contains" in second and "line 20" in third and "cuts" in third
    assert "17 of 20 videos are finished" in printed.out and "20 of 20: cut at once.mp4" in printed.err
    records = noted(tmp_path)
    assert [one["line"] for one in records] == [*range(1, 21)]
    good = [one for one in records if not one["error"]]
    assert [one["line"] for one in good] == [*range(1, 13), *range(14, 19)]
    assert all(count_frames(out / one["file"]) == one["frames"] == one["seconds"] * 16 for one in good)
    assert [one["frames"] for one in good] == [8] * 13 + [16, 8, 20, 12]
    assert records[2]["name"] == "seed 3" and records[2]["seed"] == 3 and good[-1]["file"] == "0018.mp4"
    assert (out / "timed.png").exists() and len({one["hash"] for one in records}) == 20

    capsys.readouterr()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.mp4")}
    assert batch(tmp_path, *jobs) == 1  # only the three are tried again
    assert [one["line"] for one in noted(tmp_path)[20:]] == [13, 19, 20]
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.mp4")} == kept

    fine = [job for number, job in enumerate(jobs, 1) if number not in (13, 18, 19, 20)]
    loads.clear()
    assert batch(tmp_path, *fine) == 0 and not loads and len(noted(tmp_path)) == 23
    assert "16 of 16 videos are finished" in capsys.readouterr().out

    (out / "seed 3.mp4").unlink()
    (out / "timed.png").unlink()
    (out / "seed 5.mp4").write_bytes((out / "seed 5.mp4").read_bytes()[:-2000])
    assert batch(tmp_path, *fine) == 0 and len(loads) == 1
    assert [one["file"] for one in noted(tmp_path)[23:]] == ["seed 3.mp4", "seed 5.mp4", "timed.mp4"]


def test_a_video_is_the_one_that_generate_makes(tmp_path) -> None:
    assert batch(tmp_path, JOB | {"seed": 1, "name": "other"}, "", JOB | {"seed": 3, "name": "one"}) == 0
    alone = tmp_path / "alone.mp4"
    assert main(["generate", "--prompt", PROMPT, "--seconds", "0.5", "--seed", "3", "--out", str(alone)]) == 0
    assert alone.read_bytes() == (tmp_path / "out" / "one.mp4").read_bytes()
    assert [one["line"] for one in noted(tmp_path)] == [1, 3]


def test_what_decides_the_result_has_it_made_again(tmp_path, monkeypatch) -> None:
    schedule = tmp_path / "s.txt"
    schedule.write_text(PROMPT)
    timed = {"schedule": "s.txt", "seconds": 0.5, "name": "a"}
    assert batch(tmp_path, timed) == batch(tmp_path, timed) == 0 and len(noted(tmp_path)) == 1
    schedule.write_text("it turns blue")
    assert batch(tmp_path, timed) == 0 and len(noted(tmp_path)) == 2
    assert "blue" in read_settings(tmp_path / "out" / "a.mp4")["schedule"]
    for change in ({"seed": 1}, {"no_metadata": True}, {"steps": 3}, {"contact_sheet": "a.png"}):
        assert batch(tmp_path, timed | change) == 0
    monkeypatch.setattr("longlive_core.cli.jobs.VERSION", "another")
    assert batch(tmp_path, timed | change) == 0
    assert len(noted(tmp_path)) == len({one["hash"] for one in noted(tmp_path)}) == 7


WRONG = {
    '{"prompt": "a", ': "this is no JSON",
    '["a"]': "this is no object",
    '{"promt": "a", "sede": 1}': "unknown option 'promt', 'sede'",
    '{"prompt": "a", "out": "b.mp4"}': "unknown option 'out'",
    '{"seconds": 1}': "one of the arguments --schedule --prompt is required",
    '{"prompt": "a", "schedule": "s.txt"}': "not allowed with",
    '{"prompt": "a", "seconds": "1"}': 'seconds cannot be "1"',
    '{"prompt": "a", "seconds": "long"}': "invalid float value",
    '{"prompt": "a", "seconds": [1, 2]}': "argument --seconds",
    '{"prompt": "a", "seconds": false}': "seconds cannot be false",
    '{"prompt": "a", "seed": 1.5}': "invalid int value",
    '{"prompt": "a", "seed": true}': "argument --seed: expected one argument",
    '{"prompt": 5}': "prompt cannot be 5",
    '{"prompt": {"0s": "a"}}': "prompt cannot be {",
    '{"prompt": "a", "no_metadata": "no"}': "argument --no-metadata",
    '{"prompt": "a", "steps": 9}': "argument --steps: invalid choice",
    '{"prompt": "a", "size": "64"}': "not a size",
    '{"prompt": "a", "size": "64x60"}': "multiples of 16",
    '{"prompt": "a", "seconds": -1}': "more than 0",
    '{"prompt": "a", "window": 4}': "at least 6",
    '{"schedule": "none.txt"}': "none.txt",
    '{"schedule": "-"}': "No such file",
    '{"schedule": "jobs.jsonl"}': "",
    '{"prompt": "a", "image": "none.png"}': "none.png does not exist",
    '{"prompt": "a", "image": "text.png"}': "text.png",
    '{"prompt": "a", "audio": "text.png"}': "text.png",
    '{"prompt": "a", "resume": "text.png"}': "text.png",
    '{"prompt": "a", "reference": ["text.png"]}': "text.png",
    '{"prompt": "a", "strength": 0.5}': "--strength is of --video",
    '{"prompt": "a", "video": "out/good.mp4"}': "is written by line 1",
    '{"prompt": "a", "name": "good"}': "good.mp4 is also written by line 1",
    '{"prompt": "a", "name": "GOOD.mp4"}': "GOOD.mp4 is also written by line 1",
    '{"prompt": "a", "state": "Manifest.jsonl"}': "also written by the manifest",
    '{"prompt": "a", "model": "other"}': "model is of the model, which all jobs share",
    '{"prompt": "a", "precision": "fp8"}': "precision is of the model",
    '{"prompt": "a", "contact_sheet": "a.xyz"}': "cannot be written as an image",
    **dict.fromkeys(
        (json.dumps({"prompt": "a", "name": name}) for name in ("b/c", "../c", "/c", "b\\c", "", "..", 3)),
        "is not the name of a file",
    ),
    '{"prompt": "a", "state": "b/c"}': "is not the name of a file",
}


def test_all_that_is_wrong_is_reported_at_once_before_anything_starts(tmp_path, capsys, loads) -> None:
    (tmp_path / "text.png").write_text("no image")
    good = JOB | {"name": "good", "model": "mini", "precision": "bf16"}
    assert batch(tmp_path, good, *WRONG) == 2 and not loads
    *lines, last = capsys.readouterr().err.strip().splitlines()
    path = tmp_path / "jobs.jsonl"
    assert last == f"longlive: {path} has {len(WRONG)} bad lines; nothing was begun"
    assert len(lines) == len(WRONG)
    for number, (line, sentence) in enumerate(zip(lines, WRONG.values(), strict=True), 2):
        assert line.startswith(f"{path}, line {number}: ") and sentence in line
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["manifest.jsonl"] and not noted(tmp_path)


@pytest.mark.parametrize("jobs", [(), ("", " ")])
def test_a_file_without_jobs_is_refused(jobs, tmp_path, capsys) -> None:
    assert batch(tmp_path, *jobs) == 2 and "has no jobs" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_made_and_the_next_run_makes_the_rest(tmp_path, monkeypatch, capsys) -> None:
    jobs = [{"prompt": PROMPT, "seconds": 1, "name": name, "seed": 2} for name in "abc"]
    append = ContactSheet.append
    calls = []

    def interrupted(self, frames) -> None:
        calls.append(len(frames))
        if len(calls) == 3:  # the first block of the second video
            raise KeyboardInterrupt
        append(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(ContactSheet, "append", interrupted)
        assert batch(tmp_path, *jobs) == 130
    stopped = capsys.readouterr().err.strip().splitlines()[-1]
    out = tmp_path / "out"
    assert stopped.startswith(f"longlive: stopped; {out / 'b.mp4'} keeps the first 9 frames; run the same")
    assert count_frames(out / "a.mp4") == 16 and count_frames(out / "b.mp4") == 9
    assert [one["file"] for one in noted(tmp_path)] == ["a.mp4"]
    assert batch(tmp_path, *jobs) == 0
    assert [one["file"] for one in noted(tmp_path)] == ["a.mp4", "b.mp4", "c.mp4"]
    assert (out / "a.mp4").read_bytes() == (out / "b.mp4").read_bytes() == (out / "c.mp4").read_bytes()


def test_an_error_that_nobody_expected_is_noted_too(tmp_path, monkeypatch, capsys) -> None:
    def failing(*_) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(ContactSheet, "append", failing)
    assert batch(tmp_path, JOB, JOB | {"seed": 1}) == 1
    assert [one["error"] for one in noted(tmp_path)] == ["KeyError: 'bug'"] * 2


def test_two_batches_do_not_share_a_folder(tmp_path, capsys, loads) -> None:
    assert batch(tmp_path, JOB | {"name": "a"}) == 0
    with open_locked(tmp_path / "out" / "manifest.jsonl"):
        assert batch(tmp_path, JOB | {"name": "b"}) == 2
    assert "another run is writing this file" in capsys.readouterr().err and len(loads) == 1


def test_a_line_is_in_the_manifest_or_it_is_not(tmp_path) -> None:
    """After a crash in the middle of a line, and on a full disk."""
    path, limits = tmp_path / "manifest.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b'{"file": "a.mp4"}\n["no object"]\n{"file": "b.m')
    with Manifest(path) as manifest:
        manifest.add({"file": "c.mp4", "error": "\ud800 and 青"})
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
        try:
            with pytest.raises(OSError, match=r"manifest\.jsonl"):
                manifest.add({"file": "d.mp4"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        manifest.add({"file": "e.mp4"})
    lines = path.read_text("utf-8").splitlines()
    assert lines[2] == '{"file": "b.m' and json.loads(lines[3])["error"] == "\ud800 and 青"
    assert [json.loads(line)["file"] for line in lines[3:]] == ["c.mp4", "e.mp4"]
