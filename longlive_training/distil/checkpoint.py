"""Checkpoints of a tuning run: whole or not at all, by torch.distributed.checkpoint.

A folder `step-000150` has the tensors of all ranks and `state.json`. It is called `step-000150.part` until
everything is on the disk; the newest whole one counts, and the last three stay.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

KEPT = 3
STATE = "state.json"
_WHOLE = re.compile(r"step-\d{6,}")
Tensors = dict[str, Tensor]


def rank_and_size() -> tuple[int, int]:
    """This process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return max(_checkpoints(folder), default=None, key=_step_of)


def _checkpoints(folder: Path) -> Iterable[Path]:
    return (path for path in folder.glob("step-*") if _WHOLE.fullmatch(path.name))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write a checkpoint of all ranks, then remove old ones. What ranks name alike must be the same there.

    OSError in one sentence where the disk does not take it: no part of it is left, earlier ones stay.
    """
    whole = folder / f"step-{step:06d}"
    part, is_first = whole.with_suffix(".part"), not rank_and_size()[0]
    try:
        if is_first:
            for killed in folder.glob("step-*.part"):
                shutil.rmtree(killed)
            part.mkdir(parents=True)
        wait_for_all()
        with warnings.catch_warnings():  # of a process alone
            warnings.simplefilter("ignore", UserWarning)
            dcp.save(tensors, checkpoint_id=part)
        if is_first:
            _write_synced(part / STATE, json.dumps({**state, "step": step}, indent=1))
            part.rename(whole)
            _sync(folder)
    except (OSError, dcp.CheckpointException) as error:
        if is_first:
            shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"step {step} could not be saved: {_reason(error)}; {kept(folder)}; make room and run the same "
            "command again"
        ) from error
    wait_for_all()
    for old in sorted(_checkpoints(folder), key=_step_of)[:-KEPT] if is_first else ():
        shutil.rmtree(old)
    return whole


def kept(folder: Path) -> str:
    """What there is to go on from, as a part of a sentence."""
    good = newest(folder)
    return f"the newest good checkpoint is {good}" if good else "no checkpoint was saved before"


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", {})
    return str(next((failure for failure, _ in failures.values()), error))


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring a rename to the disk, where a folder can be opened for that (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What was saved besides tensors."""
    return json.loads((checkpoint / STATE).read_text("utf-8"))


def load(checkpoint: Path, is_wanted: Callable[[str], bool]) -> Tensors:
    """The tensors of a checkpoint whose names are wanted, on the CPU."""
    found = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in found.items()
        if is_wanted(name)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(tensors, checkpoint_id=checkpoint)
    return tensors
