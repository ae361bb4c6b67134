"""`longlive live --osc`: OSC packets, written by hand, become requests; others are reported and left out."""

import json
import socket
import struct
import sys
from itertools import islice

import pytest

from longlive_core.cli import main, osc
from tests.test_live import Proxy

PORT = "0"  # a free one


def padded(data: bytes) -> bytes:
    return data + bytes(4 - len(data) % 4)


def packet(address: str, *values: str | float | bytes) -> bytes:
    """An OSC 1.0 message."""
    tags, data = ",", b""
    for value in values:
        tags += {str: "s", float: "f", bytes: "b"}[type(value)]
        if isinstance(value, str):
            data += padded(value.encode())
        elif isinstance(value, float):
            data += struct.pack(">f", value)
        else:
            data += struct.pack(">i", len(value)) + value + bytes(-len(value) % 4)
    return padded(address.encode()) + padded(tags.encode()) + data


def run_with(packets: list[bytes], num_requests: int, monkeypatch, *options: str) -> int:
    """Run the command, which receives these packets, until it has made so many requests."""
    pytest.importorskip("pythonosc", reason="OSC NOT TESTED: pip install python-osc")
    requests = osc.requests

    def show(line: str, file=None) -> None:
        print(line, file=file and sys.stderr)
        if line.startswith("listening for OSC at "):
            host, _, port = line.removeprefix("listening for OSC at ").partition(";")[0].partition(":")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for data in packets:
                    sender.sendto(data, (host, int(port)))

    monkeypatch.setattr(osc, "show", show)
    monkeypatch.setattr(osc, "requests", lambda at: islice(requests(at), num_requests))
    return main(["live", *options, "--osc", PORT])


def test_messages_become_prompts_and_commands(monkeypatch, capsys):
    packets = [
        packet("/longlive/prompt", "it turns blue, 青い"),
        packet("/longlive/prompt", "a forest", "blend", 3.0),
        *(packet(f"/longlive/{name}") for name in ("pause", "resume", "stop")),
    ]
    with Proxy() as server:
        assert run_with(packets, 5, monkeypatch, "--server", f"http://{server.host}", "--run", "3fa9c1") == 0
    paths = [path.removeprefix("/longlive/runs/3fa9c1/") for _, path, _, _ in server.asked]
    assert paths == ["prompt", "prompt", "pause", "resume", "stop"]
    assert [json.loads(body) for *_, body in server.asked] == [
        {"prompt": "it turns blue, 青い"},
        {"prompt": "a forest", "policy": "blend", "blend": 3.0},
        *({}, {}, {}),
    ]
    said = capsys.readouterr().out
    assert said.startswith("listening for OSC at 127.0.0.1:") and "run 7: pause" in said


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"/longlive",
        b"\xff" * 50,
        packet("/longlive/prompt"),
        packet("/longlive/prompt", b"\0\1"),
        packet("/longlive/prompt", "a", "cut", 1.0, 2.0),
        packet("/longlive/schedule"),
        packet("/other/pause"),
        packet("pause"),
        packet("/longlive/prompt", "a" * 33_000),
    ],
)
def test_other_packets_are_left_out_with_one_line(monkeypatch, capsys, wrong):
    with Proxy() as server:
        packets = [wrong, packet("/longlive/pause")]
        assert run_with(packets, 1, monkeypatch, "--server", f"http://{server.host}") == 0
    assert len(server.asked) == 1
    said = capsys.readouterr().err
    assert said.startswith("a message was left out: ") and said.count("\n") == 1


def test_a_flood_is_cut_off(monkeypatch, capsys):
    with Proxy() as server:
        packets = [packet("/longlive/pause")] * 30
        monkeypatch.setattr(osc, "monotonic", iter([5.0] * 29 + [7.0] * 9).__next__)
        assert run_with(packets, 21, monkeypatch, "--server", f"http://{server.host}") == 0
    assert capsys.readouterr().err.count("more than 20 came within a second") == 9


def test_what_the_server_refuses_is_reported_and_the_next_message_is_sent(monkeypatch, capsys):
    packets = [packet("/longlive/pause"), packet("/longlive/stop")]
    assert run_with(packets, 2, monkeypatch, "--server", "http://127.0.0.1:9") == 0
    assert capsys.readouterr().err.count("no server answers at http://127.0.0.1:9") == 2


def test_without_the_library_one_sentence_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pythonosc", None)
    monkeypatch.setitem(sys.modules, "pythonosc.osc_packet", None)
    assert main(["live", "--osc", PORT]) == 2
    error = capsys.readouterr().err
    assert "pip install 'longlive[osc]'" in error and error.count("\n") == 1


def test_ports_and_hosts_are_read():
    assert osc.place("9000") == ("127.0.0.1", 9000) and osc.place("0.0.0.0:9000") == ("0.0.0.0", 9000)
    for text in ("", "x", "-1", "65536", "host:"):
        with pytest.raises(SystemExit):
            main(["live", "--osc", text])
