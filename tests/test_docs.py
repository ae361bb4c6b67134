"""What the documents show runs, and what they name exists."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import longlive_core
from longlive_core.cli import build_parser
from longlive_core.fast.compiled import known_speed
from longlive_core.model.attention import known_attention
from longlive_core.pipeline import ModelFiles, load_pipeline
from longlive_core.weights.quantize import PRECISIONS

ROOT = Path(__file__).parent.parent
CORE = ROOT / "longlive_core"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 200
STOPS = 12
STOP = re.compile(r"^\d+\. `([\w/]+\.py): ([\w.]+)`", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def fenced(file: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def load_any_model(model="mini", on_progress=None, on_note=None, **options):
    """Mini in place of a model whose files are not here; its options are checked as load_pipeline would."""
    files = ModelFiles(model, **options)
    assert files.precision in PRECISIONS
    assert known_speed(files.speed)[1] is None and known_attention(files.attention)[1] is None
    return load_pipeline("mini")


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(longlive_core, "load_pipeline", load_any_model)
    blocks, names = fenced(ROOT / name, "python"), {}
    assert blocks
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, block {number}", "exec"), names)  # a later block may use earlier names


def commands(file: Path) -> list[str]:
    lines = "\n".join(fenced(file)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("longlive ")]


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_commands_are_understood(file: Path) -> None:
    for line in commands(file):
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in LINK.findall(file.read_text("utf-8")):
        assert (file.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


def walks() -> dict[str, list[tuple[str, str]]]:
    """Title -> (file, function) of every stop, in order."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## The walk")[2]
    parts = re.split(r"^\*\*(One \w+)\*\*", text, flags=re.MULTILINE)[1:]
    return {title: STOP.findall(part) for title, part in zip(parts[::2], parts[1::2], strict=True)}


def defined(file: Path) -> set[str]:
    """Functions, classes and methods of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, kinds):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, kinds)}
    return names


def test_every_stop_of_the_walk_exists() -> None:
    assert list(walks()) == ["One prompt", "One block", "One weight"]
    for stops in walks().values():
        assert 0 < len(stops) <= STOPS
        for file, name in stops:
            assert name in defined(CORE / file), (file, name)


def test_no_walk_turns_back() -> None:
    for stops in walks().values():
        files = [file for file, _ in stops]
        for number, file in enumerate(files):
            assert file not in files[:number] or files[number - 1] == file, file


def test_the_rooms_are_drawn_as_they_are() -> None:
    """`python docs/rooms.py` draws them again; numbers of lines may differ."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)

    def without_lines(svg: str) -> str:
        return re.sub(r">\d+ lines<", "><", svg)

    drawn = (ROOT / "docs" / "rooms.svg").read_text("utf-8")
    assert without_lines(drawn) == without_lines(rooms.drawn()), "run python docs/rooms.py"
