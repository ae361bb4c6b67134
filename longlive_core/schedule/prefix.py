"""What stands between the time of a cue and the colon, a policy, a seed, an image; and what nearly does."""

import re
from typing import NamedTuple

from ..config import Policy
from .cue import AUTO, IMAGE_FILE, SECONDS, Cue, ScheduleError, named, quoted, shown, spelled

_FLAGS = re.IGNORECASE | re.ASCII
# A policy, or a blend with what looks like its seconds: `blend the two: x` is a prompt, `blend 3x: x` a slip.
_KINDS = {
    "policy": re.compile(rf"\s*(?:({'|'.join((*Policy, AUTO))})|blend\s+([-+]?\.?[0-9][^\s:]*))\s*", _FLAGS),
    "seed": re.compile(r"\s*seed\s+([0-9]+)\s*", _FLAGS),
    "image": re.compile(rf"\s*image\s+({IMAGE_FILE})\s*", _FLAGS),
}
_LIKE_A_POLICY = re.compile(rf"(\S{{2,9}}?)(?:\s+{SECONDS})?(\s?):")
_LIKE_A_SEED = re.compile(r"([a-z]{3,5})[ =#+-]{0,2}([0-9]+)[.0-9a-z]{0,4}", _FLAGS)
_LIKE_AN_IMAGE = re.compile(rf"([a-z]{{3,7}})[ =]{{1,2}}({IMAGE_FILE})", _FLAGS)
_SEED_WITHOUT_COMMAS = re.compile(r" ?(seed [0-9]+)(?![.0-9a-z]) ?", _FLAGS)
_IMAGE_WITHOUT_COMMA = re.compile(rf" (image {IMAGE_FILE})", _FLAGS)
_MAX_SLIPS = {policy: min(2, (len(policy) - 1) // 2) for policy in Policy}


class Prefix(NamedTuple):
    """The fields of a cue that come before its prompt, as they are written."""

    policy: str = AUTO
    blend_seconds: float | None = None
    seed: str | None = None
    image: str | None = None


def read_prefix(words: str) -> tuple[Prefix, str]:
    """What follows a time -> what its prefix says, and the prompt. Raises ScheduleError."""
    kinds = kinds_of(words)
    if not kinds:
        return Prefix(), words
    head, _, prompt = words.partition(":")
    found = dict(kinds)
    if len(found) < len(kinds):
        raise ScheduleError(
            f"{quoted(head)} names a policy, a seed or an image twice; a cue has at most one of each (where "
            "it is meant as words of the prompt, write auto: before it)"
        )
    policy, seed, image = map(found.get, _KINDS)
    named = _read_policy(policy) if policy else (AUTO, None)
    return Prefix(*named, seed and seed[1], image and image[1]), prompt


def kinds_of(words: str) -> list[tuple[str, re.Match]]:
    """What is named before the colon, in order, as in _KINDS; nothing where all is words of a prompt.

    A list of policies alone is words: `cut, keep: x` was a prompt before cues had seeds.
    """
    head, colon, _ = words.partition(":")
    if not colon or head[-1:].isspace():
        return []
    if alone := _KINDS["policy"].fullmatch(head):
        return [("policy", alone)]
    kinds = [_kind_of(part) for part in head.split(",")]
    return kinds if all(kinds) and dict(kinds).keys() != {"policy"} else []


def _kind_of(part: str) -> tuple[str, re.Match] | None:
    return next(((name, found) for name, kind in _KINDS.items() if (found := kind.fullmatch(part))), None)


def _read_policy(found: re.Match) -> tuple[str, float | None]:
    """Name of the policy, seconds of a blend."""
    if found[1]:
        return found[1].lower(), None
    if not re.fullmatch(SECONDS, found[2]):
        raise ScheduleError(
            f"{quoted(found[2])} is not how long a blend takes; write it as blend 3s: or blend 2.5s: (where "
            "it is meant as words of the prompt, write auto: before it)"
        )
    return Policy.BLEND, float(found[2].removesuffix("s"))


def slip(index: int, cue: Cue) -> str | None:
    """A warning, where what a cue lacks may have been meant by the first words of its prompt."""
    own = written_kinds(cue)
    meant = more_kinds(own, cue.prompt) if own else meant_prefix(cue.prompt)
    typed = quoted(f"{cue.prompt.partition(':')[0]}:")
    begins = f"{named(index, cue, shown)} begins with {typed}, read as words of the prompt"
    return meant and f"{begins}; for the {main_kind(cue.prompt if own else f'{meant}:')} write {meant}:"


def main_kind(words: str) -> str:
    """What the prefix of some words is called: image, seed or policy."""
    names = dict(kinds_of(words))
    return next(name for name in reversed(_KINDS) if name in names)


def written_kinds(cue: Cue) -> list[str]:
    """What comes before the colon of a cue, in parts."""
    kinds = [] if cue.policy is None else [cue.policy.value]
    if cue.policy is Policy.BLEND:
        kinds[0] += f" {spelled(cue.blend_seconds)}"
    kinds += [] if cue.seed is None else [f"seed {cue.seed}"]
    return kinds + ([f"image {cue.image}"] if cue.image else [])


def more_kinds(own: list[str], prompt: str) -> str | None:
    """`cut, seed 7` where a cue is `cut: seed 7: x`; None where its prompt names nothing that it lacks."""
    named = dict(kinds_of(prompt))
    has = {_kind_of(part)[0] for part in own}
    return ", ".join([*own, prompt.partition(":")[0]]) if named and not has & named.keys() else None


def meant_prefix(prompt: str) -> str | None:
    """What a prompt may begin with by a slip: recache for `recahce:`, cut, seed 7 for `cut seed 7:`."""
    if policy := meant_policy(prompt):
        return policy.value
    head, colon, _ = prompt.partition(":")
    if not colon or kinds_of(prompt):
        return None
    head = _IMAGE_WITHOUT_COMMA.sub(r",\1", _SEED_WITHOUT_COMMAS.sub(r",\1,", head))
    parts = [_meant_part(part.strip(" ")) for part in head.split(",") if part.strip(" ")]
    is_one = all(parts) and any(part.startswith(("seed ", "image ")) for part in parts)
    return ", ".join(parts) if is_one else None


def _meant_part(part: str) -> str | None:
    if kind := _kind_of(part):
        return f"image {kind[1][1]}" if kind[0] == "image" else part.lower()
    for like, word, most in ((_LIKE_A_SEED, "seed", 1), (_LIKE_AN_IMAGE, "image", 2)):
        if (found := like.fullmatch(part)) and _num_slips(found[1].lower(), word) <= most:
            return f"{word} {found[2]}"
    return meant_policy(f"{part}:")


def meant_policy(prompt: str) -> Policy | None:
    """The policy that a prompt may begin with by a slip of at most two letters: `recahce:`, `blnd 3s:`."""
    found = _LIKE_A_POLICY.match(prompt)
    for policy, most in _MAX_SLIPS.items() if found else ():
        if 0 < _num_slips(found[1].lower(), policy) + len(found[2]) <= most:
            return policy
    return None


def _num_slips(word: str, due: str) -> int:
    """How many letters are wrong, missing, too many or exchanged with their neighbour."""
    older, row = [], [*range(len(due) + 1)]
    for i, letter in enumerate(word):
        older, before, row = row, older, [i + 1]
        for j, other in enumerate(due):
            ways = [older[j + 1] + 1, row[j] + 1, older[j] + (letter != other)]
            if i and j and (letter, word[i - 1]) == (due[j - 1], other):
                ways.append(before[j - 1] + 1)
            row.append(min(ways))
    return row[-1]
