"""Watching a tuning run: the critic's alarm, TensorBoard, sample videos."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from longlive_core.config import LONGLIVE_1_3B
from longlive_core.output.video import read_settings
from longlive_core.pipeline import Pipeline
from longlive_core.plan import Request
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.vae_files import load_vae
from longlive_training.distil.loop import Tuning
from longlive_training.distil.run import Run
from longlive_training.distil.watch import CriticAlarm, Samples, Watch
from tests.test_distil import embeds, options, run_command, same, small_tuning, weights_of  # noqa: F401


def losses_of(*levels: tuple[float, int]) -> list[float]:
    """So many losses about each level, as noisy as those of single clips."""
    drawn = random.Random(0)
    return [level * drawn.lognormvariate(0, 0.4) for level, count in levels for _ in range(count)]


def alarms(losses: list[float]) -> list[int]:
    """In which iterations, from 1, the alarm is given."""
    alarm = CriticAlarm()
    return [step for step, loss in enumerate(losses, 1) if alarm(loss)]


def test_an_exploding_critic_is_reported_once_and_soon() -> None:
    assert not alarms(losses_of((0.5, 3000)))
    assert not alarms(losses_of((2.0, 30), (0.5, 500), (1.0, 500))), "it sinks, and it doubles"
    assert not alarms([0.5] * 100 + [50.0] * 3 + [0.5] * 100), "some single clips"
    (found,) = alarms(losses_of((0.5, 200), (4.0, 300)))
    assert 200 < found <= 210
    first, second = alarms(losses_of((0.5, 100), (4.0, 30), (0.5, 100), (4.0, 30)))
    assert 100 < first <= 110 and 230 < second <= 240
    growing = [0.5 * 1.05 ** max(0, step - 100) for step in range(400)]
    assert len(alarms(growing)) == 1


def test_the_log_and_stderr_have_the_warning_also_after_a_resume(tmp_path: Path, monkeypatch, capsys) -> None:
    """An explosion that begins before a run is stopped is found, once, after it is resumed."""
    losses = [0.5] * 20 + [4.0] * 20

    def exploding(tuning: Tuning) -> dict[str, float]:
        tuning.step += 1
        return {"critic_loss": losses[tuning.step - 1]}

    Run(small_tuning(), tmp_path, "digest").train(1, save_every=1)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "critic_loss": 0.5}\n')
    monkeypatch.setattr(Tuning, "iteration", exploding)
    monkeypatch.setattr("longlive_training.distil.watch.FEWEST", 4)
    Run(small_tuning(), tmp_path, "digest").train(22, save_every=22)
    assert "explodes" not in capsys.readouterr().err
    Run(small_tuning(), tmp_path, "digest").train(26, save_every=26)
    warned = [line for line in map(json.loads, (tmp_path / "log.jsonl").open()) if "warning" in line]
    assert [line["step"] for line in warned] == [24] and "lower rates" in warned[0]["warning"]
    assert capsys.readouterr().err.count("iteration 24: the critic's loss explodes: 2.25, 4.5 times") == 1
    Run(small_tuning(), tmp_path, "digest").train(27, save_every=27)
    assert "explodes" not in capsys.readouterr().err


def test_tensorboard_that_is_missing_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ValueError, match=r"^--tensorboard needs a package .* pip install tensorboard, or leave"
    ):
        Watch(tmp_path, 0, has_tensorboard=True)


def test_tensorboard_has_every_figure_once(tmp_path: Path) -> None:
    """What was shown after the checkpoint that is resumed is shown again, not twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (2, 3):
        run = Run(small_tuning(), tmp_path, "digest")
        watch = Watch(tmp_path, run.tuning.step, has_tensorboard=True)
        run.train(steps, 9, watch)
        if steps == 2:
            watch.look(3, {"critic_loss": 9.0})  # of a process that was killed before it saved
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.step for event in shown.Scalars("critic_loss")] == [1, 2, 3]
    assert shown.Scalars("critic_loss")[-1].value == pytest.approx(log[-1]["critic_loss"])
    assert "student_norm" in shown.Tags()["scalars"]


def samples(tuning: Tuning, folder: Path) -> Samples:
    pipeline = Pipeline(LONGLIVE_1_3B, tuning.student.model, tuning.autoencoder, embeds)
    request = Request(PromptSchedule.parse("a red circle"), 1.0, width=16, height=16)
    return Samples(pipeline, pipeline.plan(request), 2, folder / "samples")


def test_samples_change_nothing_of_a_run_and_prevent_nothing(tmp_path: Path, capsys) -> None:
    """Not where a sample cannot be written either."""
    runs = {name: Run(small_tuning(), tmp_path / name, "digest") for name in ("with", "without", "full")}
    for name, run in runs.items():
        watch = Watch(run.folder, 0, samples=None if name == "without" else samples(run.tuning, run.folder))
        if name == "full":
            (run.folder / "samples").write_text("in the way")
        run.train(2, 9, watch)
    logs = {name: (run.folder / "log.jsonl").read_text() for name, run in runs.items()}
    assert len({*logs.values()}) == 1
    assert same(weights_of(runs["with"].tuning), weights_of(runs["without"].tuning))
    assert [path.name for path in (tmp_path / "with" / "samples").iterdir()] == ["step-000002.mp4"]
    assert "iteration 2: no sample video: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        ("0 => a", {"sample-every": 0}, "--sample-every 0 is not possible"),
        ("0 => a\n1:99 b", {}, r"timeline.txt: line 2, column 1: .*1:99"),
        ("0 => a", {"sample-seconds": -1}, "a video of -1.0 seconds is not possible"),
        (None, {}, "cannot be read as a text file"),
    ],
)
def test_samples_that_cannot_be_are_refused(options, tmp_path, monkeypatch, text, more, sentence) -> None:  # noqa: F811
    timeline = tmp_path / "timeline.txt"
    if text:
        timeline.write_text(text)
    with pytest.raises(SystemExit, match=sentence):
        run_command(monkeypatch, "distil", **options, rank=2, longest=39, sample=timeline, **more)


def test_a_sample_is_what_inference_makes_of_the_lora(options, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    """The command's video, and that of the converted LoRA merged into the student's file."""
    timeline = tmp_path / "timeline.txt"
    timeline.write_text("0 => a red circle\n1s => it turns blue")
    made, push = [], Pipeline.run
    monkeypatch.setattr(Pipeline, "run", lambda *at: (made.append(c.frames) or c for c in push(*at)))
    more = {"sample": timeline, "sample-every": 1, "sample-seconds": 2.0}
    run_command(monkeypatch, "distil", **options, rank=2, longest=39, lr=0.1, **more)
    folder = options["folder"]
    settings = read_settings(folder / "samples" / "step-000001.mp4")
    assert settings["training_step"] == 1 and settings["schedule"].startswith("0s => a red circle")
    student = load_transformer(options["model"], [LoraChoice(folder / "lora.pt")], "fp32").transformer
    vae = load_vae(options["vae"], torch.float32, torch.device("cpu"))
    pipeline = Pipeline(LONGLIVE_1_3B, student, vae, embeds)
    schedule = PromptSchedule.parse(timeline.read_text())
    request = Request(schedule, 2.0, width=16, height=16)
    again = torch.cat([chunk.frames for chunk in push(pipeline, pipeline.plan(request))])
    sampled = torch.cat(made)
    assert sampled.shape == (32, 16, 16, 3) and sampled.std() > 0.01
    torch.testing.assert_close(sampled, again, atol=1e-3, rtol=0)
    plain = Pipeline(
        LONGLIVE_1_3B, load_transformer(options["model"], precision="fp32").transformer, vae, embeds
    )
    untuned = torch.cat([chunk.frames for chunk in push(plain, plain.plan(request))])
    assert (sampled - untuned).abs().max() > 1e-2, "the LoRA counts"
