"""Errors of the core as the host's page shows them best."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..longlive_core.rollout.rollout import RolloutError
from ..longlive_core.schedule.cue import ScheduleError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ours come out as Python's own kinds: of any other the page shows the module first, and little else."""
    try:
        yield
    except ScheduleError as error:
        raise ValueError(str(error)) from error
    except RolloutError as error:
        raise RuntimeError(str(error)) from error
