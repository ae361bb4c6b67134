"""`python -m longlive_training prompts`: a follow-up for every prompt, written by a language model.

As the LongLive paper made its pairs (section 4): the setting, the subject and the camera stay, one action is
new. Pairs are lines of JSONL, each written whole; run again, only what is missing is asked for.
"""

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from longlive_core.cli.stderr import printable
from longlive_core.output.growing import open_locked
from longlive_core.pipeline import AUTO, usable_device

from .ask import Ask, BadAnswer, Endpoint, Messages, local_model
from .prompts import FOLLOW_UP, PROMPT, read_lines, read_pairs

RULES = (  # docs/pairs.md has them for people who write by hand
    "Keep the setting: the same place, time of day, weather, light and style.",
    "Keep the subject: the same people, animals or things, with the same looks and clothes, named in full.",
    "Keep the camera: the same shot size, angle and movement.",
    "Change one thing: one new action of the subject, which can follow at once and takes some seconds.",
    "Write what is seen, in the present tense, as a whole description: nothing may refer to the first "
    "prompt, so no `then`, `now`, `still` or `again`.",
    "Write one paragraph, about as long as the first prompt, in its language.",
)
INSTRUCTIONS = (
    "You write prompts for a video model. A video is made from a first prompt; some seconds later the prompt "
    "changes and the video goes on without a cut. Write the second prompt.\n"
    + "\n".join(f"- {rule}" for rule in RULES)
    + "\nAnswer with the second prompt alone: no quotes, no heading, no comment."
)
BEGINNING = f'{{"{PROMPT}": '.encode()  # of each line that is written
ANSWERS = 3  # asked for before a prompt is left out
LENGTHS = 0.4, 2.5  # of an answer, as shares of the prompt's
SHORT = 80  # characters that any answer may have
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(
    r"^\W{0,3}(?:(?:second|new|next|follow-?up)\s*)?(?:prompt|follow-?up)\W{0,3}:\s*", re.IGNORECASE
)
_REFUSAL = re.compile(r"(?:I['’]m sorry|I am sorry|sorry,|I can(?:not|['’]t)|as an AI)", re.IGNORECASE)


def messages_for(prompt: str) -> Messages:
    """What a language model is asked."""
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]


def cleaned(answer: str) -> str:
    """An answer without thoughts, label, quotes and emphasis around it; its paragraphs stay apart."""
    answer = _LABEL.sub("", _THOUGHTS.sub("", answer).strip()).strip().strip("\"'“”«»「」*` \n")
    return "\n".join(" ".join(line.split()) for line in answer.splitlines() if line.strip())


def fault_of(prompt: str, answer: str) -> str | None:
    """Why a cleaned answer is no follow-up of a prompt; None where it may be one."""
    low, high = (share * len(prompt) for share in LENGTHS)
    faults = {
        "it is empty": not answer,
        "it is a refusal": _REFUSAL.match(answer),
        "it has several paragraphs": "\n" in answer,
        "it repeats the prompt": answer.casefold() == prompt.casefold(),
        "it is much shorter than the prompt": len(answer) < min(low, SHORT),
        "it is much longer than the prompt": len(answer) > max(high, SHORT),
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)


def follow_up(ask: Ask, prompt: str) -> tuple[str, str | None]:
    """An answer that can be used and None, or the last one that came and what is wrong with it."""
    answer, fault = "", None
    for number in range(ANSWERS):
        try:
            answer = cleaned(ask(messages_for(prompt), number))
            fault = fault_of(prompt, answer)
        except BadAnswer as error:
            fault = str(error)
        if not fault:
            break
    return answer, fault


def make_pairs(source: Path, out: Path, ask: Ask, at_once: int = 1) -> tuple[int, int]:
    """Append to `out` a line for each prompt of `source` that it lacks.

    Returns how many prompts there are, and how many were left out, each with a note on stderr. Raises
    ValueError for files that cannot be read, OSError where the endpoint stays away or the disk is full: what
    was made stays.
    """
    prompts = dict.fromkeys(read_lines(source))
    left_out = 0
    with appending(out) as file:
        made = {prompt for prompt, _ in read_pairs(out)} if out.stat().st_size else set()
        missing = [prompt for prompt in prompts if prompt not in made]
        bar = tqdm(total=len(prompts), initial=len(prompts) - len(missing), unit="pair", mininterval=10)
        pool = ThreadPoolExecutor(at_once)
        try:
            for prompt, (answer, fault) in zip(
                missing, pool.map(partial(follow_up, ask), missing), strict=True
            ):
                if fault:
                    left_out += 1
                    note = f"left out: {prompt!r}: no usable answer in {ANSWERS}; of the last one, {fault}"
                    bar.write(printable(note), sys.stderr)
                else:
                    append(file, {PROMPT: prompt, FOLLOW_UP: answer})
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
    return len(prompts), left_out


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file of pairs that only this run writes; half a line, left by a kill, is cut off.

    ValueError, and the file is as it was, where something else is at its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with open_locked(path) as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        rest = data[whole:]
        if not _is_json(rest) and rest[: len(BEGINNING)] != BEGINNING[: len(rest)]:
            raise ValueError(f"{path} does not end with pairs in JSONL; choose another --out")
        file.truncate(whole)
        file.seek(whole)
        if _is_json(rest):  # an editor left out the end of the line
            append(file, json.loads(rest))
        yield file


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def append(file: BinaryIO, entry: dict[str, str]) -> None:
    """Add a line, whole or not at all."""
    line, start = json.dumps(entry, ensure_ascii=False).encode() + b"\n", file.tell()
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(start)
        raise


def add_command(stages: argparse._SubParsersAction) -> None:
    """Add `prompts` to the stages of training."""
    making = stages.add_parser("prompts", help="a follow-up for every prompt, by a language model")
    making.set_defaults(command=prompts)
    add = making.add_argument
    add("source", type=Path, help="a text file, one prompt a line")
    add("--out", type=Path, required=True, help="JSONL for distil --prompts; run again, it is completed")
    by = making.add_mutually_exclusive_group(required=True)
    by.add_argument("--endpoint", metavar="URL", help="of OpenAI's kind, e.g. http://localhost:11434/v1")
    by.add_argument("--local", type=Path, help="a folder of a transformers model")
    add("--model", metavar="NAME", help="of the endpoint")
    add("--key-from", metavar="VARIABLE", help="the environment variable that holds the endpoint's key")
    add("--at-once", type=int, default=4, help="questions that wait for the endpoint together")
    add("--device", default=AUTO, help="of a local model")


def prompts(**options) -> None:
    """The command: ask, and say at the end what is there."""
    chosen = argparse.Namespace(**options)
    try:
        count, left_out = make_pairs(
            chosen.source, chosen.out, asked(chosen), 1 if chosen.local else chosen.at_once
        )
    except OSError as error:
        raise OSError(f"{error}; what was made stays, and the same command goes on") from error
    print(f"{count - left_out} of {count} prompts have a follow-up in {chosen.out}")
    if left_out:
        print("the same command asks again for those that were left out")


def asked(chosen: argparse.Namespace) -> Ask:
    """The language model of the options; ValueError where one is missing."""
    if chosen.at_once < 1:
        raise ValueError(f"--at-once {chosen.at_once} is not possible; choose 1 or more")
    if chosen.local:
        return local_model(chosen.local, usable_device(chosen.device))
    if not chosen.model:
        raise ValueError("--endpoint needs --model, the name of a model there")
    key = os.environ.get(chosen.key_from) if chosen.key_from else None
    if chosen.key_from and not key:
        raise ValueError(f"the environment variable {chosen.key_from} is not set; export it with the key")
    return Endpoint(chosen.endpoint, chosen.model, key)
