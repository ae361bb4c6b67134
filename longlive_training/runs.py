"""What every training run needs: resume, an average of the weights, a log, a progress line, an export."""

import copy
import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .muon import Muon

SAVE_SECONDS = 90
LOG_STEPS = 50


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """A running average of the model's weights; buffers follow the model."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


def cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))


class MuonAndAdam:
    """Muon for the matrices of the transformer's layers, AdamW for all others; one rate for both."""

    def __init__(self, model: nn.Module, lr: float):
        matrices = {n: p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
        others = [p for n, p in model.named_parameters() if n not in matrices]
        self._parts = (
            Muon(list(matrices.values()), lr),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.01),
        )

    def set_rate(self, lr: float) -> None:
        """The learning rate of the next step."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


class Run:
    """One training run in a folder: `last.pt` to resume, `log.jsonl`, `model.safetensors` at the end."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | MuonAndAdam,
        average: AveragedModel,
        steps: int,
    ):
        self.folder, self.model, self.optimizer, self.average, self.steps = (
            folder,
            model,
            optimizer,
            average,
            steps,
        )
        self.step = 0
        self._saved = time.monotonic()
        self._values: defaultdict[str, list[float]] = defaultdict(list)  # since the last line of the log
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._bar = tqdm(total=steps, initial=self.step, unit="step", mininterval=10)

    @property
    def is_done(self) -> bool:
        return self.step >= self.steps

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step = state["step"]

    def after_step(self, **figures: float) -> None:
        """Count the step, average the weights, log now and then, save every minute and a half."""
        if not all(math.isfinite(value) for value in figures.values()):
            raise FloatingPointError(
                f"step {self.step}: {figures}; resume from {self.folder} with a lower rate"
            )
        self.step += 1
        self.average.update_parameters(self.model)
        self._bar.update()
        for name, value in figures.items():
            self._values[name].append(value)
        if self.step % LOG_STEPS == 0:
            self._log({name: mean(values) for name, values in self._values.items()})
            self._values.clear()
        if self.is_done or time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def _log(self, figures: dict[str, float]) -> None:
        rounded = {name: round(value, 5) for name, value in figures.items()}
        self._bar.set_postfix(rounded)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, **rounded}) + "\n")

    def save(self) -> None:
        """Write everything needed to go on, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "step": self.step,
        }
        part = self.folder / "last.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "last.pt")
        self._saved = time.monotonic()

    def averaged(self) -> nn.Module:
        """A copy of the model that carries the averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average.module.state_dict())
        return model.eval()

    def export(self, model: nn.Module) -> Path:
        """Write the weights of `model` as safetensors."""
        path = self.folder / "model.safetensors"
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
        return path
