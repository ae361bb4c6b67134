"""The stage in a real ComfyUI: who is let in, what they reach, how much they may send, and that it closes."""

import http.client
import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

HERE, OTHER = "127.0.0.1", "127.0.0.2"
PAGE = "/longlive/stage"
EVENTS, PROMPT = f"{PAGE}/events", f"{PAGE}/prompt"
NODE = "31"
LOCAL = f"?node={NODE}"
SENT = {"prompt": "it turns blue"}
WITH_SEGNO = importlib.util.find_spec("segno") is not None


def graph(node: str = NODE, seed: int = 41, seconds: float = 0.0) -> dict:
    """Mini, a schedule, a stream of that id, in real time."""
    settings = {"width": 64, "height": 64, "seconds": seconds, "seed": seed, "pace": "real time"}
    links = {"model": ["1", 0], "schedule": ["2", 0], "vae": ["1", 2]}
    return {
        "1": {"class_type": "LongLiveLoadMini", "inputs": {}},
        "2": {
            "class_type": "LongLivePromptSchedule",
            "inputs": {"clip": ["1", 1], "prompts": "a circle"},
        },
        node: {"class_type": "LongLiveStream", "inputs": links | settings},
    }


class Viewer:
    """Requests to an address of a server, from one of this machine's loopback addresses."""

    def __init__(self, address: str, source: str = OTHER):
        self.address, self.source = address, source
        self.cookie = ""

    def connect(self, path: str, method: str = "GET", body=None, **headers) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=20, source_address=(self.source, 0))
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"Cookie": self.cookie} if self.cookie else {}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse()

    def ask(self, path: str, method: str = "GET", body=None, **headers) -> tuple[int, bytes]:
        with self.connect(path, method, body, **headers) as answer:
            return answer.status, answer.read()

    def send(self, path: str = PROMPT, body=SENT, **headers) -> tuple[int, dict]:
        status, text = self.ask(path, "POST", body, **headers)
        return status, json.loads(text)

    def enter(self, link: str) -> None:
        """Follow the link: to the page without the token, by a cookie that scripts cannot read."""
        with self.connect(link) as answer:
            assert answer.status == 302 and "token" not in answer.headers["Location"]
            cookie = answer.headers["Set-Cookie"]
            assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
            self.cookie = cookie.partition(";")[0]


def event(answer: http.client.HTTPResponse) -> dict:
    """The next event of a stream."""
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return json.loads(line.removeprefix(b"data: "))


@contextmanager
def running(server, prompt: dict):
    """A run in the background, which does not outlast the test; gives its snapshot once it has a block."""
    (node,) = (name for name, part in prompt.items() if part["class_type"] == "LongLiveStream")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.run, prompt)
        try:
            yield until(lambda: newest(server, node))
        finally:
            while not future.done():
                server.post("/interrupt", {})
                time.sleep(0.2)


def newest(server, node: str) -> dict | None:
    runs = [run for run in server.get("/longlive/runs")["runs"] if run["node"] == node]
    return next((run for run in runs if run["block"] and run["state"] == "running"), None)


def until(found, seconds: float = 60.0):
    """The first true value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.fixture
def opened(server):
    """Opens the stage, at any free port; closes it at the end."""

    def open_stage(**options) -> tuple[str, str]:
        body = {"is_open": True, "node": NODE, "workflow": None, **options}
        link = urlsplit(server.post("/longlive/door", body)["link"])
        return f"127.0.0.1:{link.port}", f"{link.path}?{link.query}"

    yield open_stage
    server.post("/longlive/door", {"is_open": False})


def test_other_addresses_need_the_token_and_reach_one_nodes_runs_only(server, opened):
    assert server.get("/longlive/door") == {"is_open": False}
    closed = Viewer(server.address)
    assert closed.ask(PAGE)[0] == closed.ask(EVENTS)[0] == 403, "ComfyUI's own port, before it is opened"
    with running(server, graph(node="77", seed=42)) as other:
        pass
    with running(server, graph()) as run:
        address, link = opened()
        for place in (address, server.address):
            stranger, viewer = Viewer(place), Viewer(place)
            video = f"{PAGE}/video/{run['run']}"
            for path in (PAGE, EVENTS, f"{PAGE}/web/texts.js", video, f"{PAGE}?token=x"):
                assert stranger.ask(path)[0] == 403, path
            assert stranger.send()[0] == stranger.send(f"{PROMPT}?token=%E9")[0] == 403
            viewer.enter(link)
            assert b"<video" in viewer.ask(PAGE)[1] and viewer.ask(f"{PAGE}/web/live/player.js")[0] == 200
            with viewer.connect(EVENTS + "?node=77") as answer:
                assert event(answer)["run"] == run["run"], "another node cannot be named"
            with viewer.connect(f"{video}?late") as answer:
                assert answer.status == 200 and answer.read(8)[4:] == b"ftyp"
            assert viewer.ask(f"{PAGE}/video/{other['run']}")[0] == 404
        viewer = Viewer(address)
        viewer.enter(link)
        for path in unreachable(other["run"]):
            assert viewer.ask(path)[0] in (400, 403, 404), path
        assert viewer.send(PROMPT + "?node=77")[0] == 202
        taken = until(lambda: server.get(f"/longlive/runs/{run['run']}")["cues"][1:])
        assert taken[0]["prompt"] == SENT["prompt"]
    token = link.partition("token=")[2]
    assert len(token) >= 32 and token not in server.log


def unreachable(run: str) -> list[str]:
    """What a viewer must not reach on the stage's own server."""
    names = ("pyproject.toml", "etc/passwd")
    files = [f"/web/{'../' * climbs}{name}" for climbs in (1, 3, 8) for name in names]
    files += ["/web/%2e%2e/%2e%2e/pyproject.toml", "/web/..%2f..%2fpyproject.toml", "/web//etc/passwd"]
    files += ["/texts/../en", "/texts/..%2f..%2fen", f"/video/..%2f{run}", "/video/current"]
    routes = ["/", "/history", "/view?filename=x.mp4", "/longlive/runs", f"/longlive/runs/{run}/video"]
    return [*(PAGE + file for file in files), *routes, "/longlive/door", "/api/longlive/runs", "/prompt"]


@pytest.mark.newest
def test_this_machine_needs_no_token_unless_another_speaks_through_it(server, opened):
    here = Viewer(server.address, HERE)
    assert here.ask(PAGE + LOCAL)[0] == 200
    proxied = {"X_Forwarded_For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"Host": "evil.example"}
    for headers in proxied:
        assert here.ask(PAGE + LOCAL, **headers)[0] == 403, headers
    address, link = opened()
    here, viewer = Viewer(address, HERE), Viewer(address)
    assert here.ask(PAGE)[0] == 200 and here.ask(PAGE, Host="evil.example")[0] == 403
    viewer.enter(link)
    crossing = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"}, {"Origin": "http://evil.example"}
    for headers in crossing:
        assert viewer.send(**headers)[0] == here.send(**headers)[0] == 403, headers
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}  # a link on another page
    assert viewer.ask(PAGE, **followed)[0] == 200
    assert viewer.ask(PROMPT, "POST", SENT, Content_Type="text/plain")[0] == 415


@pytest.mark.newest
def test_what_is_sent_and_watched_has_limits(server, opened):
    address, link = opened(node="32")
    viewer, next_one = Viewer(address), Viewer(address, "127.0.0.3")
    for one in (viewer, next_one):
        one.enter(link)
    assert viewer.send()[0] == 404, "no run of the node yet"
    assert viewer.send(body=b"x" * 9000)[0] == 413 and viewer.send(body={"prompt": "x" * 1001})[0] == 413
    assert viewer.send(body={"prompt": "x", "seed": 1})[0] == 400
    status, answer = viewer.send()
    assert status == 429 and "wait a little" in answer["error"]
    assert next_one.send()[0] == 404, "another address has its own share"
    streams = [viewer.connect(EVENTS) for _ in range(12)]
    assert {stream.status for stream in streams} == {200} and viewer.ask(EVENTS)[0] == 503
    with next_one.connect(EVENTS) as answer:
        assert answer.status == 200
    shown = [page["address"] for page in server.get("/longlive/door")["viewers"]]
    assert shown.count(OTHER) == 12
    for stream in streams:
        stream.close()
    until(lambda: not server.get("/longlive/door")["viewers"])


@pytest.mark.newest
def test_a_connection_beyond_the_limit_is_cut(opened):
    import socket

    address, _ = opened()
    host, port = address.split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(256)]
    try:
        idle[-1].settimeout(5)
        with pytest.raises(ConnectionError):
            if not idle[-1].recv(1):
                raise ConnectionError
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.newest
def test_closing_cuts_everyone_and_a_new_link_lets_the_old_one_in_no_more(server, opened):
    address, link = opened()
    viewers = [Viewer(address), Viewer(server.address)]
    for viewer in viewers:
        viewer.enter(link)
    streams = [viewer.connect(EVENTS) for viewer in viewers]
    for stream in streams:
        event(stream)
    assert server.post("/longlive/door", {"is_open": False}) == {"is_open": False}
    for stream in streams:
        with pytest.raises((OSError, AssertionError, http.client.HTTPException)):
            while event(stream):
                pass
    with pytest.raises(OSError):
        viewers[0].ask(PAGE)
    assert viewers[1].ask(PAGE)[0] == 403
    address, newer = opened()
    viewer = Viewer(address)
    assert viewer.ask(link)[0] == 403
    viewer.enter(newer)


@pytest.mark.newest
def test_the_door_takes_a_port_and_says_what_it_cannot_take(server, comfy, opened):
    port = int(server.address.split(":")[1])
    for body, sentence in (
        ({"port": port}, f"no server could be started on port {port}"),
        ({"port": "8080"}, "whole number"),
        ({"node": 3}, "name the node"),
    ):
        with pytest.raises(comfy.PromptRefused, match=sentence):
            server.post("/longlive/door", {"is_open": True, "node": NODE, **body})
        assert server.get("/longlive/door") == {"is_open": False}
    opened()
    state = server.get("/longlive/door")
    assert (state["node"], state["workflow"], state["may_pause"]) == (NODE, None, False)
    assert (state["qr"] or "").startswith("data:image/svg+xml") == WITH_SEGNO


@pytest.mark.newest
def test_a_viewer_pauses_only_where_that_is_allowed(server, opened):
    with running(server, graph(seed=43)) as run:
        here = Viewer(server.address, HERE)
        assert here.send(f"{PAGE}/pause{LOCAL}", {})[1]["state"] == "paused"
        address, link = opened()
        viewer = Viewer(address)
        viewer.enter(link)
        assert viewer.send(f"{PAGE}/resume", {})[0] == 403
        assert opened(may_pause=True) == (address, link)
        assert viewer.send(f"{PAGE}/resume", {})[1]["may_pause"]
        assert server.get(f"/longlive/runs/{run['run']}")["state"] == "running"
