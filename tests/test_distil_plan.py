"""What a tuning run needs, computed: against the arithmetic of its documents and against real models."""

import sys
from dataclasses import replace

import pytest
import torch

from longlive_core.config import LONGLIVE_1_3B
from longlive_core.memory import GIB
from longlive_core.model.causal_wan import CausalWan
from longlive_training.__main__ import main
from longlive_training.distil.plan import TEACHERS, Job, backward, forward, memory, num_trained, operations
from longlive_training.distil.recipe import INIT, LONG

SIZE = (832, 480)
STUDENT, CLIP = LONGLIVE_1_3B.model, 21 * 1560
TERA = 1e12


def planned(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["longlive_training", "plan", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_operations_are_those_of_the_paper_s_sizes() -> None:
    """TFLOP worked out by hand: a block, a clip of each model, the critic's gradient."""
    for found, expected in (
        (forward(STUDENT, 3 * 1560, 12 * 1560), 28.3),
        (forward(STUDENT, CLIP, CLIP), 283),
        (forward(TEACHERS["14b"], CLIP, CLIP), 1676),
        (2 * forward(STUDENT, CLIP, CLIP, 256) + backward(STUDENT, CLIP, CLIP, 256), 1230),
    ):
        assert found / TERA == pytest.approx(expected, rel=5e-3)
    student, critic = (part / TERA for part in operations(Job(LONG, TEACHERS["14b"], SIZE)))
    assert 4790 < student < 5400 and 1820 < critic < 2000


def test_operations_are_those_that_torch_counts() -> None:
    """A layer of true shape on the meta device, forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from longlive_training.distil.scores import whole_flow

    config = replace(STUDENT, num_layers=1)
    with torch.device("meta"):
        model, noisy = CausalWan(config), torch.empty(1, 16, 3, 16, 16)
        embeds, timesteps = torch.empty(1, config.text_tokens, config.text_dim), torch.empty(1)
    model.rotations = lambda *at: torch.empty(3 * 64, 1, config.head_dim // 2, 2, device="meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        whole_flow(model, noisy, timesteps, embeds)
    counted = counter.get_flop_counts()["CausalWan.layers.0"]
    assert sum(counted.values()) == pytest.approx(forward(config, 3 * 64, 3 * 64), rel=1e-3)


def test_memory_is_that_of_the_documents() -> None:
    assert num_trained(STUDENT, 256) == 349_962_240
    for teacher, expected in (("14b", 58), ("1.3b", 34)):
        assert sum(memory(Job(LONG, TEACHERS[teacher], SIZE)).values()) / GIB == pytest.approx(
            expected, abs=1
        )
    whole = Job(LONG, TEACHERS["14b"], SIZE)
    spread = replace(whole, gpus=8, parts=8)
    assert sum(memory(spread).values()) / GIB < 32 < sum(memory(whole).values()) / GIB
    offloaded = memory(replace(spread, is_offloaded=True))["teacher"]
    assert memory(spread)["teacher"] - offloaded == pytest.approx(memory(whole)["teacher"] / 8)
    assert sum(memory(Job(INIT, TEACHERS["1.3b"], SIZE)).values()) / GIB == pytest.approx(72, abs=1)


def test_the_command_says_what_is_estimated(monkeypatch, capsys) -> None:
    text = planned(monkeypatch, capsys, "--gpus", 8, "--nodes", 8, "--shard", "node", "--batch", 64)
    assert (
        "3000 iterations of 64 clips" in text
        and "on 64 GPU(s)" in text
        and "All of it is an estimate" in text
    )
    assert "at 40% of 989 TFLOP/s" in text
    timed = planned(
        monkeypatch, capsys, "--batch", 8, "--steps", 1000, "--student-part", 16, "--critic-part", 6
    )
    assert "student part 16.0 s" in timed and "73.6 s each, 0.85 days on 1 GPU(s)" in timed
    assert "TFLOP/s" not in timed and "estimate" in timed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gpus", 8, "--batch", 12), "12 clips an update by 8 streams on 8 GPUs are not possible"),
        (("--gpus", 2, "--streams", 3), "3 streams on 2 GPUs"),
        (("--utilisation", 0), "numbers above 0"),
        (("--offload-teacher",), "choose --shard node or all"),
        (("--stage", "init", "--rank", 8), "belong to --stage long"),
        (("--longest", 20), "in a sequence of 20 are not possible"),
    ],
)
def test_impossible_plans_end_in_a_sentence(monkeypatch, capsys, options, sentence: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{sentence}"):
        planned(monkeypatch, capsys, *options)
