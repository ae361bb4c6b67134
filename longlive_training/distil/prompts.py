"""Pairs of prompts, one a line in each of two files, and their embeddings, encoded once and kept on disk."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from longlive_core.output.growing import write_whole
from longlive_core.text.tokens import clean_prompt

NEGATIVE = (  # Wan 2.1's own, wan/configs/shared_config.py
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
Pair = tuple[str, str]
Encode = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]


def read_pairs(first: Path, second: Path) -> list[Pair]:
    """The prompts of one file, each with its follow-up on the same line of the other.

    Raises ValueError for a file that cannot be read, an empty line, or files of different length.
    """
    prompts, follow_ups = _lines(first), _lines(second)
    if len(prompts) != len(follow_ups):
        raise ValueError(
            f"{first} has {len(prompts)} prompts and {second} has {len(follow_ups)}; every prompt needs its "
            "follow-up on the same line of the other file"
        )
    return list(zip(prompts, follow_ups, strict=True))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a text file in UTF-8: {error}") from error
    if not lines:
        raise ValueError(f"{path} is empty; write one prompt a line")
    if empty := [number for number, line in enumerate(lines, start=1) if not line]:
        raise ValueError(f"{path}: line {empty[0]} is empty; remove it, and its partner in the other file")
    return lines


def digest(pairs: list[Pair]) -> str:
    """Tells other prompts from these."""
    return hashlib.sha256("\n".join(map("\t".join, pairs)).encode()).hexdigest()


class EmbeddingFiles:
    """Embeddings of prompts in a folder, a file each, without the zero rows at the end.

    `identity` keeps encoders apart; unlike the cache of inference nothing is ever deleted.
    """

    def __init__(self, folder: Path, identity: str):
        self._folder, self._identity = folder, identity

    def encode(self, prompts: Iterable[str], load: Callable[[], Encode]) -> None:
        """Write the files that are missing; the encoder is loaded for these alone, and unloaded again."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._path(prompt).exists()]
        if not missing:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        encoder = load()
        for prompt in missing:
            rows = encoder(prompt)[0].cpu()
            filled = int(rows.any(-1).nonzero().amax()) + 1
            tensors = {"rows": rows[:filled].contiguous(), "tokens": torch.tensor(len(rows))}
            write_whole(self._path(prompt), lambda part, tensors=tensors: save_file(tensors, part))

    def __getitem__(self, prompt: str) -> Tensor:
        """The embeddings of a prompt that was encoded: [text tokens, text dim]."""
        tensors = load_file(self._path(prompt))
        rows, tokens = tensors["rows"], int(tensors["tokens"])
        return F.pad(rows, (0, 0, 0, tokens - len(rows)))

    def of_pairs(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """Prompts and follow-ups [B, text tokens, text dim]."""
        firsts, seconds = zip(*pairs, strict=True)
        return tuple(torch.stack([self[prompt] for prompt in side]) for side in (firsts, seconds))

    def _path(self, prompt: str) -> Path:
        key = hashlib.sha256(f"{self._identity}\0{clean_prompt(prompt)}".encode()).hexdigest()
        return self._folder / f"{key}.safetensors"
