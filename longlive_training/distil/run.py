"""A tuning run in a folder: resume, iterate, log, save."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from longlive_core.rollout.rollout import RolloutError

from . import checkpoint
from .checkpoint import Tensors
from .files import write_file
from .loop import Trained, Tuning
from .parallel import rank_and_size
from .stopping import Launcher, Stop
from .watch import Watch

AVERAGE = "average."
GO_ON = "the same command goes on"
RATES = {"lr", "critic_lr"}  # may change when a run is resumed


class Run:
    """One run: `step-*` checkpoints to resume from, `log.jsonl`. `prompts` is the digest of its pairs."""

    def __init__(self, tuning: Tuning, folder: Path, prompts: str):
        """Resume from the newest undamaged checkpoint; ValueError where it belongs to another run."""
        self.tuning, self.folder, self._prompts = tuning, folder, prompts
        self._rank = rank_and_size()[0]
        folder.mkdir(parents=True, exist_ok=True)
        if newest := checkpoint.newest_undamaged(folder, sets_aside=True):
            self._resume(newest)
        if not self._rank:
            cut_log(folder / "log.jsonl", tuning.step)

    def train(self, steps: int, save_every: int, watch: Watch | None = None) -> None:
        """Iterate until `steps`, saving now and then and at the end, and let `watch` look on.

        FloatingPointError in one sentence where something is not finite, OSError where the disk is full,
        KeyboardInterrupt on Ctrl-C, once the iteration is saved where a process is alone, and where torchrun
        was killed, before anything is written.
        """
        tuning, watch, launcher = self.tuning, watch or Watch(self.folder, self.tuning.step), Launcher()
        is_shown = self._rank == 0
        with (
            tqdm(total=steps, initial=tuning.step, unit="step", disable=not is_shown, mininterval=10) as bar,
            Stop() as stop,
        ):
            while tuning.step < steps:
                figures = self._iterate()
                if launcher.is_gone:
                    raise KeyboardInterrupt(f"torchrun is gone; {checkpoint.kept(self.folder)}; {GO_ON}")
                if is_shown:
                    self._log(figures | watch.look(tuning.step, figures))
                    bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
                bar.update()
                is_stopping = stop.is_asked
                if is_stopping or tuning.step % save_every == 0 or tuning.step == steps:
                    self._save()
                if is_stopping and tuning.step < steps:
                    raise KeyboardInterrupt(f"{checkpoint.kept(self.folder)}; {GO_ON}")
                watch.sample(tuning.step)

    def _iterate(self) -> dict[str, float]:
        try:
            return self.tuning.iteration()
        except (FloatingPointError, RolloutError) as error:
            raise FloatingPointError(
                f"iteration {self.tuning.step}: {error}; {checkpoint.kept(self.folder)}; run the same "
                "command with lower rates (--lr, --critic-lr) to go on from there"
            ) from error
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{checkpoint.kept(self.folder)}; {GO_ON}") from stop

    def _log(self, figures: dict[str, Any]) -> None:
        path = self.folder / "log.jsonl"
        try:
            with path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": self.tuning.step, **figures}) + "\n")
        except OSError as error:
            raise OSError(
                f"{path} could not be written: {error}; {checkpoint.kept(self.folder)}; make room and run "
                "the same command again"
            ) from error

    def _save(self) -> None:
        tuning, stream = self.tuning, self.tuning.stream
        tensors = {AVERAGE + name: tensor for name, tensor in tuning.average.items()}
        for trained in (tuning.student, tuning.critic):
            tensors |= trained_tensors(trained)
        for name, together in stream.tensors().items():
            parts = zip(self._streams, together.split(1), strict=True)
            tensors |= {f"stream.{number}.{name}": part for number, part in parts}
        end = stream.scene.end if stream.scene else 0
        state = {
            **self._facts(),
            "stream": {"sequence": stream.sequence, "chunk": stream.chunk, "end": end},
        }
        checkpoint.save(self.folder, tuning.step, tensors, state)

    @property
    def _streams(self) -> range:
        return self.tuning.recipe.streams_of(*rank_and_size())

    def _facts(self) -> dict[str, Any]:
        recipe = json.loads(json.dumps(asdict(self.tuning.recipe)))
        return {"recipe": recipe, "prompts": self._prompts, "block": [*self.tuning.draws.shape]}

    def _resume(self, newest: Path) -> None:
        """Become the run that saved this, in however many processes."""
        tuning, saved = self.tuning, checkpoint.read_state(newest)
        check_same_run(newest, saved, self._facts())
        if any(name.startswith(AVERAGE) for name in checkpoint.names(newest)):
            tuning.average = {n: torch.zeros_like(w) for n, w in tuning.student.weights.items()}
        into = {AVERAGE + name: tensor for name, tensor in tuning.average.items()}
        for trained in (tuning.student, tuning.critic):
            into |= trained_tensors(trained)
        streams = [f"stream.{number}." for number in self._streams]
        tensors = checkpoint.load(newest, lambda name: name.startswith(tuple(streams)), into)
        tuning.step = saved["step"]
        parts = [with_prefix(tensors, stream) for stream in streams]
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        tuning.stream.restore(**saved["stream"], tensors=own)


def check_same_run(newest: Path, saved: dict[str, Any], ours: dict[str, Any]) -> None:
    """ValueError unless a checkpoint was made by the same recipe from the same prompts at the same size."""
    differing = [
        f"{name} {saved['recipe'].get(name)} instead of {value}"
        for name, value in ours["recipe"].items()
        if name not in RATES and saved["recipe"].get(name) != value
    ]
    if saved["prompts"] != ours["prompts"]:
        differing.append("other prompts")
    if saved.get("block", ours["block"]) != ours["block"]:  # older checkpoints do not say
        differing.append("another size")
    if differing:
        raise ValueError(
            f"{newest} belongs to another run: {', '.join(differing)}; choose another --folder, or give the "
            "same options"
        )


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}


def trained_tensors(trained: Trained) -> Tensors:
    """Weights, and the optimizer's state of each."""
    tensors: dict[str, Tensor] = {}
    for name, weight in trained.weights.items():
        parts = {"weight": weight.detach(), **trained.optimizer.state[weight]}
        tensors |= {f"{trained.name}.{part}.{name}": tensor for part, tensor in parts.items()}
    return tensors


def cut_log(path: Path, step: int) -> None:
    """Forget what was logged after the step that is resumed."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and 0 < step_of(line) <= step]
    if kept != lines:
        write_file(path, lambda part: part.write_bytes(b"".join(kept)))


def step_of(line: bytes) -> int:
    """The iteration of a line of the log; 0 where a power cut left something else."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return 0
