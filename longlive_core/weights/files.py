"""Tensor files -> named tensors, memory-mapped. A damaged, foreign or dangerous file ends in one ValueError.

Safetensors (one file, or shards with an index) and PyTorch pickles of plain tensors; nothing in them is run.
"""

import hashlib
import io
import json
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..output.growing import open_locked, write_whole
from .names import Shapes, printable, shapes_in, some

INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
ALIGNMENT = 64
_WRITTEN = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
_TEXT = re.compile(rb"(\xef\xbb\xbf)?[\t-~]{8}")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]")
_LFS_POINTER = b"version https://git-lfs"
_FOREIGN_PICKLES = (b"\x80\x04", b"\x80\x05")  # protocols that torch.save writes into archives only
_GLOBAL = re.compile(r"GLOBAL (\S*\w)\s")  # in torch's errors: what a pickle wants to call


@dataclass(frozen=True)
class TensorFile:
    """Named tensors of an open file, memory-mapped as long as one of them is kept, and its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @cached_property
    def shapes(self) -> Shapes:
        return shapes_in(self.tensors)


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 200 characters; headings that end in a colon are skipped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(next((line for line in lines if not line.endswith(":")), type(error).__name__))


def open_tensors(path: Path, sections: tuple[str, ...] = ()) -> TensorFile:
    """Open a tensor file, a shard index, or a folder with one of them.

    `sections` are keys of a pickled dictionary, best first: the first one present is the state dict that
    counts. Raises ValueError for everything that is not a readable file of tensors.
    """
    path = _one_file(Path(path))
    if path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_pickle(path, sections)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn every error of the libraries that read files into a ValueError of one sentence."""
    try:
        yield
    except PermissionError as error:
        raise ValueError(f"{path} may not be read by this user; change its permissions") from error
    except Exception as error:
        raise ValueError(f"{path} {_fault(path, error)}") from error


def _fault(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do; torch's own advice is to load without safety."""
    with path.open("rb") as file:
        head = file.read(1 << 24)
    if head.startswith(_LFS_POINTER):
        return "is a pointer of Git LFS, not the weights; run `git lfs pull`, or download the file itself"
    wanted = _GLOBAL.search(str(error))
    is_named = wanted and f"{wanted[1].rpartition('.')[2]}\n".encode("utf-8", "replace") in head  # whole
    if is_named or head.startswith(_FOREIGN_PICKLES):
        name = f" ({printable(wanted[1])})" if is_named else ""
        return (
            f"holds more than tensors, and loading that could run code{name}; nothing was run; "
            "ask its author for safetensors"
        )
    if (_PAGE if path.suffix == ".json" else _TEXT).match(head):
        return "is a web page or other text, not weights: a server's error or login; download the file itself"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            "is damaged, or holds more than tensors saved by torch; download it again, or ask its author for "
            "safetensors"
        )
    return f"cannot be read: {first_line(error)}; download it again"


def _one_file(path: Path) -> Path:
    """The file meant by a path; a folder means its index or its only tensor file."""
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(f"{path} is a folder with {len(found)} safetensors files; choose one file")
        return found[0]
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    known = (".safetensors", INDEX_SUFFIX, *PICKLES)
    if not path.name.endswith(known):
        raise ValueError(f"{path} is no tensor file; expected a name that ends in {', '.join(known)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download it again")
    return path


def _open_shards(path: Path) -> TensorFile:
    with _explained(path):
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        strange = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (path.parent / name).is_file()]
    if strange:
        raise ValueError(f"{path} names shards outside its folder: {some(strange)}")
    if missing or not names:
        raise ValueError(f"{path} needs {some(missing) or 'shards'} in its folder; download what is missing")
    shards = {name: _open_safetensors(path.parent / name) for name in names}
    if absent := [tensor for tensor, name in weight_map.items() if tensor not in shards[name].tensors]:
        raise ValueError(f"{path} names {some(absent)}, but no shard holds it; download it again")
    tensors = {tensor: shards[name].tensors[tensor] for tensor, name in weight_map.items()}
    return TensorFile(path, tensors, shards[names[0]].metadata)


def _open_safetensors(path: Path) -> TensorFile:
    with _explained(path), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        return TensorFile(path, tensors, file.metadata() or {})


def _open_pickle(path: Path, sections: tuple[str, ...]) -> TensorFile:
    """A dictionary of tensors saved by torch, or one with such a dictionary in a section."""
    with _explained(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch did not save
        content = torch.load(path, map_location="cpu", mmap=_is_sound_zip(path), weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no named tensors, but {type(content).__name__}")
    state = next((content[key] for key in sections if isinstance(content.get(key), dict)), content)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = some([str(key) for key in state])
        raise ValueError(f"{path} holds no named tensors, but a dictionary of {keys or 'nothing'}")
    return TensorFile(path, tensors, {})


def save_safetensors(
    path: Path, layout: dict[str, Tensor], tensors: Iterable[Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors as they come, in the order of `layout`, where they are on meta, so that none is kept.

    Mapped from the file, each begins at a multiple of 64 bytes as in memory, where products round alike; so
    tensors of other sizes must be last. `path` appears when the file is complete. Raises OSError.
    """
    header, end = {"__metadata__": {"format": "pt", **metadata}}, 0
    for name, like in layout.items():
        start, end = end, end + like.nbytes
        header[name] = {"dtype": _WRITTEN[like.dtype], "shape": [*like.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)

    def make(part: Path) -> None:
        if (free := shutil.disk_usage(part.parent).free) < end:
            raise OSError(f"{end / 1e9:.2f} GB are needed, only {free / 1e9:.2f} GB are free")
        part.touch()
        with io.BufferedWriter(open_locked(part)) as file:
            file.truncate(0)  # a killed run may have left something
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())

    try:
        write_whole(path, make)
    except OSError as error:
        is_busy = isinstance(error, BlockingIOError)
        remedy = "" if is_busy else "; free some space, or choose another place"
        raise OSError(f"{path} cannot be written: {error.strerror or error}{remedy}") from error


def _is_sound_zip(path: Path) -> bool:
    """Whether torch 1.6 or later saved a file. It compresses none, and a compressed one could fill memory."""
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            return False
        archive = zipfile.ZipFile(stream)
        entries = archive.infolist()
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not is_stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("it is a compressed archive, and torch saves none")
        if damaged := archive.testzip():  # torch compares no check sums
            raise zipfile.BadZipFile(f"it is damaged, {damaged} fails its check sum")
    return True


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; read once, and again when its size or time has changed."""
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256_of(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
