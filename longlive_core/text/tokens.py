"""Prompts -> token ids of UMT5, cleaned the way the reference cleans them."""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..config import ModelConfig
from .libraries import library

TEXT_TOKENS = ModelConfig().text_tokens
END, END_ID = "</s>", 1
_SPACE = re.compile(r"\s+")


def clean_prompt(prompt: str) -> str:
    """Mend broken Unicode, undo HTML escapes (twice: `&amp;lt;` is `<`), make every space a single one."""
    mended = html.unescape(html.unescape(library("ftfy").fix_text(prompt)))
    return _SPACE.sub(" ", mended).strip()


@dataclass(frozen=True)
class Tokenizer:
    """Calling it turns a prompt into 1 to 512 ids, `</s>` last; what is too long loses its end.

    `split` gives the ids of a clean text without `</s>`; `size` is one more than the largest id.
    """

    size: int
    split: Callable[[str], list[int]] = field(repr=False)

    def __call__(self, prompt: str) -> list[int]:
        return [*self.split(clean_prompt(prompt))[: TEXT_TOKENS - 1], END_ID]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder (`tokenizer.json` first, else `spiece.model`) or in one such file.

    Raises ValueError when there is none, or it is not one of the T5 family.
    """
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "spiece.model")
        path = next((path / name for name in names if (path / name).is_file()), path)
    if not path.is_file() or path.suffix not in (".json", ".model"):
        raise ValueError(
            f"{path} is no tokenizer: choose a folder with tokenizer.json or spiece.model, or such a file"
        )
    if path.suffix == ".json":
        return _from_json(path)
    return tokenizer_from_pieces(path.read_bytes(), str(path))


def tokenizer_from_pieces(model: bytes, origin: str) -> Tokenizer:
    """A sentencepiece model as a tokenizer; `origin` is named when it turns out not to be one."""
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
        raise ValueError(
            f"{origin} is the tokenizer of another model: its {END} is {end}, not {END_ID}; use umt5-xxl's"
        )
