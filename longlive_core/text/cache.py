"""Text embeddings kept on disk, so that the large encoder is loaded only for prompts it has not seen.

One safetensors file a prompt, at most 1 GB in all; what was used longest ago goes first.
"""

import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .tokens import clean_prompt

logger = logging.getLogger("longlive")
CACHE_BYTES = 10**9
_PREFIX = "prompt-"
EncodeText = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]


def default_folder() -> Path:
    """`longlive/text` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longlive" / "text"


class CachedEncoder:
    """Calling it gives a prompt's embeddings [1, text tokens, text dim] on the CPU, from disk if it can.

    `load` makes the encoder and is called when the first unknown prompt comes; `identity` tells encoders
    apart. `folder` None is the user's cache folder; beyond `limit_bytes` the least recently used goes.
    A cache that cannot be read or written costs time, never a result.
    """

    def __init__(
        self,
        load: Callable[[], EncodeText],
        identity: str,
        folder: Path | None = None,
        limit_bytes: int = CACHE_BYTES,
    ):
        self._load, self._identity, self._limit = load, identity, limit_bytes
        self._folder = default_folder() if folder is None else Path(folder)
        self._encoder: EncodeText | None = None

    def __call__(self, prompt: str) -> Tensor:
        path = self._path(prompt)
        if (known := _read(path)) is not None:
            return known
        if self._encoder is None:
            self._encoder = self._load()
        embeds = self._encoder(prompt).cpu()
        self._write(path, embeds)
        return embeds

    def release(self) -> None:
        """Let the encoder go; the next unknown prompt loads it again."""
        self._encoder = None

    def _path(self, prompt: str) -> Path:
        key = hashlib.sha256(f"{self._identity}\0{clean_prompt(prompt)}".encode()).hexdigest()
        return self._folder / f"{_PREFIX}{key}.safetensors"

    def _write(self, path: Path, embeds: Tensor) -> None:
        """Write one entry whole or not at all, then keep within the limit."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=_PREFIX, delete=False) as file:
                file.write(_packed(embeds))
            os.replace(file.name, path)
            self._prune()
        except OSError as error:
            logger.warning("text embeddings cannot be kept in %s: %s", self._folder, error)

    def _prune(self) -> None:
        entries = [(entry.stat(), entry) for entry in self._folder.glob(f"{_PREFIX}*")]
        entries.sort(key=lambda entry: entry[0].st_mtime_ns, reverse=True)
        total = 0
        for stat, entry in entries:
            total += stat.st_size
            if total > self._limit:
                entry.unlink(missing_ok=True)


def _packed(embeds: Tensor) -> bytes:
    """[1, T, D] as a safetensors file without the zero rows at its end, which nearly all of it is."""
    filled = embeds[0].any(-1).nonzero()
    rows = embeds[0, : int(filled[-1]) + 1 if len(filled) else 0].contiguous()
    tokens = str(embeds.shape[1])
    return save({"rows": rows}, {"tokens": tokens, "checksum": _checksum(rows, tokens)})


def _read(path: Path) -> Tensor | None:
    """The embeddings of an entry, which then counts as just used; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            rows, notes = file.get_tensor("rows").clone(), file.metadata()
        if notes["checksum"] != _checksum(rows, notes["tokens"]):
            raise ValueError("its checksum is wrong")
        os.utime(path)
        return nn.functional.pad(rows, (0, 0, 0, int(notes["tokens"]) - len(rows)))[None]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("the kept text embeddings %s are made again: %s", path, error)
        return None


def _checksum(rows: Tensor, tokens: str) -> str:
    return f"{zlib.crc32(rows.view(torch.uint8).numpy(), zlib.crc32(tokens.encode())):08x}"


def encode_all(
    encoder: CachedEncoder,
    prompts: Iterable[str],
    keep: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> EncodeText:
    """Encode every distinct prompt now and return a lookup; the encoder leaves memory unless `keep` is set.

    `on_progress(done, total)` is called after each prompt. The lookup encodes a prompt that was not among
    them whenever it comes, keeps nothing of it in memory, and lets the encoder go again.
    """

    def lookup(prompt: str) -> Tensor:
        return found[prompt] if prompt in found else encode([prompt])[prompt]

    def encode(new: list[str]) -> dict[str, Tensor]:
        made = {}
        try:
            for done, prompt in enumerate(new, start=1):
                made[prompt] = encoder(prompt)
                if on_progress:
                    on_progress(done, len(new))
        finally:
            if not keep:
                encoder.release()
        return made

    found = encode(list(dict.fromkeys(prompts)))
    return lookup
