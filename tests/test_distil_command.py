"""Tuning as somebody at a terminal meets it: exit codes, numbers and files that cannot be, Ctrl-C."""

import json
import re
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from longlive_training import __main__ as stages
from longlive_training.distil import checkpoint, command, export, prompts
from longlive_training.distil.ask import Endpoint
from longlive_training.distil.loop import Tuning
from longlive_training.distil.maker import make_pairs
from longlive_training.distil.prompts import EmbeddingFiles, read_pairs
from longlive_training.distil.run import Run
from tests.test_distil import (  # noqa: F401
    embeds,
    options,
    run_command,
    same,
    small_tuning,
    weights_of,
)
from tests.test_distil_plan import planned

ROOT = Path(__file__).parent.parent


def ended(monkeypatch, *arguments: object) -> int:
    """How `python -m longlive_training` ends."""
    monkeypatch.setattr(sys, "argv", ["longlive_training", *map(str, arguments)])
    return stages.exit_code()


def test_what_is_wrong_ends_in_one_line_and_exit_code_2(tmp_path: Path, monkeypatch, capsys) -> None:
    """In every stage, and without what could steer a terminal."""
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    endpoint = "--endpoint", "http://x", "--model", "m"
    for arguments in (
        ("plan", "--longest", 20),
        ("distil-mini", "--save-every", 0),
        ("convert", tmp_path / "\x1b[31m", "--out", tmp_path / "x.pt"),
        ("prompts", tmp_path / "absent.txt", "--out", tmp_path / "x", *endpoint),
        ("package", "--autoencoder", tmp_path / "broken.safetensors"),
    ):
        assert ended(monkeypatch, *arguments) == 2, arguments
        said = capsys.readouterr()
        assert not said.out and re.fullmatch(r"error: [^\n\x1b]+\n", said.err), said
    assert ended(monkeypatch, "plan") == 0
    with pytest.raises(SystemExit) as end:
        ended(monkeypatch, "plan", "--size", "0x0")
    assert end.value.code == 2


def test_too_little_memory_and_ctrl_c_end_in_one_line(monkeypatch, capsys) -> None:
    def meets(error: BaseException) -> int:
        def lines_of(chosen: object) -> list[str]:
            raise error

        monkeypatch.setattr("longlive_training.distil.plan.lines_of", lines_of)
        return ended(monkeypatch, "plan")

    assert meets(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")) == 2
    assert re.fullmatch(r"error: this does not fit the memory \(CUDA.*GiB\); .*\n", capsys.readouterr().err)
    assert meets(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped\n"
    with pytest.raises(RuntimeError, match="a bug"):
        meets(RuntimeError("a bug"))


@pytest.mark.parametrize(
    ("option", "number"),
    [
        *((name, number) for name in ("steps", "batch", "streams", "rank", "longest") for number in (0, -1)),
        *(("save-every", 0), ("save-every", -1), ("lr", -1.0), ("lr", "nan"), ("critic-lr", "inf")),
        *(("gpus", 0), ("nodes", -1), ("tflops", "nan"), ("utilisation", "inf")),
        *(("student-part", 0), ("critic-part", -4)),
    ],
)
def test_numbers_that_cannot_be(options, monkeypatch, capsys, option: str, number: object) -> None:  # noqa: F811
    """Before anything is read or made, for a run and for its plan."""
    sentence = (
        rf"^error: --{option} {number:g} is not" if isinstance(number, float) else f"--{option} {number} "
    )
    if option not in ("save-every", "lr", "critic-lr"):
        with pytest.raises(SystemExit, match=sentence):
            planned(monkeypatch, capsys, f"--{option}", number)
    if option not in ("gpus", "nodes", "tflops", "utilisation", "student-part", "critic-part"):
        with pytest.raises(SystemExit, match=sentence):
            run_command(monkeypatch, "distil", **(options | {option: number}))
        assert not options["folder"].exists()


def test_the_plans_in_the_guide_are_what_the_command_prints(monkeypatch, capsys) -> None:
    page = (ROOT / "docs" / "tuning.md").read_text("utf-8")
    shown = re.findall(r"^python -m longlive_training plan (.*?) *# (.*)$", page, re.MULTILINE)
    assert len(shown) == 3
    for arguments, comment in shown:
        text = planned(monkeypatch, capsys, *arguments.split())
        for figure in re.findall(r"[\d.]+ (?:GiB|days|s each)", comment):
            assert figure in text, (arguments, figure)


def test_a_run_stays_with_its_files_and_its_size(options, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    small = {**options, "rank": 2, "longest": 57}
    run_command(monkeypatch, "distil", **small)
    others = {"teacher": options["critic"]}, {"vae": tmp_path / "other.safetensors"}, {"size": "32x32"}
    (tmp_path / "other.safetensors").write_bytes(options["vae"].read_bytes())
    sentences = (
        r"other files: teacher teacher.safetensors instead of critic.safetensors; give",
        r"other files: vae vae.safetensors instead of other",
        r"belongs to another run: another size; choose",
    )
    for other, sentence in zip(others, sentences, strict=True):
        with pytest.raises(SystemExit, match=sentence):
            run_command(monkeypatch, "distil", **(small | other | {"steps": 2}))
    saved = options["folder"] / "step-000001"
    state = json.loads((saved / checkpoint.STATE).read_text())
    del state["block"]  # as before sizes were kept
    (saved / checkpoint.STATE).write_text(json.dumps(state))
    sums = (saved / checkpoint.SUMS).read_text().splitlines(keepends=True)
    own = f"{checkpoint.sha256_of(saved / checkpoint.STATE)}  {checkpoint.STATE}\n"
    kept = [line for line in sums if not line.endswith(f"{checkpoint.STATE}\n")]
    (saved / checkpoint.SUMS).write_text("".join([*kept, own]))
    for facts in ("", "{}", "[]", '{"files": 1}'):  # damaged ones say nothing
        (options["folder"] / "run.json").write_text(facts)
        export.convert(options["folder"], tmp_path / "some.pt")
    run_command(monkeypatch, "distil", **(small | {"steps": 2}))
    assert checkpoint.newest(options["folder"]).name == "step-000002"


def test_a_folder_that_cannot_be_is_refused_before_prompts_are_encoded(
    options,  # noqa: F811
    tmp_path: Path,
    monkeypatch,
) -> None:
    monkeypatch.setattr(command, "load_umt5", lambda path, device: pytest.fail("the encoder was loaded"))
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            SystemExit, match=r"^error: --folder \S*file\S* cannot be used: .*; choose another"
        ):
            run_command(monkeypatch, "distil", **(options | {"folder": folder}))
    with pytest.raises(SystemExit, match="offload-teacher is for sharded models"):
        run_command(monkeypatch, "distil", "--offload-teacher", **options)


@pytest.fixture
def in_a_terminal():
    """Tests that run in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_iteration_and_nothing_is_lost(tmp_path: Path, monkeypatch, number: int) -> None:
    """A second one ends the run within the iteration; handlers are then as before."""
    undisturbed = Run(small_tuning(), tmp_path / "whole", "digest")
    undisturbed.train(3, save_every=100)
    iterate, before = Tuning.iteration, signal.getsignal(number)

    def stopped(times: int):
        def iteration(tuning: Tuning) -> dict[str, float]:
            for _ in range(times if tuning.step == 1 else 0):
                signal.raise_signal(number)
            return iterate(tuning)

        return iteration

    monkeypatch.setattr(Tuning, "iteration", stopped(1))
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint is .*step-000002; the same command goes on"):
        Run(small_tuning(), tmp_path / "run", "digest").train(3, save_every=100)
    assert signal.getsignal(number) is before
    monkeypatch.setattr(Tuning, "iteration", iterate)
    again = Run(small_tuning(), tmp_path / "run", "digest")
    assert again.tuning.step == 2
    again.train(3, save_every=100)
    assert same(weights_of(undisturbed.tuning), weights_of(again.tuning))
    if number == signal.SIGINT:
        monkeypatch.setattr(Tuning, "iteration", stopped(2))
        with pytest.raises(KeyboardInterrupt, match=r"^no checkpoint was saved before; the same command"):
            Run(small_tuning(), tmp_path / "twice", "digest").train(3, save_every=100)


def test_a_log_that_a_power_cut_damaged_is_passed_over(tmp_path: Path) -> None:
    Run(small_tuning(), tmp_path, "digest").train(2, save_every=1)
    log = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b"\0\0\0\n\xff\n[]\n")
    Run(small_tuning(), tmp_path, "digest")
    assert log.read_bytes() == whole


def test_lines_of_a_text_file_are_those_that_an_editor_shows(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_bytes("\ufeffa red\u2028fox\r\na  blue\x0cfox\r\n".encode())
    second.write_text("one\ntwo")
    assert read_pairs(first, second) == [("a red fox", "one"), ("a blue fox", "two")]
    second.write_text("one\nt\0o")
    with pytest.raises(ValueError, match=r"second.txt: line 2: the prompt holds a NUL"):
        read_pairs(first, second)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"prompt": "a", "follow_up": "b"}')
    with pytest.raises(ValueError, match=r"pairs.jsonl is JSONL, which has both prompts of a pair"):
        read_pairs(lines, second)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty.txt is empty; docs/pairs.md shows"):
        read_pairs(tmp_path / "empty.txt")


def test_processes_share_the_prompts_and_one_that_is_too_long_is_reported(
    tmp_path, monkeypatch, capsys
) -> None:
    files, loads = EmbeddingFiles(tmp_path / "embeddings", "encoder"), []

    def encoder(prompt: str) -> torch.Tensor:
        loads.append(prompt)
        return torch.ones(1, 6, 16) if "long" in prompt else embeds(prompt)

    texts = ["one", "two", "one ", "a long one", "four"]
    for rank in range(2):
        monkeypatch.setattr(prompts, "rank_and_size", lambda rank=rank: (rank, 2))
        files.encode(texts, lambda: encoder)
    assert sorted(map(str.strip, loads)) == ["a long one", "four", "one", "two"]
    assert "'a long one' takes all 6 tokens" in capsys.readouterr().err
    monkeypatch.setattr(prompts, "rank_and_size", lambda: (0, 1))
    files.encode(texts, lambda: pytest.fail("nothing is missing"))
    assert torch.equal(files["two"], embeds("two")[0])
    for file in (tmp_path / "embeddings").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(
        ValueError, match=r"safetensors is damaged \(.*\); remove it, and run the same command"
    ):
        files["two"]


def test_convert_makes_the_folder_and_writes_no_card_without_its_file(tmp_path: Path, monkeypatch) -> None:
    Run(small_tuning(), tmp_path / "run", "digest").train(1, save_every=1)
    export.convert(tmp_path / "run", tmp_path / "new" / "mine.safetensors")
    assert {"mine.safetensors", "mine.md"} == {path.name for path in (tmp_path / "new").iterdir()}
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match=r"folder.pt is a folder; choose another name"):
        export.convert(tmp_path / "run", tmp_path / "folder.pt")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("other.pt", "other.safetensors"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file
        try:
            with pytest.raises(OSError, match=rf"{name} could not be written: .*; free some space"):
                export.convert(tmp_path / "run", tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.glob("*other*")]


def test_a_damaged_checkpoint_is_reported_once(options, monkeypatch, capsys) -> None:  # noqa: F811
    run_command(monkeypatch, "distil", **(options | {"steps": 2, "save-every": 1}), rank=2, longest=39)
    (options["folder"] / "step-000002" / checkpoint.STATE).unlink()
    capsys.readouterr()
    run_command(monkeypatch, "distil", **(options | {"steps": 2}), rank=2, longest=39)
    assert capsys.readouterr().err.count("step-000002 is damaged (") == 1


@pytest.mark.parametrize("content", ["my notes", "a prompt\nanother", '{"version": 1,', "\ufeffa\n\0"])
def test_a_file_of_something_else_is_never_cut(tmp_path: Path, content: str) -> None:
    (tmp_path / "first.txt").write_text("a dog runs")
    out = tmp_path / "notes.txt"
    out.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"notes.txt does not end with pairs in JSONL; choose another --out"):
        make_pairs(tmp_path / "first.txt", out, lambda messages, times: "the dog sits")
    assert out.read_text("utf-8") == content


@pytest.mark.parametrize(
    "url", ["http://[", "http://a b/v1", "http://localhost:x/v1", "http://", "http:///v1"]
)
def test_an_address_that_cannot_be_is_not_tried(url: str) -> None:
    with pytest.raises(ValueError, match="is no address; write it as"):
        Endpoint(url, "m")


@pytest.mark.parametrize("key", ["sec\nret", "sec\u4e2dret"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="the key has a line end or a character") as raised:
        Endpoint("http://localhost/v1", "m", key)
    assert "sec" not in str(raised.value)
