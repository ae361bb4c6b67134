"""Cues become switches: what no policy means, and how a blend goes from one embedding to the next."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.blend import spherical
from longlive_core.config import Policy
from longlive_core.rollout.rollout import Switch
from longlive_core.schedule.cue import DEFAULT_BLEND_SECONDS, Cue
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.script import PromptScript, blend_blocks, script_of

BLOCK = 3
VALUES = {"a": 0.0, "b": 1.0, "c": 4.0, "film a": 2.0, "rain a": 3.0}


def embeds(value: float) -> Tensor:
    return torch.full((1, 2, 4), value)


def encode(prompt: str) -> Tensor:
    return embeds(VALUES[prompt])


def played(text: str, blocks: int, first_block: int = 0) -> list[tuple[float, str] | None]:
    """What each block's switch says: its embedding and its policy."""
    timeline = PromptSchedule.parse(text).resolve(BLOCK, first_block=first_block)
    script = script_of(timeline, encode, BLOCK, first_block)
    return [shown(script(block)) for block in range(first_block, first_block + blocks)]


def shown(switch: Switch | None) -> tuple[float, str] | None:
    return switch and (round(float(switch.embeds.mean()), 4), switch.policy.value)


def test_a_prompt_that_goes_on_is_known_with_what_is_in_every_prompt() -> None:
    """A video that goes on with the same prompt under other words in every prompt switches."""
    for before, after in (("film", "film"), ("film", "rain"), ("", "film")):
        texts = [f"always: {always}\n0 => a" for always in (before, after)]
        first, second = (
            script_of(PromptSchedule.parse(text).resolve(BLOCK), encode, BLOCK) for text in texts
        )
        first(0)
        second.resume(first.state())
        assert (second(0) is None) == (before == after)


def test_a_cue_without_a_policy_recaches_and_others_keep_theirs() -> None:
    text = "0 => keep: a\n0.5 => b\n1.3 => cut: c\n2 => refresh: a\n2.8 => keep: b"
    assert played(text, 5) == [
        *((0.0, "keep"), (1.0, "recache"), (4.0, "cut"), (0.0, "refresh"), (1.0, "keep")),
    ]


def test_a_blend_moves_block_by_block_and_ends_at_the_prompt() -> None:
    assert played("0 => a\n0.5 => blend 2.25s: b", 5) == [
        *((0.0, "recache"), (0.3333, "recache"), (0.6667, "recache"), (1.0, "recache"), None),
    ]


def test_a_cue_in_mid_blend_starts_from_what_is_in_effect() -> None:
    text = "0 => a\n0.5 => blend 3s: c\n2 => blend 1.5s: b"  # at block 3, half way to c
    assert played(text, 6) == [
        *((0.0, "recache"), (1.0, "recache"), (2.0, "recache"), (1.5, "recache"), (1.0, "recache"), None),
    ]
    assert played("0 => a\n0.5 => blend 3s: c\n2 => cut: b", 5)[3:] == [(1.0, "cut"), None]


def test_the_first_prompt_has_nothing_to_blend_from() -> None:
    assert played("0 => blend 3s: b", 3) == [(1.0, "recache"), None, None]
    assert played("0 => blend 3s: b", 3, first_block=7) == [(1.0, "recache"), None, None]


def test_only_the_last_block_of_a_blend_may_recache() -> None:
    cues = {0: Cue(0, "a"), 1: Cue(0, "c", Policy.BLEND, 2.25)}
    script = PromptScript(cues.get, encode, BLOCK, on_the_way=Policy.KEEP)
    assert [script(block).policy for block in range(4)] == [
        *(Policy.RECACHE, Policy.KEEP, Policy.KEEP, Policy.RECACHE),
    ]


@pytest.mark.parametrize(
    ("seconds", "block", "blocks"),
    [(DEFAULT_BLEND_SECONDS, 3, 3), (0.01, 3, 1), (0.75, 3, 1), (1.2, 3, 2), (60, 3, 80), (2.25, 1, 9)],
)
def test_a_blend_takes_whole_blocks(seconds, block, blocks) -> None:
    assert blend_blocks(seconds, block) == blocks


@given(st.integers(0, 2**31), st.floats(0, 1))
@settings(max_examples=30)
def test_the_arc_keeps_lengths_between_those_of_its_ends(seed: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    start[:, 3:], end[:, 4:] = 0, 0  # padding has no direction
    there = spherical(start, end, weight)
    assert there.isfinite().all() and not there[:, 4:].any()
    lengths = torch.stack([x.norm(dim=-1) for x in (start, end)])[..., :3]
    assert (there.norm(dim=-1)[..., :3] <= lengths.amax(0) + 1e-4).all()
    assert (there.norm(dim=-1)[..., :3] >= lengths.amin(0) - 1e-4).all()
    torch.testing.assert_close(spherical(start, end, 0.0), start)
    torch.testing.assert_close(spherical(start, end, 1.0), end)
    torch.testing.assert_close(spherical(start, start, weight), start)
