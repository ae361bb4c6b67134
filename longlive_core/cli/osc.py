"""`longlive live --osc PORT`: OSC messages over UDP become requests to the server."""

import argparse
import socket
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any

from ..fast.optional import Source
from .stderr import STDERR, show

HOST = "127.0.0.1"
PREFIX = "/longlive/"
COMMANDS = ("pause", "resume", "stop")
MAX_BYTES = 32 * 1024  # of a packet
MAX_MESSAGES, RATE_SECONDS = 20, 1.0
KNOWN = f'{PREFIX}prompt "text" ["policy" [blend seconds]], {", ".join(PREFIX + name for name in COMMANDS)}'
PARSER = Source("pythonosc.osc_packet", "OscPacket", "install it with: pip install 'longlive[osc]'")
Request = tuple[str, dict[str, Any]]


def place(text: str) -> tuple[str, int]:
    """`9000` or `0.0.0.0:9000` -> host and port; without a host only this machine is heard."""
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write it as 9000, or 0.0.0.0:9000 for all")
    return host or HOST, int(port)


def requests(at: tuple[str, int]) -> Iterator[Request]:
    """What each OSC message asks for and its body, for ever; what cannot be understood is reported.

    Raises ValueError where python-osc is missing, and OSError where the port is taken.
    """
    parse, times = PARSER.load(), deque(maxlen=MAX_MESSAGES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(at)
        show("listening for OSC at {}:{}; Ctrl-C ends it".format(*receiver.getsockname()))
        while True:
            data = receiver.recv(MAX_BYTES + 1)
            try:
                check_limits(data, times)
                yield from [request_of(timed.message) for timed in parse(data).messages]
            except Exception as error:  # of anything that anybody sends, by the parser too
                show(f"a message was left out: {error}", STDERR)


def check_limits(data: bytes, times: deque[float]) -> None:
    """Raise ValueError for a packet that is too large, or comes after too many others."""
    now = monotonic()
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if len(times) == MAX_MESSAGES and now - times[0] < RATE_SECONDS:
        raise ValueError(f"more than {MAX_MESSAGES} came within a second")
    times.append(now)


def request_of(message: Any) -> Request:
    """What an OSC message asks for; ValueError where it is none of ours."""
    what, values = message.address.removeprefix(PREFIX), message.params
    if message.address == PREFIX + what and what in COMMANDS:
        return what, {}
    is_plain = all(isinstance(value, str | int | float) for value in values)
    if message.address == f"{PREFIX}prompt" and 1 <= len(values) <= 3 and is_plain:
        return "prompt", dict(zip(("prompt", "policy", "blend"), values, strict=False))
    raise ValueError(f"{message.address} {values} is unknown; send {KNOWN}")
