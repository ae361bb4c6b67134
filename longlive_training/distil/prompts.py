"""Pairs of prompts, from text files, JSONL or timelines; their embeddings, encoded once and kept on disk."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from longlive_core.cli.stderr import STDERR, show
from longlive_core.config import Policy
from longlive_core.schedule.cue import ScheduleError, checked_prompt, whole
from longlive_core.schedule.json_format import is_jsonl
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.schedule.text_format import numbered_lines
from longlive_core.text.tokens import clean_prompt, too_long

from .files import write_file
from .parallel import rank_and_size

NEGATIVE = (  # Wan 2.1's own, wan/configs/shared_config.py
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
PROMPT, FOLLOW_UP = "prompt", "follow_up"  # fields of a line of JSONL
JSONL_LINE = 'write {"prompt": "...", "follow_up": "..."}'
_BETWEEN = re.compile(r"^---+[ \t]*(?:\n|\Z)", re.MULTILINE)
Pair = tuple[str, str]
Encode = Callable[[str], Tensor]  # prompt -> [1, text tokens, text dim]


def read_pairs(first: Path, second: Path | None = None) -> list[Pair]:
    """Pairs of prompts: of two text files line by line, or of one file.

    One file may be JSONL, a line `{"prompt": ..., "follow_up": ...}` or `{"prompts": [...]}`
    of two or more, each of which the next follows. Else it holds timelines, with a line `---` between them:
    a cue and the next are a pair, unless that one cuts. Raises ValueError, which names file and line.
    """
    if second:
        return _of_two(first, second)
    text = read_text(first)
    pairs = (_of_jsonl if _is_jsonl(first, text) else _of_timelines)(first, text)
    if not pairs:
        raise ValueError(f"{first} is empty; docs/pairs.md shows what it may hold")
    return pairs


def _of_two(first: Path, second: Path) -> list[Pair]:
    prompts, follow_ups = read_lines(first), read_lines(second)
    if len(prompts) != len(follow_ups):
        raise ValueError(
            f"{first} has {len(prompts)} prompts and {second} has {len(follow_ups)}; every prompt needs its "
            "follow-up on the same line of the other file"
        )
    return list(zip(prompts, follow_ups, strict=True))


def read_lines(path: Path) -> list[str]:
    """The prompts of a text file, one a line; ValueError for JSONL and for lines that are none."""
    text = read_text(path)
    if _is_jsonl(path, text):
        raise ValueError(f"{path} is JSONL, which has both prompts of a pair; here is one prompt a line")
    lines = text.rstrip().split("\n")  # all that ends a line: others may be within a prompt
    if lines == [""]:
        raise ValueError(f"{path} is empty; write one prompt a line")
    return [_prompt_of(path, number, line) for number, line in enumerate(lines, start=1)]


def _prompt_of(path: Path, number: int, line: str) -> str:
    if not line.strip():
        raise ValueError(f"{path}: line {number} is empty; remove it, and its partner in the other file")
    try:
        return checked_prompt(line)
    except ScheduleError as error:
        raise ValueError(f"{path}: line {number}: {error}") from error


def _is_jsonl(path: Path, text: str) -> bool:
    return path.suffix == ".jsonl" or is_jsonl(text)


def read_text(path: Path) -> str:
    """A text file in UTF-8; ValueError where it is none."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a text file in UTF-8: {error}") from error


def _of_jsonl(path: Path, text: str) -> list[Pair]:
    pairs = []
    for number, line in numbered_lines(text):
        try:
            prompts = _prompts_in(json.loads(line))
            pairs += pairwise([checked_prompt(prompt) for prompt in prompts])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number}: {error}; {JSONL_LINE}") from error
    return pairs


def _prompts_in(entry: Any) -> list[Any]:
    """The prompts of a line of JSONL, each of which the next follows."""
    if isinstance(entry, dict):
        prompts = entry.get("prompts", [entry.get(PROMPT), entry.get(FOLLOW_UP)])
        if isinstance(prompts, list) and len(prompts) > 1:
            return prompts
    raise ValueError("here is no prompt with its follow-up")


def _of_timelines(path: Path, text: str) -> list[Pair]:
    pairs, first_line = [], 1
    for part in _BETWEEN.split(text):
        pairs += _of_timeline(path, part, first_line) if part.strip() else []
        first_line += part.count("\n") + 1
    return pairs


def _of_timeline(path: Path, text: str, first_line: int) -> list[Pair]:
    """The pairs of one timeline, which begins at that line of a file."""
    try:
        schedule = PromptSchedule.parse(text)
    except ScheduleError as error:
        line = first_line + (error.line or 1) - 1
        raise ValueError(f"{path}: line {line}: {error.message}") from error
    pairs = [
        (whole(schedule.always, one.prompt), whole(schedule.always, other.prompt))
        for one, other in pairwise(schedule.cues)
        if other.policy is not Policy.CUT
    ]
    if not pairs:
        raise ValueError(
            f"{path}: line {first_line}: no prompt of this timeline follows another; write two cues, or give "
            "the follow-ups in a second file (--follow-ups)"
        )
    return pairs


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
        """Write the files that are missing, each process its share of them.

        The encoder is loaded for these alone, and unloaded again. A prompt that is too long is reported.
        """
        rank, ranks = rank_and_size()
        shared = [*{self._path(prompt): prompt for prompt in prompts}.items()][rank::ranks]
        missing = [(path, prompt) for path, prompt in shared if not path.exists()]
        if not missing:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        encoder = load()
        for path, prompt in tqdm(missing, "prompts", unit="prompt", mininterval=10, disable=rank > 0):
            rows = encoder(prompt)[0].cpu()
            filled = int(rows.any(-1).nonzero().amax()) + 1
            if filled == len(rows):
                show(too_long(prompt, filled), STDERR)
            tensors = {"rows": rows[:filled].contiguous(), "tokens": torch.tensor(len(rows))}
            write_file(path, lambda part, tensors=tensors: save_file(tensors, part))

    def __getitem__(self, prompt: str) -> Tensor:
        """The embeddings of an encoded prompt [text tokens, text dim]; ValueError for a damaged file."""
        path = self._path(prompt)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and run the same command") from error
        rows, tokens = tensors["rows"], int(tensors["tokens"])
        return F.pad(rows, (0, 0, 0, tokens - len(rows)))

    def of_pairs(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """Prompts and follow-ups [B, text tokens, text dim]."""
        firsts, seconds = zip(*pairs, strict=True)
        return tuple(torch.stack([self[prompt] for prompt in side]) for side in (firsts, seconds))

    def _path(self, prompt: str) -> Path:
        key = hashlib.sha256(f"{self._identity}\0{clean_prompt(prompt)}".encode()).hexdigest()
        return self._folder / f"{key}.safetensors"
