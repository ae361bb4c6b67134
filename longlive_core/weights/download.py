"""Download published weights into model folders with huggingface_hub, which retries and shows progress.

A file downloads into a hidden folder next to its place and moves there when it is complete. Lost connections
resume; after a stop, complete files stay, and huggingface_hub's version decides whether the others resume.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, HfFileMetadata, hf_hub_url

from .files import first_line
from .published import DOWNLOADS, LICENCES, RemoteFile

SECONDS = 10  # to wait for what the hub says of a licence
TRIES = 100  # of a file, each further than the one before


def download(
    name: str, folder: Path, *, confirm: Callable[[str], bool], endpoint: str | None = None
) -> list[Path]:
    """Download the missing files of a name in DOWNLOADS into the model folders below `folder`; all paths.

    If any is missing, `confirm` gets sizes and licences, once; when it returns False nothing is downloaded
    and the list is empty. `endpoint` None is the hub, or the mirror in HF_ENDPOINT. Raises ValueError for an
    unknown name; OSError, with what to download by hand, when the hub, a file or disk space is missing.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"unknown download {name!r}; choose one of {', '.join(DOWNLOADS)}")
    hub = HfApi(endpoint, token=False)  # all of these files are public
    targets = {Path(folder) / file.kind / file.name: file for file in DOWNLOADS[name]}
    missing = {target: file for target, file in targets.items() if not target.exists()}
    links = {target: hf_hub_url(f.repo, f.path, endpoint=hub.endpoint) for target, f in missing.items()}
    with _explained(name, links):
        versions = {target: hub.get_hf_file_metadata(url=link) for target, link in links.items()}
        if unknown := [links[t] for t, v in versions.items() if not (v.size and v.etag and v.commit_hash)]:
            raise OSError(f"the server does not report size and version of {unknown[0]}")
        _check_disk_space(sizes := {target: version.size for target, version in versions.items()})
    repos = dict.fromkeys(file.repo for file in missing.values())
    licences = dict.fromkeys(line for repo in repos for line in (LICENCES[repo], _licence(hub, repo)))
    table = [f"{_amount(size):>8}  {links[target]} -> {target}" for target, size in sizes.items()]
    total = f"{_amount(sum(sizes.values())):>8}  in all"
    if missing and not confirm("\n".join([*table, total, "", *licences])):
        return []
    with _explained(name, links):
        for target, file in missing.items():
            staging = target.with_name(f".{target.name}.download")  # same disk: the move is atomic
            _fetched(hub, file, versions[target], staging).replace(target)
            shutil.rmtree(staging, ignore_errors=True)
    return list(targets)


def _licence(hub: HfApi, repo: str) -> str:
    """What the hub says of a repository's licence; mirrors may say nothing."""
    try:
        tags = hub.model_info(repo, timeout=SECONDS).tags
        names = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    except Exception:  # whose types depend on the library's version
        names = []
    return f"The hub gives the licence of {repo} as {' and '.join(names) or 'unknown; read its page'}."


def _fetched(hub: HfApi, file: RemoteFile, version: HfFileMetadata, staging: Path) -> Path:
    """Download a file below `staging`, again while each try gets further: older libraries try only once."""
    size = _largest(staging)
    for is_last in (*[False] * TRIES, True):
        try:
            path = hub.hf_hub_download(file.repo, file.path, revision=version.commit_hash, local_dir=staging)
            return Path(path)
        except Exception as error:
            before, size = size, _largest(staging)
            if is_last or size <= before or getattr(error, "errno", None):
                raise
        if size > version.size:  # from a server that does not resume
            shutil.rmtree(staging, ignore_errors=True)
            size = 0


def _largest(folder: Path) -> int:
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


@contextmanager
def _explained(name: str, links: dict[Path, str]) -> Iterator[None]:
    """Turn the errors of huggingface_hub, whose types depend on its version, into one OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the local disk
            raise
        heading = f"{name} cannot be downloaded ({first_line(error)}). Try again later, or download by hand:"
        lines = [f"{link} -> {target}" for target, link in links.items() if not target.exists()]
        raise OSError("\n".join([heading, *lines])) from error


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _check_disk_space(sizes: dict[Path, int]) -> None:
    places = {target: next(p for p in target.absolute().parents if p.exists()) for target in sizes}
    for place in dict.fromkeys(places.values()):
        disk, free = place.stat().st_dev, shutil.disk_usage(place).free
        needed = sum(size for target, size in sizes.items() if places[target].stat().st_dev == disk)
        if needed > free:
            raise OSError(f"the files need {_amount(needed)}, only {_amount(free)} is free in {place}")
