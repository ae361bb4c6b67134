"""torch.compile for functions that meet more sizes than torch expects, and that must not stop a run."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .reasons import reason_of

MAX_SIZES = 64  # of one function in a process; beyond torch's own 8 nothing would be compiled any more

logger = logging.getLogger("longlive")


class Compiled:
    """A pure function, compiled; where that fails, also in mid-run, it runs as it is from then on.

    `failure` is then the reason: at first for the caller to tell, in mid-run it is logged.
    """

    def __init__(self, function: Callable[..., Any], **how: Any):
        """`how` goes to torch.compile."""
        self.failure: str | None = None
        self._plain, self._has_run = function, False
        try:
            self._compiled = torch.compile(function, **how)
        except Exception as error:  # the compiler's failures have no common kind
            self.failure = reason_of(error)

    def __call__(self, *given: Any) -> Any:
        if self.failure is None:
            try:
                made = self._compiled(*given)
            except Exception as error:  # one that is not the compiler's comes again
                self.failure = reason_of(error)
                if self._has_run:
                    logger.warning("%s runs without a compiler: %s", self._plain.__name__, self.failure)
            else:
                self._has_run = True
                return made
        return self._plain(*given)


def new_size() -> AbstractContextManager:
    """Within it a function may be compiled for one more size, however many it has met."""
    return torch._dynamo.config.patch(recompile_limit=MAX_SIZES)
