"""Checkpoints of a tuning run: whole or not at all, by torch.distributed.checkpoint.

A folder `step-000150` has the tensors of all ranks, `state.json`, and `sha256sums` of all these files. It is
called `step-000150.part` until everything is on the disk; the newest undamaged one counts, and the last three
stay.
"""

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from longlive_core.weights.files import sha256_of

from .parallel import gathered, rank_and_size

KEPT = 3
STATE, METADATA, SUMS = "state.json", ".metadata", "sha256sums"
_WHOLE = re.compile(r"step-\d{6,}")
Tensors = dict[str, Tensor]
T = TypeVar("T")


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, damaged or not."""
    return max(_checkpoints(folder), default=None, key=_step_of)


def newest_undamaged(folder: Path, sets_aside: bool = False) -> Path | None:
    """The newest checkpoint whose files are those that were written; None where there is none at all.

    Newer ones that are damaged are reported, and called `step-000150.damaged` if they are to be set aside.
    ValueError where all are damaged. All ranks must ask.
    """
    damaged = {}
    for path in sorted(_checkpoints(folder), key=_step_of, reverse=True):
        if not (damage := next(filter(None, gathered(_damage(path))), None)):
            break
        damaged[path] = damage
    else:
        if damaged:
            reasons = "; ".join(f"{path.name}: {damage}" for path, damage in damaged.items())
            raise ValueError(
                f"all checkpoints in {folder} are damaged ({reasons}); remove them to begin again, or choose "
                "another --folder"
            )
        return None
    for bad, damage in damaged.items() if not rank_and_size()[0] else ():
        print(f"{bad} is damaged ({damage}); {path.name} is used instead", file=sys.stderr)
        if sets_aside:
            shutil.rmtree(bad.with_suffix(".damaged"), ignore_errors=True)
            bad.rename(bad.with_suffix(".damaged"))
    return path


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with this rank's share of the files."""
    rank, ranks = rank_and_size()
    try:
        lines = (checkpoint / SUMS).read_text("utf-8").splitlines()
        sums = dict(line.split("  ")[::-1] for line in lines)
        if not {STATE, METADATA} <= sums.keys():
            return f"{SUMS} is cut off"
        wrong = [name for name in [*sums][rank::ranks] if sha256_of(checkpoint / name) != sums[name]]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{wrong[0]} has changed since it was written" if wrong else None


def _checkpoints(folder: Path) -> Iterable[Path]:
    return (path for path in folder.glob("step-*") if _WHOLE.fullmatch(path.name))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write a checkpoint of all ranks, then remove old ones. What ranks name alike must be the same there.

    OSError in one sentence where the disk does not take it: no part of it is left, earlier ones stay.
    """
    whole = folder / f"step-{step:06d}"
    part, (rank, _) = whole.with_suffix(".part"), rank_and_size()

    def prepare() -> None:
        for killed in folder.glob("step-*.part"):
            shutil.rmtree(killed)
        part.mkdir(parents=True)

    def finish(sums: list[str]) -> None:
        _write_synced(part / STATE, json.dumps({**state, "step": step}, indent=1))
        _write_synced(part / SUMS, "".join([*sums, _sum(part / METADATA), _sum(part / STATE)]))
        part.rename(whole)
        _sync(folder)

    try:
        _on_all(prepare if not rank else lambda: None)
        _on_all(lambda: _write_tensors(part, tensors))
        sums = _on_all(lambda: "".join(map(_sum, sorted(part.glob(f"__{rank}_*")))))
        _on_all(lambda: None if rank else finish(sums))
    except OSError as error:
        if not rank:
            shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"step {step} could not be saved: {error}; {kept(folder)}; make room and run the same command "
            "again"
        ) from error
    for old in () if rank else sorted(_checkpoints(folder), key=_step_of)[:-KEPT]:
        shutil.rmtree(old)
    return whole


def _on_all(work: Callable[[], T]) -> list[T]:
    """What `work` gives on each rank, once it is done on all; OSError on all where it failed on one."""
    try:
        own = work(), None
    except (OSError, dcp.CheckpointException) as error:
        own = None, _reason(error)
    results = gathered(own)
    if failures := [failure for _, failure in results if failure]:
        raise OSError(failures[0])
    return [made for made, _ in results]


def _write_tensors(part: Path, tensors: Tensors) -> None:
    with warnings.catch_warnings():  # of a process alone
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(tensors, checkpoint_id=part)


def _sum(path: Path) -> str:
    return f"{sha256_of(path)}  {path.name}\n"


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


def names(checkpoint: Path) -> set[str]:
    """The names of all tensors of a checkpoint."""
    return {*dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata}


def load(checkpoint: Path, is_wanted: Callable[[str], bool], into: Tensors | None = None) -> Tensors:
    """The tensors of a checkpoint whose names are wanted, on the CPU; fills those of `into` as well.

    What was sharded is put together, or spread as the tensors to be filled are. All ranks must ask.
    """
    found = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in found.items()
        if is_wanted(name)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load({**tensors, **(into or {})}, checkpoint_id=checkpoint)
    return tensors
