"""The rooms of the house: who may import whom, and how long anything may get."""

import ast
import re
import sys
from pathlib import Path
from statistics import median

import pytest

from longlive_core.config import VERSION

ROOT = Path(__file__).parent.parent
CORE = ROOT / "longlive_core"
FOLDERS = ("longlive_core", "longlive_training", "nodes", "benchmarks")
FILES = [ROOT / "__init__.py", *(f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py")))]

# room -> rooms it may import (itself always); a room is a folder or a file of longlive_core
DOORS = {
    "geometry": set(),
    "footage": {"geometry"},
    "config": {"geometry"},
    "fast": set(),
    "schedule": {"config", "geometry"},
    "model": {"fast", "config", "geometry"},
    "vae": {"config", "geometry"},
    "weights": {"fast", "model", "vae", "output", "config", "geometry"},
    "text": {"fast", "weights", "config", "geometry"},
    "rollout": {"model", "config", "geometry"},
    "steering": {"schedule", "rollout", "config", "geometry"},
    "mini": {"config", "weights", "text", "model", "vae", "geometry"},
    "output": {"geometry"},
    "memory": {"weights", "vae", "config", "geometry"},
    "resume": {"steering", "rollout", "vae", "output", "config", "geometry"},
    "source": {"vae", "geometry"},
    "control": {"source", "vae", "geometry"},
    "plan": {"source", "control", "resume", "schedule", "rollout", "config", "geometry"},
    "pipeline": {
        *(
            "plan",
            "source",
            "control",
            "fast",
            "resume",
            "steering",
            "mini",
            "schedule",
            "rollout",
            "model",
            "vae",
            "text",
            "weights",
        ),
        *("config", "geometry"),
    },
    "journal": {"pipeline", "resume", "rollout", "output", "weights", "schedule", "geometry"},
    "bench": {
        *("output", "pipeline", "fast", "memory", "schedule", "rollout", "model", "vae"),
        *("config", "geometry"),
    },
    "cli": {
        *(
            "output",
            "footage",
            "source",
            "control",
            "bench",
            "fast",
            "pipeline",
            "journal",
            "memory",
            "schedule",
            "resume",
            "rollout",
            "model",
        ),
        *("weights", "config", "geometry"),
    },
    "__main__": {"cli"},
    "__init__": {"pipeline", "schedule"},
}
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes", "execution"}


def room(file: Path) -> str:
    parts = file.relative_to(CORE).with_suffix("").parts
    return parts[0]


def imports(file: Path):
    """(level, module) of every import in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []


def rooms_imported(file: Path) -> set[str]:
    depth = len(file.relative_to(CORE).parts)
    found = set()
    for level, module, names in imports(file):
        assert level <= depth, "an import that leaves the core"
        if level == depth:  # from the top of longlive_core
            found |= {module.split(".")[0]} if module else set(names)
        elif level and level < depth:
            found.add(room(file))
    return found


@pytest.mark.parametrize("file", sorted(CORE.rglob("*.py")), ids=lambda f: str(f.relative_to(CORE)))
def test_core_rooms_import_only_through_their_doors(file: Path) -> None:
    assert rooms_imported(file) - {room(file)} <= DOORS[room(file)]


@pytest.mark.parametrize("file", sorted(CORE.rglob("*.py")), ids=lambda f: str(f.relative_to(CORE)))
def test_core_never_knows_the_host_and_imports_itself_relatively(file: Path) -> None:
    absolute = {module.split(".")[0] for level, module, _ in imports(file) if level == 0}
    assert not absolute & (HOST | {"longlive_core"})


def test_only_one_file_touches_the_host() -> None:
    """`comfy_api` declares nodes, everywhere in nodes/; comfy, folder_paths and server only in host.py."""
    for file in (ROOT / "nodes").glob("*.py"):
        absolute = {module.split(".")[0] for level, module, _ in imports(file) if level == 0}
        assert file.name == "host.py" or not absolute & (HOST - {"comfy_api"}), file.name


def test_inference_never_imports_training() -> None:
    for file in (f for folder in ("longlive_core", "nodes") for f in (ROOT / folder).rglob("*.py")):
        assert not any(module.startswith("longlive_training") for _, module, _ in imports(file)), file.name


def test_nodes_do_not_use_the_command_line() -> None:
    for file in (ROOT / "nodes").glob("*.py"):
        assert not any(module.endswith("longlive_core.cli") for _, module, _ in imports(file))


def functions(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = {(str(f), name): n for f in FILES for name, n in functions(f)}
    assert max(lengths.values()) < 60, max(lengths, key=lengths.get)
    assert median(lengths.values()) <= 10


def test_executes_are_thin() -> None:
    for file in (ROOT / "nodes").glob("*.py"):
        for name, length in functions(file):
            assert name != "execute" or length < 20, (file.name, length)


def test_the_prompt_room_needs_no_torch() -> None:
    for file in (CORE / "geometry.py", *(CORE / "schedule").glob("*.py")):
        assert not any(module.split(".")[0] == "torch" for _, module, _ in imports(file))


DISTRIBUTIONS = {"PIL": "pillow"}  # where a package is not called as it is imported
OWN = {"longlive_core", "longlive_training"}


def third_party(folders: tuple[str, ...]) -> set[str]:
    """Distributions that the files of these folders import; `library("name")`, `extra("name"` import late."""
    found = set()
    for file in (f for folder in folders for f in (ROOT / folder).rglob("*.py")):
        found |= {module.split(".")[0] for level, module, _ in imports(file) if level == 0}
        found |= set(re.findall(r'(?:library|extra)\("(\w+)"', file.read_text()))
    return {DISTRIBUTIONS.get(name, name) for name in found - sys.stdlib_module_names - OWN}


def test_every_dependency_is_imported_and_every_import_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = {
        part: set(re.findall(r'"([A-Za-z_]+)', re.search(rf"^{part} = \[(.*?)\]", text, re.M | re.S)[1]))
        for part in ("dependencies", "text", "train", "bench")
    }
    assert third_party(("longlive_core",)) == declared["dependencies"] | declared["text"]
    extras = declared["train"] | declared["text"]
    assert third_party(("longlive_training",)) <= declared["dependencies"] | extras
    assert declared["bench"] <= third_party(("benchmarks",))


def test_the_version_has_one_value() -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
