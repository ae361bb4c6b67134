"""Downloads against a server on this machine that speaks the hub's protocol; never the real network."""

import errno
import hashlib
import json
import shutil
import socket
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from huggingface_hub import HfApi, constants, utils

from longlive_core.config import RELATIVES
from longlive_core.weights.checkpoints import preset_of_name
from longlive_core.weights.download import download
from longlive_core.weights.published import (
    CAUSAL_FORCING,
    COMFYUI,
    DOWNLOADS,
    LICENCES,
    LONGLIVE,
    SGF,
    SGF_PLUS,
    WAN,
)

LICENSE = "mit-0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE, LORA = f"{LONGLIVE}/models/longlive_base.pt", f"{LONGLIVE}/models/lora.pt"
Seen = namedtuple("Seen", "method path start")


class Hub(ThreadingHTTPServer):
    """Serves files; small ones itself, large ones by a redirect to another host, as the hub does.

    The connection closes after `cut_at` bytes of a file of `cuts`, as often as it says; what is sent of a
    file of `damaged` ends too early.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        names = {f"{file.repo}/{file.path}" for files in DOWNLOADS.values() for file in files}
        self.files = {name: name.encode() * (9_000 if "google" not in name else 1) for name in names}
        self.seen: list[Seen] = []
        self.cut_at, self.cuts = 0, dict.fromkeys(names, 0)
        self.damaged: set[str] = set()
        self.knows_ranges, self.knows_licences = True, True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """Names of the files of which bytes were asked for."""
        return [seen.path for seen in self.seen if seen.method == "GET" and seen.path.startswith("/cdn/")]

    def starts(self, name: str) -> list[int]:
        """Where each request for a file's bytes began."""
        return [seen.start for seen in self.seen if seen.method == "GET" and seen.path == f"/cdn/{name}"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args) -> None:
        """Be silent."""

    def _answer(self) -> None:
        self.path = unquote(self.path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        start = start if self.server.knows_ranges else 0
        self.server.seen.append(Seen(self.command, self.path, start))
        assert "Authorization" not in self.headers
        if self.path.startswith("/api/models/"):
            self._card(self.path.removeprefix("/api/models/"))
            return
        if self.path.startswith("/cdn/"):
            self._content(self.path.removeprefix("/cdn/"), start)
            return
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        if name not in self.server.files:
            self._head(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT, "Content-Length": "0"})
        elif "google" in name:
            content = self.server.files[name]
            self._head(200, about(content, "ETag") | {"Content-Length": str(len(content))})
            self._body(content)
        else:
            place = f"http://localhost:{self.server.server_port}/cdn/{quote(name)}"
            headers = about(self.server.files[name], "X-Linked-Etag")
            self._head(302, headers | {"Location": place, "Content-Length": "0"})

    def _card(self, repo: str) -> None:
        tags = [f"license:{LICENSE}"] if self.server.knows_licences else []
        content = json.dumps({"id": repo, "tags": tags}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self._body(content)

    def _content(self, name: str, start: int) -> None:
        content = self.server.files[name]
        content = content[:-100] if name in self.server.damaged else content
        rest = content[start:]
        status, headers = (206, {}) if start else (200, {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(status, headers | {"Content-Length": str(len(rest))})
        if self.command == "GET" and self.server.cuts.get(name):
            self.server.cuts[name] -= 1
            self.wfile.write(rest[: self.server.cut_at])
            self.close_connection = True
        else:
            self._body(rest)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, content: bytes) -> None:
        if self.command == "GET":
            self.wfile.write(content)


def about(content: bytes, etag: str) -> dict[str, str]:
    """The hub's headers for a file: a git hash of small files, a SHA-256 of large ones."""
    digest = hashlib.sha256(content) if etag == "X-Linked-Etag" else hashlib.sha1(content)
    return {
        "X-Repo-Commit": COMMIT,
        etag: f'"{digest.hexdigest()}"',
        "X-Linked-Size": str(len(content)),
    }


def only_here(resolve):
    """A name resolution that knows this machine and no other."""

    def resolved(host, *rest, **options):
        assert host in ("127.0.0.1", "localhost"), f"{host} is on the real network"
        return resolve(host, *rest, **options)

    return resolved


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", only_here(socket.getaddrinfo))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # a cut loses what is less than a chunk
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it tries again
    getattr(utils, "reset_sessions", lambda: None)()  # huggingface_hub before 1 keeps the offline ones
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def yes(text: str) -> bool:
    return True


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def link(hub: Hub, file, folder: Path) -> str:
    """Where a file comes from and goes to, as texts for users say it."""
    place = folder / file.kind / file.name
    return f"{hub.endpoint}/{file.repo}/resolve/main/{quote(file.path)} -> {place}"


@pytest.mark.parametrize("name", DOWNLOADS)
def test_files_land_in_the_hosts_folders(hub: Hub, tmp_path: Path, name: str) -> None:
    asked: list[str] = []
    paths = download(name, tmp_path, confirm=lambda text: not asked.append(text), endpoint=hub.endpoint)
    for file, path in zip(DOWNLOADS[name], paths, strict=True):
        assert path == tmp_path / file.kind / file.name
        assert path.read_bytes() == hub.files[f"{file.repo}/{file.path}"]
    assert files_in(tmp_path) == set(paths)
    (text,) = asked
    assert "Apache-2.0" in text and "MB  in all" in text
    assert ("CC-BY-NC-SA 4.0" in text) == name.startswith("longlive")
    for repo in {file.repo for file in DOWNLOADS[name]}:
        assert f"The hub gives the licence of {repo} as {LICENSE}." in text
    assert all(link(hub, file, tmp_path) in text for file in DOWNLOADS[name])


def test_licences_are_those_of_the_missing_files(hub: Hub, tmp_path: Path) -> None:
    texts: list[str] = []
    assert {file.repo for files in DOWNLOADS.values() for file in files} == set(LICENCES)
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    (tmp_path / "vae/wan_2.1_vae.safetensors").unlink()
    download("longlive-1.3b", tmp_path, confirm=lambda text: not texts.append(text), endpoint=hub.endpoint)
    assert LICENCES[COMFYUI] in texts[0] and LICENCES[LONGLIVE] not in texts[0]


def test_the_table_names_known_folders() -> None:
    folders = {file.kind for files in DOWNLOADS.values() for file in files}
    assert folders == {"diffusion_models", "loras", "vae", "text_encoders"}
    repos = {file.repo for files in DOWNLOADS.values() for file in files}
    assert repos == {LONGLIVE, WAN, COMFYUI, SGF, SGF_PLUS, CAUSAL_FORCING}


def test_files_are_saved_under_names_that_tell_their_preset() -> None:
    presets = [name for name in RELATIVES if name in DOWNLOADS]
    assert len(presets) == 7 and DOWNLOADS["sgf-plus"] == DOWNLOADS["sgf-plus-chunkwise"]
    for name in presets:
        assert preset_of_name(Path(DOWNLOADS[name][0].name)).name == name


def test_a_licence_that_the_hub_does_not_give_is_no_failure(hub: Hub, tmp_path: Path) -> None:
    hub.knows_licences, texts = False, []
    download("sgf-plus", tmp_path, confirm=lambda text: texts.append(text), endpoint=hub.endpoint)
    assert f"The hub gives the licence of {SGF_PLUS} as unknown; read its page." in texts[0]


def test_complete_files_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """Only what is missing is asked for; when nothing is, neither the hub nor the user is."""
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    (tmp_path / "loras/longlive_lora.pt").unlink()
    hub.seen.clear()
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert hub.fetched() == [f"/cdn/{LORA}"]
    hub.seen.clear()
    paths = download("longlive-1.3b", tmp_path, confirm=None, endpoint="http://127.0.0.1:1")
    assert len(paths) == 4 and not hub.seen


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at, hub.cuts[BASE] = 100_000, 1
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    first, second = hub.starts(BASE)
    assert first == 0 and 0 < second <= 100_000
    assert (tmp_path / "diffusion_models/longlive_base.pt").read_bytes() == hub.files[BASE]


@pytest.mark.parametrize("gets_further", [True, False])
def test_a_library_that_does_not_try_again_is_called_again_while_it_gets_further(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gets_further: bool
) -> None:
    """In older libraries a broken connection ended the call, and what was there stayed for the next."""
    calls, fetch = [], HfApi.hf_hub_download

    def breaks(api, repo, path, *, local_dir, **options):
        if f"{repo}/{path}" == BASE and len(calls) < 3:
            calls.append(path)
            local_dir.mkdir(parents=True, exist_ok=True)
            (local_dir / "x.incomplete").write_bytes(bytes(100 * len(calls) if gets_further else 100))
            raise ConnectionError("Connection broken: IncompleteRead(100 bytes read)")
        return fetch(api, repo, path, local_dir=local_dir, **options)

    monkeypatch.setattr(HfApi, "hf_hub_download", breaks)
    if gets_further:
        paths = download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
        assert len(calls) == 3 and files_in(tmp_path) == set(paths)
    else:
        with pytest.raises(OSError, match="cannot be downloaded"):
            download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
        assert len(calls) == 2


def test_a_later_call_goes_on_after_the_last_complete_file(hub: Hub, tmp_path: Path) -> None:
    """The connection fails for good in the second file; it does not look complete, the next call gets it."""
    hub.cut_at, hub.cuts[LORA] = 0, 100
    with pytest.raises(OSError, match=r"^longlive-1\.3b cannot be downloaded") as caught:
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    done, *rest = DOWNLOADS["longlive-1.3b"]
    assert all(link(hub, file, tmp_path) in str(caught.value) for file in rest)
    assert link(hub, done, tmp_path) not in str(caught.value)
    assert (tmp_path / "diffusion_models/longlive_base.pt").read_bytes() == hub.files[BASE]
    assert not (tmp_path / "loras/longlive_lora.pt").exists()
    hub.cuts[LORA], texts = 0, []
    hub.seen.clear()
    paths = download(
        "longlive-1.3b", tmp_path, confirm=lambda text: not texts.append(text), endpoint=hub.endpoint
    )
    assert not hub.starts(BASE) and link(hub, done, tmp_path) not in texts[0]
    assert (tmp_path / "loras/longlive_lora.pt").read_bytes() == hub.files[LORA]
    assert files_in(tmp_path) == set(paths)


def test_ctrl_c_leaves_nothing_that_looks_complete(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(api, repo, path, *, local_dir, **options):
        local_dir.mkdir(parents=True)
        (local_dir / "longlive_base.incomplete").write_bytes(hub.files[BASE][:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HfApi, "hf_hub_download", interrupted)
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert not (tmp_path / "diffusion_models/longlive_base.pt").exists()
    paths = download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert files_in(tmp_path) == set(paths) and paths[0].read_bytes() == hub.files[BASE]


def test_a_server_without_ranges_starts_over(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at, hub.cuts[BASE], hub.knows_ranges = 100_000, 1, False
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert (tmp_path / "diffusion_models/longlive_base.pt").read_bytes() == hub.files[BASE]


def test_a_damaged_file_is_noticed(hub: Hub, tmp_path: Path) -> None:
    hub.damaged.add(BASE)
    with pytest.raises(OSError, match=r"longlive-1\.3b cannot be downloaded \(.*[Cc]onsistency check failed"):
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert not (tmp_path / "diffusion_models/longlive_base.pt").exists()
    hub.damaged.clear()
    paths = download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert files_in(tmp_path) == set(paths) and paths[0].read_bytes() == hub.files[BASE]


def test_what_an_earlier_call_left_is_checked(hub: Hub, tmp_path: Path) -> None:
    """A complete file of another version, left between its download and its move."""
    left = tmp_path / "diffusion_models/.longlive_base.pt.download/models/longlive_base.pt"
    left.parent.mkdir(parents=True)
    left.write_bytes(hub.files[BASE][:-1] + b"x")
    paths = download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert files_in(tmp_path) == set(paths) and paths[0].read_bytes() == hub.files[BASE]


def test_declined_means_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    assert download("longlive-1.3b", tmp_path, confirm=lambda text: False, endpoint=hub.endpoint) == []
    assert not hub.fetched() and not list(tmp_path.iterdir())


def test_a_missing_file_says_what_to_do_by_hand(hub: Hub, tmp_path: Path) -> None:
    del hub.files[LORA]
    with pytest.raises(OSError, match="404") as caught:
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert all(link(hub, file, tmp_path) in str(caught.value) for file in DOWNLOADS["longlive-1.3b"])
    assert not hub.fetched() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["closed port", "HF_HUB_OFFLINE", "no headers"])
def test_offline_says_what_to_do_by_hand(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    endpoint = hub.endpoint
    if how == "closed port":
        hub.shutdown()
        hub.server_close()
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setitem(globals(), "about", lambda *of: {})
    with pytest.raises(OSError, match="cannot be downloaded") as caught:
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=endpoint)
    assert all(link(hub, file, tmp_path) in str(caught.value) for file in DOWNLOADS["longlive-1.3b"])
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**6, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"need 2\.\d MB, only 0\.0 MB is free in .*by hand:\nhttp"):
        download("longlive-1.3b", tmp_path / "new", confirm=None, endpoint=hub.endpoint)
    assert not hub.fetched() and not list(tmp_path.iterdir())


def test_errors_of_the_disk_are_not_blamed_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "hf_hub_download", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"longlive-1\.3b-original"):
        download("longlive-9", tmp_path, confirm=yes)
