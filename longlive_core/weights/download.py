"""Published files -> the host's model folders, through huggingface_hub: its progress bars, its retries.

A file appears under its name only when it is whole: until then it is `NAME.ETAG.part` beside it, and a later
call goes on where the last one stopped.
"""

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get

LONGLIVE = "Efficient-Large-Model/LongLive-1.3B"
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
COMFYUI = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
LICENCE = f"""\
LongLive-1.3B has two statements of its licence, and they differ:
- its model card ({constants.ENDPOINT}/{LONGLIVE}) says CC-BY-NC-SA 4.0: no commercial use,
  https://creativecommons.org/licenses/by-nc-sa/4.0/
- its repository (https://github.com/NVlabs/LongLive) announced Apache-2.0 on 2025-11-01,
  https://www.apache.org/licenses/LICENSE-2.0
Wan2.1's VAE and the UMT5 text encoder are under Apache-2.0."""
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_NO_TOKEN = False  # everything here is public


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, and where it belongs: `kind` is one of the host's model folders."""

    repo: str
    path: str
    kind: str
    name: str

    def target(self, folder: Path) -> Path:
        """Where it lands under the folder of all models."""
        return folder / self.kind / self.name


_TRANSFORMER = (
    RemoteFile(LONGLIVE, "models/longlive_base.pt", "diffusion_models", "longlive_base.pt"),
    RemoteFile(LONGLIVE, "models/lora.pt", "loras", "longlive_lora.pt"),
)
_FP8_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
_TOKENIZER = tuple(
    f"google/umt5-xxl/{name}"
    for name in ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
)
DOWNLOADS = {
    "longlive-1.3b-transformer": _TRANSFORMER,
    "longlive-1.3b": (
        *_TRANSFORMER,
        RemoteFile(COMFYUI, "split_files/vae/wan_2.1_vae.safetensors", "vae", "wan_2.1_vae.safetensors"),
        RemoteFile(COMFYUI, f"split_files/text_encoders/{_FP8_ENCODER}", "text_encoders", _FP8_ENCODER),
    ),
    "longlive-1.3b-original": (
        *_TRANSFORMER,
        RemoteFile(WAN, "Wan2.1_VAE.pth", "vae", "Wan2.1_VAE.pth"),
        RemoteFile(WAN, _ENCODER, "text_encoders", _ENCODER),
        *(RemoteFile(WAN, path, "text_encoders", path) for path in _TOKENIZER),
    ),
}


@dataclass(frozen=True)
class _Job:
    """A file that is missing here, and what the hub says of it."""

    file: RemoteFile
    target: Path
    url: str
    etag: str
    size: int

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.{self.etag[:16]}.part")

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self.size - (self.part.stat().st_size if self.part.exists() else 0)


def download(
    name: str, folder: Path, *, confirm: Callable[[str], bool], endpoint: str | None = None
) -> list[Path]:
    """Fetch what a name in DOWNLOADS stands for into the model folders under `folder`; the files' paths.

    Files that are there are left alone. If any is missing, `confirm` is asked once with a text of sizes and
    licences; if it declines, nothing is fetched and the list is empty. `endpoint` None is the hub, or the
    mirror in HF_ENDPOINT. Raises ValueError for an unknown name; OSError when the hub, a file of it or room
    on the disk is missing, with what to download by hand and where to put it.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"unknown download {name!r}; choose one of {', '.join(DOWNLOADS)}")
    folder = Path(folder)
    missing = [file for file in DOWNLOADS[name] if not file.target(folder).exists()]
    by_hand = _by_hand(missing, folder, endpoint or constants.ENDPOINT)
    jobs = [_job(file, folder, endpoint, by_hand) for file in missing]
    if jobs:
        _check_room(jobs)
        if not confirm(_announcement(jobs)):
            return []
    for job in jobs:
        _fetch(job, by_hand)
    return [file.target(folder) for file in DOWNLOADS[name]]


def _job(file: RemoteFile, folder: Path, endpoint: str | None, by_hand: str) -> _Job:
    """Ask the hub for one file's size and version."""
    with _explained(file, by_hand):
        url = hf_hub_url(file.repo, file.path, endpoint=endpoint)
        about: HfFileMetadata = get_hf_file_metadata(url, token=_NO_TOKEN)
        if about.size is None or not about.etag:
            raise OSError("the server does not say which version it has and how large it is")
        fixed = hf_hub_url(file.repo, file.path, endpoint=endpoint, revision=about.commit_hash)
    return _Job(file, file.target(folder), fixed, re.sub(r"\W", "", about.etag), about.size)


def _fetch(job: _Job, by_hand: str) -> None:
    """One file, from where an earlier attempt stopped."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with job.part.open("ab") as part:
        if job.left < 0:
            part.truncate(0)
        with _explained(job.file, by_hand):
            http_get(
                job.url,
                part,
                resume_size=part.seek(0, SEEK_END),
                headers={"Accept-Encoding": "identity"},  # a compressed file could not be resumed
                expected_size=job.size,
                displayed_filename=job.target.name,
            )
    _check_sum(job)
    job.part.replace(job.target)


def _check_sum(job: _Job) -> None:
    """The hub's version of a large file is its SHA-256."""
    if not _SHA256.match(job.etag):
        return
    digest = hashlib.sha256()
    with job.part.open("rb") as part:
        while chunk := part.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != job.etag:
        job.part.unlink()
        raise OSError(f"{job.target.name} arrived damaged (its SHA-256 is wrong) and was deleted; try again")


@contextmanager
def _explained(file: RemoteFile, by_hand: str) -> Iterator[None]:
    """What the hub's library raises depends on its version and its HTTP library; it leaves as one OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of this machine's disk
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise OSError(f"{file.repo}/{file.path} cannot be fetched ({reason}). {by_hand}") from error


def _by_hand(files: list[RemoteFile], folder: Path, site: str) -> str:
    """Pages, file names and places for whoever has to do without this."""
    lines = [f"{site}/{file.repo}/tree/main: {file.path} -> {file.target(folder)}" for file in files]
    return "\n".join(["Try again later, or download by hand:", *lines])


def _announcement(jobs: list[_Job]) -> str:
    """What is about to be fetched, from where to where, and under which licence."""
    lines = [f"{_amount(job.left):>8}  {job.file.repo}/{job.file.path} -> {job.target}" for job in jobs]
    return "\n".join([*lines, f"{_amount(sum(job.left for job in jobs)):>8}  in all", "", LICENCE])


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _check_room(jobs: list[_Job]) -> None:
    """OSError unless every disk that files land on has room for all of them."""
    needs: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for job in jobs:
        place = next(folder for folder in job.target.absolute().parents if folder.exists())
        device = place.stat().st_dev
        needs[device] += job.left
        places.setdefault(device, place)
    for device, needed in needs.items():
        free = shutil.disk_usage(places[device]).free
        if needed > free:
            raise OSError(
                f"the files need {_amount(needed)}, but {places[device]} has only {_amount(free)} free; "
                "make room or choose another folder"
            )
