"""Flat colours, written to a video and read back by Chromium: while the file grows, and finished."""

import base64

import numpy as np
import pytest

from longlive_core.output.video import VideoWriter

COLOURS = ((240, 120, 180), (255, 0, 0), (0, 255, 0), (20, 24, 60))
PLACE = "http://colours.test/"  # answered by the test: a page of no origin may not read what it draws
SIZES = ((64, 64), (832, 480), (480, 832), (1280, 720))
# the middle of each of the four stripes that a video shows
SEEN = """async data => {
  const bytes = await (await fetch(`data:video/mp4;base64,${data}`)).blob();
  const video = Object.assign(document.createElement("video"), { muted: true });
  const shown = new Promise((done, failed) => {
    video.requestVideoFrameCallback(done);
    video.onerror = () => failed(new Error(video.error.message));
  });
  video.src = URL.createObjectURL(bytes);
  document.body.append(video);
  await video.play();
  await shown;
  const { videoWidth: width, videoHeight: height } = video;
  const pen = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  pen.drawImage(video, 0, 0);
  const at = stripe => [...pen.getImageData((stripe + 0.5) * width / 4, height / 2, 1, 1).data].slice(0, 3);
  return [0, 1, 2, 3].map(at);
}"""


@pytest.fixture(scope="module")
def blank(browser):
    """An empty page, without ComfyUI."""
    page = browser.new_page()
    page.route(PLACE, lambda route: route.fulfill(body="<p>", content_type="text/html"))
    page.goto(PLACE)
    yield page
    page.close()


def stripes(width: int, height: int) -> np.ndarray:
    """A second of four flat colours next to each other."""
    row = np.repeat(np.array(COLOURS, np.uint8), width // len(COLOURS), axis=0)
    return np.ascontiguousarray(np.broadcast_to(row, (16, height, width, 3)))


def seen(page, data: bytes) -> np.ndarray:
    return np.array(page.evaluate(SEEN, base64.b64encode(data).decode()))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_chromium_shows_the_colours_that_were_given(blank, tmp_path, width, height):
    path = tmp_path / "v.mp4"
    with VideoWriter(path, width, height) as writer:
        writer.append(stripes(width, height))
        writer.flush()
        growing = path.read_bytes()
    for data in (growing, path.read_bytes()):
        assert np.abs(seen(blank, data) - COLOURS).max() <= 3
