"""The `longlive` command: arguments -> pipeline -> video file. One file a command."""

import argparse
import io
import sys
from types import ModuleType

import torch

from ..config import VERSION
from ..rollout.rollout import RolloutError
from ..weights.files import first_line
from . import bench, download, generate, info, live, plan
from .stderr import STDERR

COMMANDS: dict[str, ModuleType] = {
    "generate": generate,
    "live": live,
    "info": info,
    "plan": plan,
    "download": download,
    "bench": bench,
}
EXIT_BAD_INPUT = 2
SMALLER = "choose --precision fp8, or see longlive plan"
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 and one sentence on bad input, 130 on Ctrl-C (what was made is kept)."""
    speak_utf8()
    options = build_parser().parse_args(arguments)
    try:
        options.command(options)
    except torch.OutOfMemoryError as error:
        print(
            f"longlive: not enough memory to load this ({first_line(error)}); {SMALLER}",
            file=STDERR,
        )
        return EXIT_BAD_INPUT
    except (ValueError, OSError, RolloutError) as error:
        print(f"longlive: {error}", file=STDERR)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stop:
        print("; ".join(filter(None, ("longlive: stopped", str(stop)))), file=STDERR)
        return EXIT_INTERRUPTED
    return 0


def speak_utf8() -> None:
    """Prompts are of any script, and Windows gives files and pipes an encoding that knows few of them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="longlive", description="Timed prompts become one long video.")
    parser.add_argument("--version", action="version", version=f"longlive {VERSION}")
    parser.set_defaults(command=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP)
        module.add_options(command)
        command.set_defaults(command=module.run)
    return parser
