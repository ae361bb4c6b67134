"""The only file that knows ComfyUI's insides: devices, interrupts, progress, files, what a node shows."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import InputImpl, io, ui
from PIL import Image
from server import PromptServer

PREVIEW_PIXELS = 512  # longest side of a live preview; smaller pictures are enlarged to it
SHOWN_LINES = 12
LISTING_KEY = "longlive_video"


def device() -> torch.device:
    """Where models run."""
    return comfy.model_management.get_torch_device()


def throw_if_interrupted() -> None:
    """Raise the host's interrupt exception if the user pressed stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def some_lines(lines: Sequence[str]) -> str:
    """Lines as a node can show them: the first ones of very many."""
    more = len(lines) - SHOWN_LINES
    return "\n".join(lines if more <= 0 else [*lines[:SHOWN_LINES], f"and {more} more"])


def show_text(node_id: str, text: str) -> None:
    """Write a status text on a node, as far as there is a server to show it."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id, server.client_id)


class Progress:
    """Progress bar, live preview and status text of one running node."""

    def __init__(self, node_id: str, num_steps: int):
        self._node_id = node_id
        self._num_steps = num_steps
        self._done = 0
        self._bar = comfy.utils.ProgressBar(num_steps, node_id=node_id)

    def step(self) -> None:
        """One more step is done; raises the host's interrupt exception if the user pressed stop."""
        throw_if_interrupted()
        self._done += 1
        self._bar.update_absolute(self._done, self._num_steps)

    def preview(self, picture: np.ndarray) -> None:
        """Show a picture uint8 [H, W, 3] on the node."""
        image = ("JPEG", Image.fromarray(picture), PREVIEW_PIXELS)
        self._bar.update_absolute(self._done, self._num_steps, image)

    def text(self, text: str) -> None:
        """Replace the node's status text."""
        show_text(self._node_id, text)


@dataclass
class VideoFile:
    """A video that is being made: `path` lies in the output folder until the host may have it."""

    path: Path
    subfolder: str
    folder: io.FolderType = io.FolderType.output

    def finish(self) -> None:
        """Move the finished video to the temp folder: keeping it is the business of Save Video."""
        target = Path(folder_paths.get_temp_directory(), self.subfolder, self.path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(shutil.move(self.path, target))
        self.folder = io.FolderType.temp

    def as_input(self) -> InputImpl.VideoFromFile:
        """What a VIDEO socket carries."""
        return InputImpl.VideoFromFile(str(self.path))

    def as_listing(self) -> dict[str, list[ui.SavedResult]]:
        """How /history names the file.

        Not as ui.PreviewVideo: a page shows either a live preview or a video on a node, and once a node has
        put out a video its live previews stay dark.
        """
        return {LISTING_KEY: [ui.SavedResult(self.path.name, self.subfolder, self.folder)]}


@contextmanager
def video_file(prefix: str, tag: str) -> Iterator[VideoFile]:
    """A new file `prefix`_counter_`tag`.mp4, in temp once the block is left in peace.

    After an interrupt or an error what was made stays in the output folder; an empty file does not.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    video = VideoFile(Path(folder, f"{name}_{counter:05}_{tag}.mp4"), subfolder)
    yield video
    video.finish()
