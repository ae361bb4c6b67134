"""Downloads against a server on this machine that speaks the hub's protocol; never the real network."""

import errno
import hashlib
import shutil
import socket
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from longlive_core.weights.download import COMFYUI, DOWNLOADS, LONGLIVE, WAN, download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = f"{LONGLIVE}/models/longlive_base.pt"
Seen = namedtuple("Seen", "method path start")


class Hub(ThreadingHTTPServer):
    """Serves files; small ones itself, large ones by a redirect to another host, as the hub does.

    `cut_at` closes the connection after that many bytes of a file, `cuts` times.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        names = {f"{file.repo}/{file.path}" for files in DOWNLOADS.values() for file in files}
        self.files = {name: name.encode() * (9_000 if "google" not in name else 1) for name in names}
        self.seen: list[Seen] = []
        self.cut_at, self.cuts = 0, 0
        self.knows_ranges = True

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
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        start = start if self.server.knows_ranges else 0
        self.server.seen.append(Seen(self.command, self.path, start))
        assert "Authorization" not in self.headers
        if self.path.startswith("/cdn/"):
            self._content(self.server.files[self.path.removeprefix("/cdn/")], start)
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
            place = f"http://localhost:{self.server.server_port}/cdn/{name}"
            headers = about(self.server.files[name], "X-Linked-Etag")
            self._head(302, headers | {"Location": place, "Content-Length": "0"})

    def _content(self, content: bytes, start: int) -> None:
        rest = content[start:]
        status, headers = (206, {}) if start else (200, {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(status, headers | {"Content-Length": str(len(rest))})
        if self.command == "GET" and self.server.cuts:
            self.server.cuts -= 1
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
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def yes(text: str) -> bool:
    return True


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


@pytest.mark.parametrize("name", DOWNLOADS)
def test_files_land_in_the_hosts_folders(hub: Hub, tmp_path: Path, name: str) -> None:
    asked: list[str] = []
    paths = download(name, tmp_path, confirm=lambda text: not asked.append(text), endpoint=hub.endpoint)
    for file, path in zip(DOWNLOADS[name], paths, strict=True):
        assert path == tmp_path / file.kind / file.name
        assert path.read_bytes() == hub.files[f"{file.repo}/{file.path}"]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    (text,) = asked
    assert "CC-BY-NC-SA 4.0" in text and "Apache-2.0" in text and "MB  in all" in text
    assert all(f"{file.repo}/{file.path}" in text for file in DOWNLOADS[name])


def test_the_table_names_known_folders() -> None:
    folders = {file.kind for files in DOWNLOADS.values() for file in files}
    assert folders == {"diffusion_models", "loras", "vae", "text_encoders"}
    assert {file.repo for files in DOWNLOADS.values() for file in files} == {LONGLIVE, WAN, COMFYUI}


def test_complete_files_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """Only what is missing is asked for; when nothing is, neither the hub nor the user is."""
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    (tmp_path / "loras/longlive_lora.pt").unlink()
    hub.seen.clear()
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert hub.fetched() == [f"/cdn/{LONGLIVE}/models/lora.pt"]
    hub.seen.clear()
    paths = download("longlive-1.3b", tmp_path, confirm=None, endpoint="http://127.0.0.1:1")
    assert len(paths) == 4 and not hub.seen


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at, hub.cuts = 100_000, 1
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    first, second = hub.starts(BASE)
    assert first == 0 and 0 < second <= 100_000
    assert (tmp_path / "diffusion_models/longlive_base.pt").read_bytes() == hub.files[BASE]


def test_a_later_call_goes_on_where_the_last_one_stopped(hub: Hub, tmp_path: Path) -> None:
    """The connection fails for good: nothing looks complete, and the next call asks for the rest."""
    hub.cut_at, hub.cuts = 0, 100
    hub.files[BASE] = bytes(range(256)) * 4096
    target = tmp_path / "diffusion_models/longlive_base.pt"
    with pytest.raises(OSError, match=r"longlive_base\.pt cannot be fetched"):
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    (part,) = parts(tmp_path)
    part.write_bytes(hub.files[BASE][:500_000])
    assert not target.exists()
    hub.cuts, texts = 0, []
    hub.seen.clear()
    download("longlive-1.3b", tmp_path, confirm=lambda text: not texts.append(text), endpoint=hub.endpoint)
    assert hub.starts(BASE) == [500_000] and target.read_bytes() == hub.files[BASE]
    assert "0.5 MB" in texts[0] and not parts(tmp_path)


def test_ctrl_c_keeps_what_has_come(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url, part, **options):
        part.write(hub.files[BASE][:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("longlive_core.weights.download.http_get", interrupted)
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert hub.starts(BASE) == [1000] and not parts(tmp_path)


def test_a_server_without_ranges_starts_over(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at, hub.cuts, hub.knows_ranges = 100_000, 1, False
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert (tmp_path / "diffusion_models/longlive_base.pt").read_bytes() == hub.files[BASE]


def test_a_damaged_file_is_noticed_and_deleted(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    version = hashlib.sha256(hub.files[BASE]).hexdigest()
    (folder / f"longlive_base.pt.{version[:16]}.part").write_bytes(b"something else")
    with pytest.raises(OSError, match=r"longlive_base\.pt arrived damaged"):
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert not list(folder.iterdir())
    assert download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)


def test_a_part_longer_than_its_file_starts_over(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    version = hashlib.sha256(hub.files[BASE]).hexdigest()
    (folder / f"longlive_base.pt.{version[:16]}.part").write_bytes(hub.files[BASE] + b"x")
    download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    assert (folder / "longlive_base.pt").read_bytes() == hub.files[BASE]


def test_declined_means_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    assert download("longlive-1.3b", tmp_path, confirm=lambda text: False, endpoint=hub.endpoint) == []
    assert not hub.fetched() and not list(tmp_path.iterdir())


def test_a_missing_file_says_what_to_do_by_hand(hub: Hub, tmp_path: Path) -> None:
    del hub.files[f"{LONGLIVE}/models/lora.pt"]
    with pytest.raises(OSError, match="404") as caught:
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)
    message = str(caught.value)
    assert f"{hub.endpoint}/{LONGLIVE}/tree/main: models/lora.pt" in message
    assert str(tmp_path / "loras" / "longlive_lora.pt") in message
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
    with pytest.raises(OSError, match="cannot be fetched") as caught:
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=endpoint)
    message = str(caught.value)
    for file in DOWNLOADS["longlive-1.3b"]:
        assert f"{endpoint}/{file.repo}" in message and str(tmp_path / file.kind / file.name) in message
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**6, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"need 2\.\d MB, but .* has only 0\.0 MB free"):
        download("longlive-1.3b", tmp_path / "new", confirm=None, endpoint=hub.endpoint)
    assert not hub.fetched() and not list(tmp_path.iterdir())


def test_errors_of_the_disk_are_not_blamed_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("longlive_core.weights.download.http_get", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        download("longlive-1.3b", tmp_path, confirm=yes, endpoint=hub.endpoint)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"longlive-1\.3b-original"):
        download("longlive-9", tmp_path, confirm=yes)
