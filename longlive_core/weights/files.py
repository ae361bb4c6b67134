"""Tensor files -> named tensors, memory-mapped. A damaged, foreign or dangerous file ends in one ValueError.

Safetensors (one file, or shards with an index) and PyTorch pickles of plain tensors; nothing in them is run.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorFile:
    """What a file holds. `read` maps it anew on every call, so tensors that are let go leave memory again."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype | None]  # None: no weights (integers, scales of exotic formats)
    metadata: dict[str, str]
    _read: Callable[[Collection[str]], dict[str, Tensor]] = field(repr=False)

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors by name, all or some of them; ValueError if the file can no longer be read."""
        with one_sentence(self.path):
            return self._read(self.shapes if names is None else names)

    @property
    def num_bytes(self) -> int:
        """Size on disk, all shards together."""
        return self.path.stat().st_size if self.path.is_file() else 0


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Whatever reading raises leaves as one ValueError that names the file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and loading that could run code: {_reason(error)}; "
            "ask its author for safetensors"
        ) from error
    except PermissionError as error:
        raise ValueError(f"{path} may not be read by this user; change its permissions") from error
    except Exception as error:
        if type(error) is ValueError:
            raise
        raise ValueError(
            f"{path} cannot be read: {_reason(error)}; it is damaged or incomplete, download it again"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, bounded."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def open_tensors(path: Path, sections: tuple[str, ...] = ()) -> TensorFile:
    """Look into a tensor file, a shard index, or a folder with one of them.

    `sections` are keys of a pickled dictionary, best first: the first one present is the state dict that
    counts. Raises ValueError for everything that is not a readable file of tensors.
    """
    path = _one_file(Path(path))
    with one_sentence(path):
        if path.name.endswith(INDEX_SUFFIX):
            return _open_shards(path)
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        return _open_pickle(path, sections)


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


def _open_safetensors(path: Path) -> TensorFile:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: _DTYPES.get(part.get_dtype()) for name, part in slices.items()}
        metadata = file.metadata() or {}

    def read(names: Collection[str]) -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}

    return TensorFile(path, shapes, dtypes, metadata, read)


def _open_shards(path: Path) -> TensorFile:
    """All shards that an index names, as one file."""
    weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
    names = sorted(set(weight_map.values()))
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{path} names shards outside its folder: {strange[0]!r}")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise ValueError(f"{path} needs {', '.join(missing)} beside it; download what is missing")
    shards = {name: _open_safetensors(path.parent / name) for name in names}
    home = {tensor: shards[name] for tensor, name in weight_map.items()}
    if absent := [tensor for tensor, shard in home.items() if tensor not in shard.shapes]:
        raise ValueError(f"{path} promises {absent[0]!r}, but its shard does not hold it; download it again")

    def read(wanted: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for shard in shards.values():
            found |= shard.read([name for name in wanted if home[name] is shard])
        return found

    shapes = {name: shard.shapes[name] for name, shard in home.items()}
    dtypes = {name: shard.dtypes[name] for name, shard in home.items()}
    return TensorFile(path, shapes, dtypes, next(iter(shards.values())).metadata, read)


def _open_pickle(path: Path, sections: tuple[str, ...]) -> TensorFile:
    """A dictionary of tensors saved by torch, or one with such a dictionary in a section."""
    _check_sums(path)

    def read(names: Collection[str] | None) -> dict[str, Tensor]:
        state = _section(path, _unpickle(path), sections)
        return state if names is None else {name: state[name] for name in names}

    state = read(None)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: t.dtype if t.is_floating_point() else None for name, t in state.items()}
    return TensorFile(path, shapes, dtypes, {}, read)


def _unpickle(path: Path) -> Any:
    """Memory-mapped where the file is new enough for that."""
    return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)


def _check_sums(path: Path) -> None:
    """torch itself does not compare a record with its check sum."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            damaged = _reason(error)
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} fails its check sum; download it again")


def _section(path: Path, content: Any, sections: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict of a pickled file."""
    if isinstance(content, dict):
        content = next((content[key] for key in sections if isinstance(content.get(key), dict)), content)
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        kind = (
            f"a dictionary of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else ""
        )
        raise ValueError(f"{path} holds no named tensors, but {kind or type(content).__name__}")
    return tensors


def first_line(error: BaseException) -> str:
    """The first line of an error that is no heading, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__)[:200]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
