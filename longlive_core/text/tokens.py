"""Prompt -> UMT5 token ids, cleaned the way the reference cleans it."""

import html
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ..config import ModelConfig

TEXT_TOKENS = ModelConfig().text_tokens
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
END, END_ID = "</s>", 1


def too_long(prompt: str, num_tokens: int) -> str:
    """A warning about a prompt that takes all tokens there are."""
    return f"{prompt[:80]!r} takes all {num_tokens} tokens: the words after them are cut off; shorten it"


def library(name: str) -> ModuleType:
    """Import a package that only UMT5 needs, on first use; ValueError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"UMT5 needs {name} ({error}); install it with: pip install {name}") from error


def clean_prompt(prompt: str) -> str:
    """Repair broken Unicode, undo HTML escapes (twice: `&amp;lt;` is `<`), collapse whitespace."""
    repaired = html.unescape(html.unescape(library("ftfy").fix_text(prompt)))
    return " ".join(repaired.split())


@dataclass(frozen=True)
class Tokenizer:
    """Callable: prompt -> 1 to 512 ids, `</s>` last; longer prompts are cut off.

    `split` gives the ids of a cleaned text without `</s>`; `size` is the largest id plus one.
    """

    size: int
    split: Callable[[str], list[int]] = field(repr=False)

    def __call__(self, prompt: str) -> list[int]:
        return [*self.split(clean_prompt(prompt))[: TEXT_TOKENS - 1], END_ID]


def find_tokenizer(path: Path) -> Path | None:
    """The folder with the tokenizer of an encoder's file or folder, in any published layout."""
    inside = [path, path / "tokenizer"] if path.is_dir() else []
    folders = [*inside, path.parent / "tokenizer", path.parent / "google" / "umt5-xxl"]
    return next((f for f in folders if any((f / name).is_file() for name in TOKENIZER_FILES)), None)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a file or a folder (`tokenizer.json` first, else `spiece.model`); ValueError if it is no T5's."""
    if path.is_dir():
        path = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), path)
    if not path.is_file() or path.suffix not in (".json", ".model"):
        raise ValueError(f"{path} is no tokenizer; choose tokenizer.json, spiece.model or a folder with one")
    if path.suffix == ".json":
        return _from_json(path)
    return tokenizer_from_pieces(path.read_bytes(), str(path))


def tokenizer_from_pieces(model: bytes, origin: str) -> Tokenizer:
    """Load the bytes of a sentencepiece model; `origin` names them in errors (ValueError)."""
    processor = library("sentencepiece").SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ValueError(f"{origin} holds no readable sentencepiece model; download it again") from error
    _check_end(processor.eos_id(), origin)
    return Tokenizer(processor.get_piece_size(), processor.encode)


def _from_json(path: Path) -> Tokenizer:
    tokenizers = library("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a file it cannot parse
        raise ValueError(f"{path} is not a readable tokenizer ({error}); download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check_end(tokenizer.token_to_id(END), str(path))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(size, lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def _check_end(end: int | None, origin: str) -> None:
    if end != END_ID:
        raise ValueError(f"{origin} is of another model: its {END} is {end}, not {END_ID}; use umt5-xxl's")
