"""Frames of a video -> one image of evenly spaced thumbnails."""

import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from einops import rearrange
from PIL import Image

from .growing import write_whole

COLUMNS = 10
ROWS = 6
THUMBNAIL_WIDTH = 128


class ContactSheet:
    """Keeps a few of `num_frames` frames: time runs along the rows, top to bottom."""

    def __init__(self, num_frames: int):
        count = min(num_frames, COLUMNS * ROWS)
        self._columns = min(COLUMNS, count)
        self._wanted = set(np.linspace(0, num_frames - 1, count).round().astype(int).tolist())
        self._seen = 0
        self._thumbnails: list[np.ndarray] = []

    def restore(self, num_frames: int, thumbnails: list[np.ndarray]) -> None:
        """Go on after so many frames, with the thumbnails that they gave."""
        self._seen, self._thumbnails = num_frames, [*thumbnails]

    def append(self, frames: np.ndarray) -> list[np.ndarray]:
        """Frames uint8 [F, H, W, 3]; the thumbnails uint8 [h, w, 3] of those that are kept."""
        had = len(self._thumbnails)
        for frame in frames:
            if self._seen in self._wanted:
                size = (THUMBNAIL_WIDTH, round(THUMBNAIL_WIDTH * frame.shape[0] / frame.shape[1]))
                self._thumbnails.append(np.asarray(Image.fromarray(frame).resize(size)))
            self._seen += 1
        return self._thumbnails[had:]

    def save(self, path: str | Path) -> None:
        """Write the thumbnails so far; without any, nothing. An earlier image stays until all is written."""
        if not self._thumbnails:
            return
        empty = -len(self._thumbnails) % self._columns
        cells = [*self._thumbnails, *empty * [np.zeros_like(self._thumbnails[0])]]
        sheet = rearrange(cells, "(row column) h w rgb -> (row h) (column w) rgb", column=self._columns)
        image = encoded_image(sheet, Path(path).suffix)
        write_whole(Path(os.path.realpath(path)), lambda part: part.write_bytes(image))


def encoded_image(image: np.ndarray, ending: str) -> bytes:
    """An image uint8 [H, W, 3] in the format of that ending, such as `.png`.

    Raises OSError, ValueError or LookupError where Pillow cannot write that format, or not in colour.
    """
    return iio.imwrite("<bytes>", image, plugin="pillow", extension=ending.lower())
