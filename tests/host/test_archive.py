"""The archive that the registry takes, unpacked into a ComfyUI of its own."""

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "zh", "ja")


def unpacked(folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("docs_archive", ROOT / "docs" / "archive.py")
    archive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(archive)
    archive.write(folder / "longlive.zip")
    with zipfile.ZipFile(folder / "longlive.zip") as file:
        file.extractall(folder / "longlive")
    return folder / "longlive"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="ARCHIVE NOT TESTED: no git checkout")
def test_the_archive_runs_in_a_fresh_comfyui(checkout, comfy, tmp_path):
    pytest.importorskip("websocket", reason="HOST TESTS NOT RUN: pip install websocket-client")
    pack = unpacked(tmp_path)
    server = comfy.Server(checkout, tmp_path / "base", "http://127.0.0.1:9", pack)
    try:
        assert "IMPORT FAILED" not in server.start_log and "Traceback" not in server.start_log
        info, texts = server.get("/object_info"), server.get("/i18n")
        nodes = {name for name in info if name.startswith("LongLive")}
        assert len(nodes) == 10
        for language in LANGUAGES:
            assert nodes <= texts[language]["nodeDefs"].keys() and texts[language]["longlive"]
        workflow = json.loads((pack / "workflows" / "1 Start here - four prompts.json").read_text("utf-8"))
        prompt = comfy.shortened(comfy.as_prompt(workflow, info), 1.5)
        assert server.run(prompt).has_succeeded
    finally:
        server.stop()
