"""The pack as a host sees it: root, imports, size, help. Real hosts load it in tests/host."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NODE_FILES = sorted((ROOT / "nodes").glob("*.py"))
HOST_MODULES = ("comfy", "comfy_execution", "folder_paths", "server", "execution", "nodes")
MAX_EXECUTE_LINES, MAX_FUNCTION_LINES = 20, 60


def load(path: str, name: str):
    """A helper of the tests by its path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


SCHEMAS = load("tests/fixtures/node_schemas.py", "node_schemas").declared()


def imports_of(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def functions_of(file: Path) -> list[tuple[str, int]]:
    """(name, lines) of every function."""
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(tree) if isinstance(n, kinds)]


def test_root_imports_nothing_until_it_is_asked():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    assert names == {"comfy_entrypoint"}
    assert "NODE_CLASS_MAPPINGS" not in (ROOT / "__init__.py").read_text(), "a host would look no further"


@pytest.mark.parametrize("file", NODE_FILES, ids=lambda file: file.stem)
def test_nodes_import_what_they_may(file):
    for level, module in imports_of(file):
        top = module.split(".")[0]
        assert level or top != "longlive_core", "the core is imported relatively"
        assert level or top not in HOST_MODULES or file.stem == "host", f"{module} belongs in host.py"
        assert not module.startswith(("longlive_core.cli", "longlive_training")), module


@pytest.mark.parametrize("file", NODE_FILES, ids=lambda file: file.stem)
def test_functions_are_short(file):
    for name, lines in functions_of(file):
        assert lines < (MAX_EXECUTE_LINES if name == "execute" else MAX_FUNCTION_LINES), (name, lines)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_every_node_explains_itself(node_id):
    schema = SCHEMAS[node_id]
    assert schema.description
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip, socket.name
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    assert page.startswith("# ") and len(page.split()) > 60
    for socket in (*schema.inputs, *schema.outputs):
        assert f"**{socket.name}**" in page, f"{socket.name} is missing from its help page"
