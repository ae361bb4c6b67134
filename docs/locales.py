"""`python docs/locales.py` writes locales/en from the nodes and from web/js, and lists what zh and ja lack.

`nodeDefs.json` holds names, descriptions and tooltips as ComfyUI looks them up; `main.json` the sentences of
our own pages, each under its English words (web/js/texts.js). Error messages are English everywhere.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh", "ja")
FILES = ("main.json", "nodeDefs.json")
GROUP = "longlive"  # of main.json, as texts.js reads it
SENTENCE = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
# what the server calls states, paces and origins of a run; the pages show them translated
STATES = ("starting", "running", "paused", "stopping", "stopped", "done", "failed", "interrupted")
SERVER_WORDS = (*STATES, "real time", "schedule", "live")


def load(path: str) -> ModuleType:
    """A module by its path in the repository."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentences() -> dict[str, str]:
    """Every sentence of web/js that goes through `t(...)`."""
    scripts = sorted((ROOT / "web" / "js").rglob("*.js"))
    found = [
        json.loads(f'"{text}"') for file in scripts for text in SENTENCE.findall(file.read_text("utf-8"))
    ]
    return {sentence: sentence for sentence in (*found, *SERVER_WORDS)}


def node_texts() -> dict[str, Any]:
    """Texts of every node, by ids and input names; outputs by their number."""
    schemas = load("tests/fixtures/node_schemas.py").declared()
    return {
        node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {s.name: {"name": s.name, "tooltip": s.tooltip} for s in schema.inputs},
            "outputs": {
                str(number): {"name": s.name, "tooltip": s.tooltip} for number, s in enumerate(schema.outputs)
            },
        }
        for node_id, schema in schemas.items()
    }


def english() -> dict[str, dict[str, Any]]:
    """The contents of locales/en by file name."""
    return {"main.json": {GROUP: sentences()}, "nodeDefs.json": node_texts()}


def leaves(texts: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, text) of every text in nested dictionaries."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / name).read_text("utf-8"))


def missing(language: str, name: str) -> list[tuple[str, ...]]:
    """Keys that a file lacks, or has too many."""
    ours, theirs = (dict(leaves(texts)) for texts in (english()[name], read(language, name)))
    return sorted(ours.keys() ^ theirs.keys())


def main() -> None:
    for name, texts in english().items():
        text = json.dumps(texts, ensure_ascii=False, indent=2) + "\n"
        (LOCALES / "en" / name).write_text(text, "utf-8")
    for language in LANGUAGES:
        for name in FILES:
            for keys in missing(language, name):
                sys.stdout.write(f"{language}/{name}: {' > '.join(keys)}\n")


if __name__ == "__main__":
    main()
