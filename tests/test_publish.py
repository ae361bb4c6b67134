"""What is published: metadata, images, the registry's archive, texts in three languages, lower bounds."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longlive_core.config import VERSION
from longlive_core.steering.live import PACES

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
REPOSITORY = re.search(r'^Repository = "(https://github\.com/[\w-]+/ComfyUI-LongLive)"$', PYPROJECT, re.M)[1]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + "/main/"
REQUIREMENT = re.compile(r'(?:^|")([A-Za-z][\w-]*)(?:>=|==)([\d.]+)', re.M)
TOOLS = {"ruff", "playwright", "websocket-client"}  # of lint and of the servers' tests: the pinned ones run
STATE_LINE = re.compile(r'^.*(?:return "|self\._end, |self\._close\(").*$', re.M)
NEEDS_GIT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="ARCHIVE NOT TESTED: no git checkout")


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value(name: str) -> str:
    """The string that a key of pyproject.toml holds."""
    return re.search(rf'^"?{name}"? = "(.*)"$', PYPROJECT, re.M)[1]


def versions(name: str) -> dict[str, str]:
    """Requirement -> version of every `name>=version` or `name==version` in a file."""
    found = REQUIREMENT.findall((ROOT / name).read_text("utf-8"))
    return {package.lower(): version for package, version in found}


# Metadata


def test_links_are_of_one_repository() -> None:
    assert value("Documentation") == f"{REPOSITORY}/tree/main/docs"
    assert value("Bug Tracker") == f"{REPOSITORY}/issues"
    assert value("Icon") == f"{RAW}docs/icon.png" and value("Banner") == f"{RAW}docs/banner.png"
    owner = REPOSITORY.split("/")[-2]
    for name in ("pyproject.toml", "README.md", "docs/publishing.md"):
        owners = re.findall(r"([\w-]+)/ComfyUI-LongLive\b", (ROOT / name).read_text("utf-8"))
        assert set(owners) == {owner}, name


def test_the_newest_change_is_of_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (\S+)$", changes, re.M)[0] == VERSION == value("version")


def test_what_the_registry_asks_of_the_name_and_the_version() -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,99}", value("name")) and "comfyui" not in value("name")
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert value("PublisherId") and value("DisplayName") and value("requires-comfyui").startswith(">=")


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_images_are_drawn_by_their_script(name: str) -> None:
    images = getattr(script("icon"), name)(), Image.open(ROOT / "docs" / f"{name}.png")
    drawn, kept = (np.asarray(image, dtype=int) for image in images)
    assert drawn.shape == kept.shape and np.abs(drawn - kept).mean() < 1
    height, width, _ = kept.shape
    assert (width == height <= 400) if name == "icon" else (width * 9 == height * 21)


def test_workflows_of_github_call_what_exists() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    yaml = pytest.importorskip("yaml")
    called, actions = set(), set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values():
            for step in job["steps"]:
                actions.add(step.get("uses", "").partition("@")[0])
                if step.get("run", "").startswith("make "):
                    called |= set(step["run"].split()[1:])
    assert called == {"lint", "test", "oldest"} <= set(targets)
    assert "Comfy-Org/publish-node-action" in actions


# Lower bounds


def test_lower_bounds_are_versions_that_are_run() -> None:
    bounds, oldest, pinned = map(versions, ("pyproject.toml", "tests/oldest.txt", "constraints.txt"))
    del bounds["setuptools"]
    assert bounds == oldest | {name: pinned[name] for name in TOOLS}


def test_every_dependency_but_the_one_never_run_has_a_lower_bound() -> None:
    listed = re.search(r"^dependencies.*?^\[project.urls\]", PYPROJECT, re.M | re.S)[0]
    assert re.findall(r'"([A-Za-z][\w-]*)"', listed) == ["flash-attn"]


def test_requirements_are_those_that_comfyui_lacks() -> None:
    ours = versions("requirements.txt")
    assert list(ours) == ["huggingface_hub", "imageio"]
    assert ours.items() <= versions("pyproject.toml").items()


# The archive


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder as the registry would lay it into custom_nodes."""
    folder = tmp_path_factory.mktemp("archive")
    script("archive").write(folder / "longlive.zip")
    with zipfile.ZipFile(folder / "longlive.zip") as archive:
        archive.extractall(folder / "longlive")
    return folder / "longlive"


def python(*arguments: str, cwd: Path, path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@NEEDS_GIT
def test_the_archive_holds_what_users_need_and_nothing_else(unpacked: Path) -> None:
    names = {path.name for path in unpacked.iterdir()}
    code = {"__init__.py", "longlive_core", "nodes", "web", "locales", "workflows"}
    about = {"pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE", "docs"}
    assert names == code | about
    suffixes = {path.suffix for path in unpacked.rglob("*") if path.is_file()} - {""}
    assert suffixes == {
        ".py",
        ".typed",
        ".js",
        ".html",
        ".json",
        ".jpg",
        ".md",
        ".txt",
        ".toml",
        ".safetensors",
    }
    for folder in code - {"__init__.py"}:
        ours = {f.relative_to(ROOT) for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix != ".pyc"}
        assert ours == {f.relative_to(unpacked) for f in (unpacked / folder).rglob("*") if f.is_file()}
    assert sum(path.stat().st_size for path in unpacked.rglob("*")) < 12 * 2**20


@NEEDS_GIT
def test_the_archive_runs_no_text_as_code(unpacked: Path) -> None:
    """The registry refuses packs with eval and exec."""
    for file in unpacked.rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not called & {"eval", "exec"}, file


@NEEDS_GIT
def test_the_archive_makes_a_video_unpacked_and_installed(unpacked: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "68")  # as build-system asks; an older one comes with some Pythons
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(unpacked, source)  # pip builds in it
    install = f"-m pip install --quiet --no-deps --no-build-isolation --target {installed} {source}"
    python(*install.split(), cwd=tmp_path, path=tmp_path / "nothing")
    for folder in (unpacked, installed):
        video = tmp_path / f"{folder.name}.mp4"
        made = ["--prompt", "a red circle rests over navy", "--seconds", "1", "--out", str(video)]
        python("-m", "longlive_core", "generate", *made, cwd=tmp_path, path=folder)
        assert video.stat().st_size > 1000


# Languages

locales = script("locales")
TRANSLATED = [language for language in locales.LANGUAGES if language != "en"]
FOREIGN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
KEY = re.compile(r" \([^()]*\)$")  # of a button's title: its shortcut, which is cut off its label


def test_folders_are_of_the_languages() -> None:
    assert sorted(folder.name for folder in locales.LOCALES.iterdir()) == sorted(locales.LANGUAGES)


@pytest.mark.parametrize("name", locales.FILES)
def test_the_english_texts_are_those_of_the_code(name: str) -> None:
    """`python docs/locales.py` writes them again."""
    assert locales.read("en", name) == locales.english()[name]


@pytest.mark.parametrize("name", locales.FILES)
@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_is_translated(language: str, name: str) -> None:
    assert not locales.missing(language, name)
    english = dict(locales.leaves(locales.english()[name]))
    for keys, text in locales.leaves(locales.read(language, name)):
        is_name = keys[-1] == "name"  # of an input or output: some are the same everywhere, such as VAE
        assert FOREIGN.search(text) or is_name, (keys, text)
        places = (sorted(re.findall(r"\{\w+\}", words)) for words in (text, english[keys]))
        assert len({tuple(found) for found in places}) == 1, text
        assert KEY.findall(text) == KEY.findall(english[keys]) or "{" in text or len(keys) > 2, text


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_comfyui_can_show_every_text_of_a_node(language: str) -> None:
    """Its pages read names and descriptions as templates, in which these characters mean something else."""
    for keys, text in locales.leaves(locales.read(language, "nodeDefs.json")):
        assert text.strip() and not set("{}@|") & set(text), keys


def test_no_text_of_the_pages_is_english_only() -> None:
    shown = re.compile(r'(?:title|label|placeholder|textContent|"aria-label")(?: =|:) ["`]\w.*')
    for file in (ROOT / "web" / "js").rglob("*.js"):
        assert not shown.findall(file.read_text("utf-8")), file.name


def test_the_words_of_the_server_are_translated() -> None:
    files = (ROOT / "longlive_core" / "steering" / "live.py", ROOT / "nodes" / "live.py")
    lines = [line for file in files for line in STATE_LINE.findall(file.read_text("utf-8"))]
    assert set(re.findall(r'"(\w+)"', "".join(lines))) == set(locales.STATES)
    assert set(locales.SERVER_WORDS) - set(locales.STATES) <= {*PACES, "schedule", "live"}
