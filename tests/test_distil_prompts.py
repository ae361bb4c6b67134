"""Pairs of prompts: the files that hold them, and the maker that writes them."""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread

import pytest
import torch

from longlive_training.__main__ import main
from longlive_training.distil.ask import Endpoint, local_model
from longlive_training.distil.maker import RULES, make_pairs, messages_for
from longlive_training.distil.prompts import read_pairs

ROOT = Path(__file__).parent.parent

PAIRS = [("a dog runs", "the dog sits"), ("a cat sleeps", "the cat wakes")]
JSONL = """{"prompt": "a dog runs", "follow_up": "the dog  sits"}

{"prompts": ["a cat sleeps", "the cat wakes"]}
"""
TIMELINES = """# a comment
0:00 a dog runs
0:10 the dog sits
---
always: film still,
0 => a cat
  sleeps
5s blend 2s: the cat wakes
9s cut: a bird
12s the bird flies
---
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_pairs_come_from_two_files_from_jsonl_and_from_timelines(tmp_path: Path) -> None:
    first, second = ("\n".join(prompts) for prompts in zip(*PAIRS, strict=True))
    two = written(tmp_path / "first.txt", first), written(tmp_path / "second.txt", second)
    assert read_pairs(*two) == read_pairs(written(tmp_path / "pairs.jsonl", JSONL)) == PAIRS
    three = written(tmp_path / "three.txt", '{"prompts": ["a", "b", "c"]}\n{"prompts": ["d", "e"]}')
    assert read_pairs(three) == [("a", "b"), ("b", "c"), ("d", "e")]
    assert read_pairs(written(tmp_path / "timelines.txt", TIMELINES)) == [
        PAIRS[0],
        ("film still, a cat sleeps", "film still, the cat wakes"),
        ("film still, a bird", "film still, the bird flies"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.jsonl", '{"prompts": ["a", "b"]}\n\n{"prompt": "a"}\n', r"jsonl: line 3: the prompt None is not"),
        ("x.jsonl", '{"prompts": ["a"]}', r"line 1: here is no prompt with its follow-up; write \{"),
        ("x.jsonl", '["a", "b"]', r"line 1: here is no prompt"),
        ("x.jsonl", '{"prompts": ["a", "b"]}\n{"pro', r"line 2: Unterminated string .*; write \{"),
        ("x.jsonl", '{"prompt": "a", "follow_up": " "}', r"line 1: the prompt is empty"),
        ("x.jsonl", "\n", r"x.jsonl is empty"),
        ("x.txt", "0 => a\n5s => b\n---\n\n0 => a\n1:99 b\n", r"x.txt: line 6: .*1:99"),
        ("x.txt", "0 => a\n5s => b\n---\na dog runs", r"x.txt: line 4: no prompt of this timeline follows"),
        ("x.txt", "0 => a\n5s cut: b", r"line 1: no prompt .* second file \(--follow-ups\)"),
        ("x.txt", '{"version": 1, "cues": [{"time": 0}]}', r"line 1: cue 1 is"),
    ],
)
def test_files_without_pairs_are_refused_with_their_line(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_pairs(written(tmp_path / name, text))
    with pytest.raises(ValueError, match="cannot be read as a text file in UTF-8"):
        read_pairs(tmp_path / "absent.txt")


ANSWER = "The same {} sits down in the snow, medium shot."
FIRST = [f"A {animal} walks through a snowy park, medium shot." for animal in ("dog", "cat", "fox")]


class Server(ThreadingHTTPServer):
    """Answers as `reply(number of the request, prompt)` says: a text, or (status, headers, body)."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.lock = reply, [], Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            number = len(self.server.requests)
        reply = self.server.reply(number, body["messages"][-1]["content"])
        if isinstance(reply, str):
            choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
            reply = 200, {}, json.dumps({"choices": [choice]})
        status, headers, text = reply
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(text)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def served():
    """Servers of a test, by what they reply."""
    servers = []

    def serve(reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return written(tmp_path / "first.txt", "\n".join(FIRST) + "\n")


def animal_sits(number: int, prompt: str) -> str:
    return ANSWER.format(prompt.split()[1])


def run_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["longlive_training", "prompts", *map(str, arguments)])
    main()


def test_an_endpoint_writes_the_follow_ups(served, first: Path, tmp_path, monkeypatch, capsys) -> None:
    """Fenced by quotes, thoughts or a label, it is the same answer; the key goes where it is wanted."""
    wraps = ("{}", '"{}"', "<think>a fox?</think>\n\n**Second prompt:** {}\n")
    server = served(lambda number, prompt: wraps[number - 1].format(animal_sits(number, prompt)))
    monkeypatch.setenv("MY_KEY", "secret")
    out = tmp_path / "new" / "pairs.jsonl"
    options = "--endpoint", server.url, "--model", "some-model", "--key-from", "MY_KEY", "--at-once", 1
    run_command(monkeypatch, first, "--out", out, *options)
    assert read_pairs(out) == [(prompt, animal_sits(0, prompt)) for prompt in FIRST]
    assert "3 of 3 prompts" in capsys.readouterr().out
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "some-model" and all(rule in body["messages"][0]["content"] for rule in RULES)
    run_command(monkeypatch, first, "--out", out, "--endpoint", server.url, "--model", "some-model")
    assert len(server.requests) == 3, "nothing was missing"


def test_a_busy_endpoint_is_asked_again_later(served, first: Path, tmp_path: Path) -> None:
    busy = {1: (429, {"Retry-After": "7"}, ""), 2: (503, {}, "warming up"), 3: (200, {}, "<html>")}
    server = served(lambda number, prompt: busy.get(number) or animal_sits(number, prompt))
    waited = []
    ask = Endpoint(server.url + "/chat/completions", "m", sleep=waited.append)
    assert make_pairs(first, tmp_path / "pairs.jsonl", ask) == (3, 0)
    assert waited == [7.0, 2.0, 4.0] and len(server.requests) == 6
    assert "Authorization" not in server.requests[0][1]


def test_a_bad_answer_is_asked_again_and_then_left_out_with_a_note(
    served, first: Path, tmp_path: Path, capsys
) -> None:
    bad = iter(["", "I'm sorry, but I can't.", "one\n\ntwo", FIRST[1].upper(), "It sits.", "It sits. " * 40])
    server = served(lambda number, prompt: next(bad) if "cat" in prompt else animal_sits(number, prompt))
    out, ask = tmp_path / "pairs.jsonl", Endpoint(server.url, "m")
    assert make_pairs(first, out, ask) == (3, 1)
    note = capsys.readouterr().err
    assert "left out: 'A cat walks" in note and "of the last one, it has several paragraphs" in note
    assert [prompt for prompt, _ in read_pairs(out)] == [FIRST[0], FIRST[2]]
    assert make_pairs(first, out, ask) == (3, 1) and len(server.requests) == 8, "only the cat is asked again"
    assert "it is much longer than the prompt" in capsys.readouterr().err
    cut = {"choices": [{"message": {"content": "The same cat"}, "finish_reason": "length"}]}
    server.reply = lambda number, prompt: (200, {}, json.dumps(cut))
    assert make_pairs(first, out, ask) == (3, 1) and "it was cut off" in capsys.readouterr().err


def test_a_refusal_ends_in_a_sentence_at_once(served, first: Path, tmp_path: Path, monkeypatch) -> None:
    """Never with the key in it; and no redirect carries the key to another server."""
    other = served(animal_sits)
    refusals = [(401, {}, "wrong key"), (307, {"Location": other.url + "/chat/completions"}, "")]
    server = served(lambda number, prompt: refusals[number - 1])
    monkeypatch.setenv("MY_KEY", "secret")
    for refusal in refusals:
        with pytest.raises(SystemExit, match=rf"^error: .* refuses: {refusal[0]} .*--key-from") as raised:
            options = "--endpoint", server.url, "--model", "m", "--key-from", "MY_KEY", "--at-once", 1
            run_command(monkeypatch, first, "--out", tmp_path / "pairs.jsonl", *options)
        assert "secret" not in str(raised.value)
        monkeypatch.setattr(server, "reply", lambda number, prompt: refusals[1])
    assert not other.requests
    for options, sentence in (
        (("--endpoint", "file:///etc/passwd", "--model", "m"), "is no address"),
        (("--endpoint", server.url), "--endpoint needs --model"),
        (("--endpoint", server.url, "--model", "m", "--key-from", "ABSENT"), "ABSENT is not set"),
        (("--local", tmp_path), "is no language model that transformers can load"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run_command(monkeypatch, first, "--out", tmp_path / "pairs.jsonl", *options)


def test_what_was_made_stays_where_the_endpoint_goes_away(served, first: Path, tmp_path: Path) -> None:
    down = (500, {}, "out of memory")
    server = served(lambda number, prompt: down if "fox" in prompt else animal_sits(number, prompt))
    waited, out = [], tmp_path / "pairs.jsonl"
    with pytest.raises(ConnectionError, match=r"did not answer in 6 tries: 500 .*: out of memory"):
        make_pairs(first, out, Endpoint(server.url, "m", sleep=waited.append))
    assert waited == [1, 2, 4, 8, 16] and len(read_pairs(out)) == 2


def test_killed_and_run_again_only_what_is_missing_is_asked(served, first: Path, tmp_path: Path) -> None:
    """kill -9 while the third answer is awaited; a half line of such a kill is cut off."""
    is_waiting, out = Event(), tmp_path / "pairs.jsonl"

    def reply(number: int, prompt: str) -> str:
        if "fox" in prompt and not is_waiting.is_set():
            is_waiting.set()
            time.sleep(60)
        return animal_sits(number, prompt)

    server = served(reply)
    command = [sys.executable, "-m", "longlive_training", "prompts", first, "--out", out]
    command += ["--endpoint", server.url, "--model", "m", "--at-once", "1"]
    run = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert is_waiting.wait(120)
    run.kill()
    run.wait()
    assert len(read_pairs(out)) == 2
    with out.open("a") as file:
        file.write('{"prompt": "A f')
    assert make_pairs(first, out, Endpoint(server.url, "m")) == (3, 0)
    assert read_pairs(out) == [(prompt, animal_sits(0, prompt)) for prompt in FIRST]
    assert len(server.requests) == 4
    out.write_bytes(out.read_bytes().rstrip())  # an editor left out the last line's end
    first.write_text("\n".join([*FIRST, "A cow walks through a snowy park, medium shot."]))
    assert make_pairs(first, out, Endpoint(server.url, "m")) == (4, 0) and len(read_pairs(out)) == 4


def test_a_local_model_is_asked(tmp_path: Path) -> None:
    """A random one of a few words, from a folder as transformers writes it."""
    transformers, tokenizers = map(pytest.importorskip, ("transformers", "tokenizers"))
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "a", "dog", "sits", "runs"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(words), eos_token_id=1, bos_token_id=None, **sizes)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    ask = local_model(tmp_path, torch.device("cpu"))
    answers = [ask(messages_for("a dog runs"), number) for number in (0, 0, 1, 2)]
    assert answers[0] == answers[1] and len(set(answers)) > 1
    assert {word for answer in answers for word in answer.split()} <= words.keys()


def test_the_help_page_has_the_rules_that_models_are_given() -> None:
    page = " ".join((ROOT / "docs" / "pairs.md").read_text("utf-8").split())
    assert all(rule in page for rule in RULES)
