"""A run that a crash or Stop ended goes on when the same graph is queued again."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ..longlive_core.geometry import FRAME_RATE, num_frames
from ..longlive_core.journal import RECORDS, Journal, digest, facts_of
from ..longlive_core.output.growing import open_locked
from ..longlive_core.pipeline import Chunk, Plan
from ..longlive_core.resume import Rewind, VideoState
from ..longlive_core.steering.live import LiveControl
from . import host

UNFINISHED, OFF = RESUME = ("unfinished run", "off")
FOLDER = "longlive/unfinished"  # in the output folder, which a new start of ComfyUI leaves alone
KEPT = 3  # journals: their states may take some GiB each
SNAPSHOT_SECONDS = 30.0
LATENT = 1  # the number of this output of Stream
WITHOUT_EFFECT = ("resume", "pace")  # inputs

FINISHED: set[str] = set()  # of this process: run again, they start over, and may be steered in another way

logger = logging.getLogger("longlive")


class Unfinished(AbstractContextManager):
    """What is written down of a run while it goes on, and what an unfinished one of the same graph left.

    `journal` is None where nothing can be written. Left without an error, the run is finished.
    """

    def __init__(self, settings: Mapping[str, Any], plan: Plan, hidden: Any, resume: str):
        """`settings` are of the video; where nothing can be written the run goes on without."""
        self._plan, self.journal, self.was_steered = plan, None, False
        goes_on = {"continue_from": [hidden.unique_id, LATENT]}
        self._is_passed_on = host.is_connected(hidden, LATENT, **goes_on)
        graph = host.ancestry(hidden, WITHOUT_EFFECT)
        if not graph:  # the settings alone do not say what the model was patched with
            return
        facts = facts_of(settings, plan, graph=graph)
        self._name = digest(facts)[:32]
        folder = host.output_folder() / FOLDER / self._name
        try:
            remove_old(folder)
            is_fresh = resume == OFF or self._name in FINISHED
            self.journal = Journal(folder / "none", facts, is_fresh, folder)
        except OSError as error:
            logger.warning("a crash of this run could not be made good (%s)", error)

    def plan(self) -> Plan:
        """The plan, with the prompts that were sent to the unfinished run."""
        asked = self._plan
        if self.journal:
            self._plan = self.journal.with_sent(asked)
        self.was_steered = self._plan is not asked
        return self._plan

    def go_on(self, rewind: Rewind) -> list[str]:
        """Let a run begin with the blocks of the unfinished one, where these are more. -> notes"""
        count = self.journal.num_blocks if self.journal else 0
        if count <= max(rewind.blocks, default=-1) + 1:
            return []
        rewind.blocks = {block: None for block in range(count) if self.journal.has(block)}
        rewind.states = [state for _, state in self.journal.states()][:1]
        frames = num_frames(count * self._plan.block_latent_frames) - self._plan.past_frames
        return [f"goes on at {frames / FRAME_RATE:.1f} s, where the same run was left unfinished"]

    def add(self, chunk: Chunk, control: LiveControl) -> None:
        """A block is made."""
        if self.journal:
            block = chunk.block
            cue = control.cues().get(block.index - self._plan.first_block)
            self.journal.add(block, cue, control.was_steered)

    def save(self, state: VideoState) -> None:
        """A state was taken; now and then one is written, but not after the last block."""
        frames = state.num_frames - self._plan.past_frames
        is_last = state.num_blocks >= self._plan.blocks.stop
        if self.journal and not is_last and self.journal.wants(frames, SNAPSHOT_SECONDS):
            self.journal.save(state, frames)

    def cut(self, block: int) -> None:
        """The run went back to a block, counted from its first."""
        if self.journal:
            self.journal.cut(self._plan.first_block + block)

    def __exit__(self, kind: type | None, *_: object) -> None:
        """The run has ended. One that another goes on from is kept: that may end in a crash, too."""
        if self.journal:
            (FINISHED.discard if kind else FINISHED.add)(self._name)
            is_needed = self._is_passed_on or kind is not None
            (self.journal.close if is_needed else self.journal.remove)()


def remove_old(folder: Path) -> None:
    """Remove the oldest journals next to a folder that no run writes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    others = [other for other in folder.parent.iterdir() if other != folder]
    others.sort(key=lambda other: other.stat().st_mtime)
    for other in others[: max(0, len(others) - KEPT + 1)]:
        with suppress(OSError):
            open_locked(other / RECORDS).close()
            shutil.rmtree(other)
