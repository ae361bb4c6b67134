"""Prompt embeddings cached on disk, so that the large encoder loads only for new prompts.

One safetensors file per prompt, 1 GB in all; the least recently used are deleted first.
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

from .tokens import clean_prompt, too_long

logger = logging.getLogger("longlive")
CACHE_BYTES = 10**9
_PREFIX = "prompt-"
EncodeText = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]


def default_folder() -> Path:
    """`longlive/text` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longlive" / "text"


class CachedEncoder:
    """Callable: prompt -> text embeddings [1, text tokens, text dim] on the CPU, from disk if possible.

    `load` makes the encoder at the first prompt that is not cached; `identity` keeps encoders apart.
    `folder` None is `default_folder()`. A cache that cannot be read or written costs time, never a result.
    Logs a warning for a prompt that fills all rows.
    """

    def __init__(self, load: Callable[[], EncodeText], identity: str, folder: Path | None = None):
        self._load, self._identity = load, identity
        self._folder = default_folder() if folder is None else Path(folder)
        self._encoder: EncodeText | None = None

    def __call__(self, prompt: str) -> Tensor:
        embeds = self._embeds_of(prompt)
        if embeds[0, -1].any():
            logger.warning("%s", too_long(prompt, embeds.shape[1]))
        return embeds

    def _embeds_of(self, prompt: str) -> Tensor:
        key = hashlib.sha256(f"{self._identity}\0{clean_prompt(prompt)}".encode()).hexdigest()
        path = self._folder / f"{_PREFIX}{key}.safetensors"
        if (cached := _read(path)) is not None:
            return cached
        if self._encoder is None:
            self._encoder = self._load()
        embeds = self._encoder(prompt).cpu()
        self._write(path, embeds)
        return embeds

    def release(self) -> None:
        """Unload the encoder; the next prompt that is not cached loads it again."""
        self._encoder = None

    def _write(self, path: Path, embeds: Tensor) -> None:
        """Write one file atomically, then delete old ones beyond the limit."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                made = Path(folder) / path.name
                made.touch(0o600)
                made.write_bytes(_packed(embeds))
                os.replace(made, path)
            entries = [(entry.stat(), entry) for entry in self._folder.glob(f"{_PREFIX}*")]
            total = 0
            for stat, entry in sorted(entries, key=lambda entry: -entry[0].st_mtime_ns):
                total += stat.st_size
                if total > CACHE_BYTES:
                    entry.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("text embeddings cannot be cached in %s: %s", self._folder, error)


def _packed(embeds: Tensor) -> bytes:
    """[1, T, D] as a safetensors file without the zero rows at the end, which are most of it."""
    filled = embeds[0].any(-1).nonzero()
    rows = embeds[0, : int(filled[-1]) + 1 if len(filled) else 0].contiguous()
    tokens = str(embeds.shape[1])
    return save({"rows": rows}, {"tokens": tokens, "checksum": _checksum(rows, tokens)})


def _read(path: Path) -> Tensor | None:
    """The embeddings in a file, which then counts as just used; None if it is missing or damaged."""
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
        logger.warning("cached text embeddings %s cannot be used, encoding again: %s", path, error)
        return None


def _checksum(rows: Tensor, tokens: str) -> str:
    return f"{zlib.crc32(rows.view(torch.uint8).numpy(), zlib.crc32(tokens.encode())):08x}"


def encode_all(encoder: CachedEncoder, prompts: Iterable[str], keep: bool = False) -> EncodeText:
    """Encode every distinct prompt now and return a lookup; the encoder is unloaded unless `keep` is set.

    The lookup encodes other prompts when they come, keeps none of them in memory, and unloads again.
    """

    def encode(new: Iterable[str]) -> dict[str, Tensor]:
        try:
            return {prompt: encoder(prompt) for prompt in new}
        finally:
            if not keep:
                encoder.release()

    found = encode(dict.fromkeys(prompts))
    return lambda prompt: found[prompt] if prompt in found else encode([prompt])[prompt]
