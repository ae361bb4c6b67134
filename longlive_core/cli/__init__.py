"""The `longlive` command: arguments -> pipeline -> video file. One file a command."""

import argparse
import io
import sys
from contextlib import redirect_stderr, redirect_stdout

from ..config import VERSION
from ..rollout.retry import is_out_of_memory
from ..rollout.rollout import RolloutError
from ..weights.files import first_line
from . import batch, beats, bench, convert, download, finish, generate, info, live, plan, share
from .stderr import STDERR, Shown, show

COMMANDS = (generate, batch, finish, live, share, info, plan, download, convert, bench, beats)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
SMALLER = "choose a smaller --size or --window, --precision fp8, or --tile; longlive plan lists what fits"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 and one sentence on bad input, 130 on Ctrl-C (what was made is kept)."""
    use_utf8()
    with redirect_stdout(Shown(sys.stdout)), redirect_stderr(Shown(sys.stderr)):
        return exit_code(build_parser().parse_args(arguments))


def exit_code(options: argparse.Namespace) -> int:
    """Run a command, which may have an exit code of its own; its errors become one line each."""
    try:
        return options.command(options) or 0
    except KeyboardInterrupt as stop:
        show("; ".join(filter(None, ("longlive: stopped", str(stop)))), STDERR)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RolloutError) as error:
        show(f"longlive: {error}", STDERR)
        return EXIT_BAD_INPUT
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        show(f"longlive: this does not fit the memory ({first_line(error)}); {SMALLER}", STDERR)
        return EXIT_BAD_INPUT


def use_utf8() -> None:
    """Prompts may be in any script; on Windows, files and pipes get an encoding that has few of them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="longlive", description="Timed prompts become one long video.")
    parser.add_argument("--version", action="version", version=f"longlive {VERSION}")
    parser.set_defaults(command=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    for module in COMMANDS:
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=module.HELP)
        module.add_options(command)
        command.set_defaults(command=module.run)
    return parser
