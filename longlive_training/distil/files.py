"""Files that are written whole or not at all; what prevents it ends in one sentence."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from longlive_core.output.growing import write_whole


def write_file(path: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write a file; an earlier one stays until it is whole. OSError where the disk is full."""
    try:
        write_whole(path, make)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = error.__context__ if isinstance(error, RuntimeError) else error  # torch hides an OSError
        if not isinstance(reason, OSError | SafetensorError):
            raise
        raise OSError(
            f"{path} could not be written: {reason}; free some space, or choose another place"
        ) from error
