"""What shows how a tuning run goes: a warning when the critic diverges, TensorBoard, sample videos."""

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from longlive_core.config import LONGLIVE_1_3B, Preset
from longlive_core.output.video import VideoWriter
from longlive_core.pipeline import Chunk, Pipeline
from longlive_core.plan import Plan, Request
from longlive_core.rollout.rollout import RolloutError
from longlive_core.schedule.cue import ScheduleError
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.script import EncodeText

from .extras import extra
from .loop import Tuning
from .parallel import rank_and_size
from .prompts import read_text

CRITIC_LOSS, WARNING = "critic_loss", "warning"
NEWEST, BEFORE, FEWEST = 8, 50, 16  # iterations that are compared; fewer than `FEWEST` before say nothing
EXPLODED, CALM = 3.0, 1.5  # medians of the newest, as multiples of the median before


class CriticAlarm:
    """Finds that the critic's loss explodes: it no longer follows the student, whose gradient is then noise.

    The loss of one iteration says little, it depends on the noise level that was drawn. So the median of the
    newest eight is compared with that of the fifty before: three times as much is an explosion. It is
    reported once, and again only after the loss was below one and a half times.
    """

    def __init__(self):
        self._losses: deque[float] = deque(maxlen=NEWEST + BEFORE)
        self._is_calm = True

    def __call__(self, loss: float) -> str | None:
        """A sentence in the iteration in which it is found."""
        self._losses.append(loss)
        before, newest = [*self._losses][:-NEWEST], [*self._losses][-NEWEST:]
        if len(before) < FEWEST:
            return None
        ratio = median(newest) / max(median(before), sys.float_info.min)
        was_calm, self._is_calm = self._is_calm, ratio < (EXPLODED if self._is_calm else CALM)
        if self._is_calm or not was_calm:
            return None
        return (
            f"the critic's loss explodes: {median(newest):.3g}, {ratio:.1f} times what it was; it no longer "
            "follows the student. Stop, remove the newest step-... folders, and run the same command with "
            "lower rates (--lr, --critic-lr)"
        )


@dataclass(frozen=True)
class Samples:
    """A video of the same plan every so many iterations, in `folder`, by the student as it is then.

    Every process makes it, since a sharded model needs all of them; the first one writes it.
    """

    pipeline: Pipeline
    plan: Plan
    every: int
    folder: Path

    def make(self, step: int) -> None:
        """Write `step-000500.mp4`; what prevents it is reported, and the run goes on."""
        chunks, is_first = self.pipeline.run(self.plan), not rank_and_size()[0]
        try:
            if is_first:
                self._write(chunks, step)
            deque(chunks, maxlen=0)
        except (OSError, RolloutError) as error:
            deque(chunks, maxlen=0)  # other processes wait for these passes
            if is_first:
                print(f"iteration {step}: no sample video: {error}", file=sys.stderr)

    def _write(self, chunks: Iterator[Chunk], step: int) -> None:
        self.folder.mkdir(exist_ok=True)
        path, plan = self.folder / f"step-{step:06d}.mp4", self.plan
        settings = self.pipeline.settings(plan) | {"training_step": step}
        with VideoWriter(path, plan.width, plan.height, settings) as writer:
            for chunk in chunks:
                writer.append(chunk.uint8())


def add_options(add: Callable[..., object]) -> None:
    """Options of `distil`."""
    add("--tensorboard", action="store_true", help="write the figures for TensorBoard too")
    add("--sample", type=Path, metavar="FILE", help="a timeline; its video is made now and then, in samples/")
    add("--sample-every", type=int, default=500, metavar="STEPS")
    add("--sample-seconds", type=float, default=20.0, metavar="SECONDS")


def sample_schedule(chosen: argparse.Namespace) -> PromptSchedule | None:
    """The timeline of sample videos, if there are any; ValueError where it cannot be used."""
    if chosen.sample is None:
        return None
    if chosen.sample_every < 1:
        raise ValueError(f"--sample-every {chosen.sample_every} is not possible; choose 1 or more")
    try:
        return PromptSchedule.parse(read_text(chosen.sample))
    except ScheduleError as error:
        raise ValueError(f"{chosen.sample}: {error}") from error


def samples_of(
    chosen: argparse.Namespace, tuning: Tuning, encode_text: EncodeText, preset: Preset = LONGLIVE_1_3B
) -> Samples | None:
    """What the options ask for, by the very pipeline of inference; ValueError for impossible videos."""
    schedule = sample_schedule(chosen)
    if schedule is None:
        return None
    model, recipe = tuning.student.model, tuning.recipe
    preset = replace(preset, model=model.config, window=recipe.window, sigmas=recipe.sigmas)
    pipeline = Pipeline(preset, model, tuning.autoencoder, encode_text)
    width, height = chosen.size
    request = Request(schedule, chosen.sample_seconds, width=width, height=height)
    return Samples(pipeline, pipeline.plan(request), chosen.sample_every, chosen.folder / "samples")


class Watch:
    """All of it for a run in `folder` that stands at `step`; the alarm knows what was logged before."""

    def __init__(
        self, folder: Path, step: int, has_tensorboard: bool = False, samples: Samples | None = None
    ):
        """ValueError in one sentence where TensorBoard is wanted and missing."""
        self._samples, self._alarm = samples, CriticAlarm()
        is_first = not rank_and_size()[0]
        self._board: Any = None
        if has_tensorboard and is_first:
            board = extra("torch.utils.tensorboard", "--tensorboard", "tensorboard")
            self._board = board.SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        log = folder / "log.jsonl"
        for line in log.read_text("utf-8").splitlines() if is_first and log.exists() else ():
            self._alarm(json.loads(line)[CRITIC_LOSS])

    def look(self, step: int, figures: dict[str, float]) -> dict[str, str]:
        """See what an iteration gave; returns what the log ought to say besides, on the first process."""
        if self._board:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        warning = self._alarm(figures[CRITIC_LOSS])
        if warning:
            print(f"iteration {step}: {warning}", file=sys.stderr)
        return {WARNING: warning} if warning else {}

    def sample(self, step: int) -> None:
        """Make the video of this iteration if it has one; all processes call it."""
        if self._samples and step % self._samples.every == 0:
            with torch.no_grad():
                self._samples.make(step)
