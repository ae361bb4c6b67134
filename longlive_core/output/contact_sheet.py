"""Frames of a video, as they come -> one picture of evenly spaced thumbnails."""

from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = 10
ROWS = 6
THUMBNAIL_WIDTH = 128


class ContactSheet:
    """Keeps a few of `num_frames` frames: time runs along the rows, top to bottom."""

    def __init__(self, num_frames: int, columns: int = COLUMNS, rows: int = ROWS):
        count = min(num_frames, columns * rows)
        self._columns = min(columns, count)
        self._wanted = set(np.linspace(0, num_frames - 1, count).round().astype(int).tolist())
        self._seen = 0
        self._kept: list[Image.Image] = []

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [F, H, W, 3]."""
        for picture in frames:
            if self._seen in self._wanted:
                height = round(THUMBNAIL_WIDTH * picture.shape[0] / picture.shape[1])
                self._kept.append(Image.fromarray(picture).resize((THUMBNAIL_WIDTH, height)))
            self._seen += 1

    def save(self, path: str | Path) -> None:
        """Write the sheet as far as the frames came; without any, nothing."""
        if not self._kept:
            return
        width, height = self._kept[0].size
        rows = -(-len(self._kept) // self._columns)
        sheet = Image.new("RGB", (self._columns * width, rows * height))
        for index, thumbnail in enumerate(self._kept):
            sheet.paste(thumbnail, (index % self._columns * width, index // self._columns * height))
        sheet.save(path)
