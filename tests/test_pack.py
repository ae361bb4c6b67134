"""The pack as a host sees it: root, imports, size, help; and loaded by the Python of a real ComfyUI."""

import ast
import importlib.util
import subprocess
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


@pytest.mark.parametrize("file", NODE_FILES, ids=lambda file: file.stem)
def test_nodes_import_what_they_may(file):
    for level, module in imports_of(file):
        top = module.split(".")[0]
        assert level or top != "longlive_core", "the core is imported relatively"
        assert level or top not in HOST_MODULES or file.stem == "host", f"{module} belongs in host.py"
        assert not module.startswith(("longlive_core.cli", "longlive_core.training")), module


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


LOADER = """
import asyncio, importlib.util, sys
checkout, pack = sys.argv[1:]
sys.path.insert(0, checkout)
import comfy.cli_args
comfy.cli_args.args.cpu = True
import utils.extra_config  # as the host's main.py does: later, comfy/utils.py would be found first
name = pack.replace("/", "_").replace(".", "_")
spec = importlib.util.spec_from_file_location(name, pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert not hasattr(module, "NODE_CLASS_MAPPINGS")
extension = asyncio.run(module.comfy_entrypoint())
for node in asyncio.run(extension.get_node_list()):
    print("NODE", node.GET_SCHEMA().node_id)
"""


def checkouts() -> list[Path]:
    return load("tests/host/comfy_server.py", "longlive_comfy_server").checkouts()


def test_a_host_can_load_it():
    found = checkouts()
    if not found:
        pytest.skip("PACK NOT LOADED: no ComfyUI checkout; clone one to ~/comfy/ComfyUI or set COMFYUI_PATH")
    for checkout in found:
        python = checkout / ".venv" / "bin" / "python"
        command = [python if python.exists() else sys.executable, "-c", LOADER, checkout, ROOT]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=checkout, check=False
        )
        assert done.returncode == 0, done.stderr
        loaded = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("NODE ")}
        assert loaded == set(SCHEMAS)
