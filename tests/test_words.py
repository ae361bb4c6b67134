"""Plain words: the field's terms in docstrings, messages, tooltips and documents."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BANNED = {  # what not to write -> what to write
    r"(?<!model )(?<!prompt )(?<![-\w])cards?": "GPU",
    r"the host(?:'s)?": "ComfyUI",
    r"widen(?:s|ed|ing)?": "dequantise, upcast",
    r"whoever": "the caller",
    r"anew": "again",
    r"beside": "next to, concurrently",
    r"tape": "capture, replay",
    r"told": "log, report, warn",
    r"the plain way": "eager",
    r"takes? turns": "unload, offload, alternate",
    r"pictures?": "image, frame",
    r"what it said": "its embeddings",
    r"remembers": "the KV cache, the state",
    r"machine at hand": "device",
    r"bends?": "GELU",
}
PACKAGES = ("longlive_core", "longlive_training", "nodes", "benchmarks", "docs")
PYTHON = [ROOT / "__init__.py", *(f for name in PACKAGES for f in sorted((ROOT / name).rglob("*.py")))]
SCRIPTS = sorted((ROOT / "web" / "js").rglob("*.js"))
MARKDOWN = [
    *(ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "longlive_core" / "mini" / "README.md"),
    *(file for folder in ("docs", "web/docs") for file in sorted((ROOT / folder).glob("*.md"))),
]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NOTE = "MarkdownNote"
JS_STRING = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)'|`((?:[^`\\]|\\.)*)`""", re.DOTALL
)


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def found(texts: Iterator[str]) -> list[str]:
    """Every banned word with what stands around it; names in code, between backticks, stay."""
    hits = []
    for text in texts:
        text = " ".join(re.sub(r"`[^`\n]*`", "", text).split())
        for word, better in BANNED.items():
            for match in re.finditer(rf"\b{word}\b", text, re.IGNORECASE):
                around = text[max(0, match.start() - 30) : match.end() + 30]
                hits.append(f"{match[0]!r} in {around!r}: say {better}")
    return hits


def python_texts(file: Path) -> Iterator[str]:
    """Docstrings, and string literals of more than one word; an f-string is one text."""
    tree = ast.parse(file.read_text("utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value if len(node.value.split()) > 1 else ""


def script_texts(file: Path) -> Iterator[str]:
    """String literals of more than one word."""
    for groups in JS_STRING.findall(file.read_text("utf-8")):
        yield from (text for text in groups if len(text.split()) > 1)


def notes(file: Path) -> Iterator[str]:
    for node in json.loads(file.read_text("utf-8"))["nodes"]:
        if node["type"] == NOTE:
            yield node["widgets_values"][0]


@pytest.mark.parametrize("file", PYTHON, ids=named)
def test_python(file: Path) -> None:
    assert not found(python_texts(file))


@pytest.mark.parametrize("file", SCRIPTS, ids=named)
def test_javascript(file: Path) -> None:
    assert not found(script_texts(file))


@pytest.mark.parametrize("file", MARKDOWN, ids=named)
def test_markdown(file: Path) -> None:
    assert not found([file.read_text("utf-8")])


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_notes_of_workflows(file: Path) -> None:
    assert not found(notes(file))


def test_banned_words_are_found() -> None:
    text = "The host's card widens a picture beside the model card."
    assert len(found([text])) == 5 and not found(["a model\ncard, `told`, --card, a postcard, besides"])
