"""Streaming long tuning from outside: its command, its draws, resume, ranks, and what it writes."""

import itertools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from benchmarks import tuning as benchmark
from longlive_core.config import ModelConfig, WanAutoencoderConfig
from longlive_core.geometry import PATCH
from longlive_core.model.causal_wan import CausalWan
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name
from longlive_training.__main__ import main
from longlive_training.distil import checkpoint, command, scores
from longlive_training.distil.draws import Draws
from longlive_training.distil.loop import Models, Tuning
from longlive_training.distil.parallel import ALL, NONE, SHARDS, mesh_of, rank_and_size, shard_part, whole
from longlive_training.distil.prompts import read_pairs
from longlive_training.distil.recipe import INIT, LONG
from longlive_training.distil.run import Run
from longlive_training.distil.scores import whole_flow
from tests.test_vae import wan_state

ROOT = Path(__file__).parent.parent
TEXT_TOKENS, TEXT_DIM = 6, 16
STUDENT = ModelConfig(
    dim=32, ffn_dim=48, num_heads=1, num_layers=1, text_dim=TEXT_DIM, text_tokens=TEXT_TOKENS, freq_dim=16
)
TEACHER = replace(STUDENT, dim=48, ffn_dim=64)
SHAPE = (16, 3, 2, 2)
SMALL = replace(LONG, longest=75, rank=2, alpha=2.0, lr=1e-3, critic_lr=1e-3, ratio=2, average_from=1)
PROMPTS = [f"a red circle number {number}" for number in range(4)]


def wan(config: ModelConfig, seed: int) -> CausalWan:
    torch.manual_seed(seed)
    return CausalWan(config).eval()


def embeds(prompt: str) -> torch.Tensor:
    """Stands for UMT5: [1, tokens, dim]."""
    generator = torch.Generator().manual_seed(len(prompt) + sum(map(ord, prompt)))
    rows = torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator)
    rows[:, 4:] = 0
    return rows


def small_tuning(recipe=SMALL, rank: int = 0, ranks: int = 1, dtype=torch.float32, mesh=None) -> Tuning:
    """Random models of a layer; one token a latent frame."""
    torch.manual_seed(0)
    vae = WanAutoencoder(WanAutoencoderConfig(width=4, multipliers=(1, 1, 1, 1), num_residuals=1))
    wans = (wan(*sizes).to(dtype) for sizes in ((STUDENT, 1), (STUDENT, 2), (TEACHER, 3)))
    models = Models(*wans, vae.to(dtype), embeds("negative"))

    def of_pairs(pairs: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.cat([embeds(f"{which} {pair}") for pair in pairs]) for which in ("one", "two"))

    if mesh:
        teacher = models.teacher.requires_grad_(False)
        for part in (*teacher.layers, teacher):
            shard_part(part, mesh, dtype, is_offloaded=mesh.size(1) > 1)
    draws = Draws(recipe, SHAPE, 5, recipe.streams_of(rank, ranks))
    tuning = Tuning(models, recipe, draws, of_pairs, mesh)
    for trained in (tuning.student, tuning.critic):
        for number, weight in enumerate(trained.weights.values()):
            torch.manual_seed(number)
            weight.data.add_(spread_like(0.05 * torch.randn(weight.shape), weight.data))
    return tuning


def spread_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that all ranks have, as `like` is spread over them."""
    if isinstance(like, DTensor):
        return distribute_tensor(x, like.device_mesh, like.placements)
    return x


def weights_of(tuning: Tuning) -> list[torch.Tensor]:
    return [w.detach() for trained in (tuning.student, tuning.critic) for w in trained.weights.values()]


def same(ones, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_the_official_sequence() -> None:
    """240 latent frames: 21, then 12 times 18; a switch is at the start of a chunk."""
    ends = [21]
    while LONG.takes(ends[-1]):
        ends.append(ends[-1] + 18)
    assert len(ends) == 13 and ends[-1] == 237
    assert [*LONG.switches] == [*range(21, 202, 18)] and set(LONG.switches) <= set(ends)
    assert INIT.is_short and not INIT.switches and not LONG.is_short


def test_draws_depend_on_nothing_but_what_they_are_for() -> None:
    """Two ranks with a stream each draw what one process with two streams draws."""
    recipe = replace(SMALL, streams=2)
    together = Draws(recipe, SHAPE, 5, recipe.streams_of(0, 1))
    apart = [Draws(recipe, SHAPE, 5, recipe.streams_of(rank, 2)) for rank in range(2)]
    for number in (3, 0):
        for one in apart:
            assert one.exit(number) == together.exit(number)
            assert one.switch(number) == together.switch(number) in SMALL.switches
        assert torch.equal(torch.cat([one.level(number) for one in apart]), together.level(number))
        for name, key in (("noise", (number, 1, 2)), ("clip_noise", (number,))):
            own = torch.cat([getattr(one, name)(*key) for one in apart])
            assert torch.equal(own, getattr(together, name)(*key))
    seen = list(itertools.chain.from_iterable(together.pairs(sequence) for sequence in range(5)))
    assert seen == [pair for sequence in range(5) for one in apart for pair in one.pairs(sequence)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    assert {LONG.switches.index(Draws(LONG, SHAPE, 5, range(1)).switch(n)) for n in range(200)} == set(
        range(11)
    )


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    """Stopped in the middle of a sequence: weights, average and log are the same."""
    undisturbed = Run(small_tuning(), tmp_path / "whole", "digest")
    undisturbed.train(4, save_every=100)
    Run(small_tuning(), tmp_path / "parts", "digest").train(2, save_every=100)
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "critic_loss": 0.0}\n{"st')  # of a process that was killed
    (tmp_path / "parts" / "step-000009.part").mkdir()
    parts = Run(small_tuning(), tmp_path / "parts", "digest")
    assert parts.tuning.step == 2 and parts.tuning.stream.scene.end
    parts.train(4, save_every=1)
    assert same(weights_of(undisturbed.tuning), weights_of(parts.tuning))
    assert (
        same(undisturbed.tuning.average.values(), parts.tuning.average.values())
        and undisturbed.tuning.average
    )
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 4
    kept = sorted(path.name for path in (tmp_path / "parts").glob("step-*"))
    assert kept == ["step-000002", "step-000003", "step-000004"]


def test_another_recipe_or_other_prompts_are_refused(tmp_path: Path) -> None:
    Run(small_tuning(), tmp_path, "digest").train(1, save_every=1)
    other = small_tuning(replace(SMALL, longest=93))
    with pytest.raises(ValueError, match=r"another run: longest 75 instead of 93; choose another --folder"):
        Run(other, tmp_path, "digest")
    with pytest.raises(ValueError, match="other prompts"):
        Run(small_tuning(), tmp_path, "another digest")
    with pytest.raises(ValueError, match="another run: streams 1 instead of 2"):
        Run(small_tuning(replace(SMALL, streams=2)), tmp_path, "digest")
    with pytest.raises(ValueError, match="2 processes cannot share 3 streams evenly; start one of 1, 3 proc"):
        replace(SMALL, streams=3).streams_of(0, 2)


def test_what_is_not_finite_ends_in_a_sentence_and_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    run = Run(small_tuning(), tmp_path, "digest")
    run.train(1, save_every=1)
    before = [weight.clone() for weight in weights_of(run.tuning)]
    run.tuning.critic.model.head.proj.bias.data.fill_(torch.nan)
    sentence = (
        r"^iteration 1: the loss of the critic is nan; the newest good checkpoint is .*step-000001; run"
    )
    with pytest.raises(FloatingPointError, match=sentence):
        run.train(3, save_every=1)
    assert same(before, weights_of(run.tuning))
    assert checkpoint.newest(tmp_path).name == "step-000001"


def test_a_full_disk_ends_in_a_sentence_and_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    run = Run(small_tuning(), tmp_path, "digest")
    run.train(1, save_every=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file
    try:
        with pytest.raises(OSError, match=r"^step 2 could not be saved: .*step-000001; make room"):
            run.train(2, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000001"]
    again = Run(small_tuning(), tmp_path, "digest")
    again.train(2, save_every=1)
    assert same(weights_of(run.tuning), weights_of(again.tuning))


def flip(path: Path) -> None:
    """A bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The second half of a file is missing."""
    os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys) -> None:
    """Whichever file is cut, changed by a bit or missing: the one before is used, and the run is the same."""
    undisturbed = Run(small_tuning(), tmp_path / "run", "digest")
    undisturbed.train(2, save_every=1)
    names = [path.name for path in (tmp_path / "run" / "step-000002").iterdir()]
    assert len(names) == 4
    for number, (name, harm) in enumerate(itertools.product(names, (flip, cut, Path.unlink))):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", copy)
        harm(copy / "step-000002" / name)
        assert checkpoint.newest_undamaged(copy).name == "step-000001", (name, harm)
        assert "step-000002 is damaged (" in capsys.readouterr().err
    again = Run(small_tuning(), copy, "digest")
    assert again.tuning.step == 1 and (copy / "step-000002.damaged").exists()
    again.train(2, save_every=1)
    assert same(weights_of(undisturbed.tuning), weights_of(again.tuning))
    assert (copy / "log.jsonl").read_text() == (tmp_path / "run" / "log.jsonl").read_text()
    for path in copy.glob("step-??????/.metadata"):
        cut(path)
    with pytest.raises(ValueError, match=r"^all checkpoints in .* are damaged \(step-000002: .metadata ha"):
        Run(small_tuning(), copy, "digest")


BOTH = replace(SMALL, streams=2, ratio=1)
ALL_WEIGHTS = replace(BOTH, rank=None, longest=21)


def two_iterations(folder: Path, recipe=BOTH, shard: str = NONE) -> list[torch.Tensor]:
    """Gradients and weights of both models after two updates of both; saved and resumed on the way."""
    Run(own_tuning(recipe, shard), folder, "digest").train(1, save_every=1)
    return second_iteration(folder, recipe, shard)


def second_iteration(folder: Path, recipe=BOTH, shard: str = NONE) -> list[torch.Tensor]:
    """The same from a checkpoint of the first iteration."""
    again = Run(own_tuning(recipe, shard), folder, "digest")
    assert again.tuning.step == 1 and again.tuning.stream.is_over == recipe.is_short
    again.train(2, save_every=9)
    weights = [w for t in (again.tuning.student, again.tuning.critic) for w in t.weights.values()]
    assert all(isinstance(w, DTensor) == (shard != NONE) for w in weights)
    found = [*(w.grad for w in weights), *(w.detach() for w in weights), *again.tuning.average.values()]
    return [whole(x) for x in found]


def own_tuning(recipe, shard: str) -> Tuning:
    """Of this process."""
    return small_tuning(recipe, *rank_and_size(), mesh=mesh_of(shard, torch.device("cpu")))


def as_one_of_two(folder: Path) -> list[list[torch.Tensor]]:
    """All that two ranks do: every way of sharding, both stages, and a checkpoint of one process."""
    torch.set_num_threads(1)
    with command.process_group("cpu"):
        ways = [two_iterations(folder / f"long {shard}", BOTH, shard) for shard in SHARDS]
        ways.append(two_iterations(folder / "init", ALL_WEIGHTS, ALL))
        return [*ways, second_iteration(folder / "more", BOTH, ALL)]


OTHER_RANK = "import sys, pathlib, tests.test_distil as t; t.as_one_of_two(pathlib.Path(sys.argv[1]))"


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU")
def test_two_ranks_are_one_process_however_models_are_sharded(tmp_path: Path, monkeypatch) -> None:
    """Started as torchrun does on two nodes; checkpoints go on with one process more or less."""
    alone = two_iterations(tmp_path / "alone"), two_iterations(tmp_path / "alone init", ALL_WEIGHTS)
    shutil.copytree(tmp_path / "alone" / "step-000001", tmp_path / "more" / "step-000001")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    environment = os.environ | together | {"RANK": "1", "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen([sys.executable, "-c", OTHER_RANK, tmp_path], env=environment)
    with monkeypatch.context() as own:
        for name, value in (together | {"RANK": "0"}).items():
            own.setenv(name, value)
        ways = as_one_of_two(tmp_path)
    assert other.wait() == 0
    shutil.copytree(tmp_path / f"long {ALL}" / "step-000001", tmp_path / "less" / "step-000001")
    ways.append(second_iteration(tmp_path / "less"))
    expected = [alone[0]] * len(SHARDS) + [alone[1]] + [alone[0]] * 2
    for theirs, ours in zip(expected, ways, strict=True):
        for one, other_one in zip(theirs, ours, strict=True):
            assert (one - other_one).abs().max() <= 1e-6 and one.abs().max() > 1e-5
    logs = {name: (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("alone", "long all")}
    for one, ours in zip(*(map(json.loads, log) for log in logs.values()), strict=True):
        assert ours == pytest.approx(one, rel=1e-5)


def test_a_long_clip_goes_through_teacher_and_critic_in_parts() -> None:
    """With few tokens at once, as 32,760 of a real clip are: the same flow."""
    model, noisy, prompt = wan(TEACHER, 3), torch.randn(2, 16, 21, 4, 4), embeds("a")
    with torch.no_grad():
        whole = whole_flow(model, noisy, torch.tensor([20.0, 980.0]), prompt)
        model.max_tokens = 10
        parts = whole_flow(model, noisy, torch.tensor([20.0, 980.0]), prompt)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_where_a_clip_ought_to_move_is_a_number(monkeypatch) -> None:
    """A teacher that says what the clip is already leaves nothing to divide by."""
    monkeypatch.setattr(scores, "whole_flow", lambda flow, *_: flow)
    clip, timesteps = torch.zeros(2, 1, 1, 1, 2), torch.full((2,), 500.0)
    same, other = clip, torch.tensor([0.0, 1.0]).expand_as(clip)
    moved = scores.student_gradient(same, other, 0.0, clip, clip, timesteps, (clip, clip))
    assert moved[..., 0].eq(0).all() and moved[..., 1].lt(0).all() and moved.isfinite().all()


def test_an_iteration_in_bf16() -> None:
    """As on a GPU: frozen weights and arithmetic in bf16, the LoRA and what is learned in fp32."""
    tuning = small_tuning(dtype=torch.bfloat16)
    figures = tuning.iteration()
    assert figures["student_norm"] > 0 and {w.dtype for w in weights_of(tuning)} == {torch.float32}


def test_iterations_at_true_width(monkeypatch) -> None:
    """Two layers of the 1.3B with random weights, by the script that measures whole models on a GPU."""
    found = {}
    monkeypatch.setattr(benchmark, "report", lambda name, figures: found.update(figures))
    small = {"device": "cpu", "layers": 2, "teacher": "1.3b", "size": "16x16", "critic-parts": 1}
    benchmark.main([f"--{name}={value}" for name, value in small.items()])
    assert found["student_part_seconds"] > 0 and found["critic_part_seconds"] > 0


def write_wan(path: Path, model: CausalWan) -> None:
    """Under the original's names."""
    state = {foreign_name(name, "wan"): weight for name, weight in model.state_dict().items()}
    patches = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = patches.unflatten(1, (-1, 1, PATCH, PATCH))
    save_file(state, path)


@pytest.fixture
def options(tmp_path: Path, monkeypatch) -> dict[str, object]:
    """The command's options, and small random files for them."""
    monkeypatch.setattr(command, "load_umt5", lambda path, device: embeds)
    monkeypatch.setattr(command, "encoder_identity", str)
    for name, config, seed in (("student", STUDENT, 1), ("critic", STUDENT, 2), ("teacher", TEACHER, 3)):
        write_wan(tmp_path / f"{name}.safetensors", wan(config, seed))
    save_file(wan_state(), tmp_path / "vae.safetensors")
    (tmp_path / "first.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "second.txt").write_text("\n".join(f"{prompt} turns blue" for prompt in PROMPTS))
    files = {name: tmp_path / f"{name}.safetensors" for name in ("critic", "teacher", "vae")}
    return {
        "model": tmp_path / "student.safetensors",
        **files,
        "text-encoder": "umt5",
        "prompts": tmp_path / "first.txt",
        "follow-ups": tmp_path / "second.txt",
        "folder": tmp_path / "run",
        **{"size": "16x16", "steps": 1, "device": "cpu"},
    }


def run_command(monkeypatch, *arguments: object, **options: object) -> None:
    given = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["longlive_training", *map(str, arguments), *given])
    main()


def test_what_the_command_tunes_loads_everywhere(options, tmp_path: Path, monkeypatch) -> None:
    """An iteration of both models; its LoRA in the reference's layout and under ComfyUI's names."""
    run_command(monkeypatch, "distil", **options, rank=2, longest=39, lr=0.1)
    folder, base = options["folder"], options["model"]
    made = {"lora.pt", "lora.md", "run.json", "log.jsonl", "step-000001", "embeddings"}
    assert made == {path.name for path in folder.iterdir()}
    figures = json.loads((folder / "log.jsonl").read_text())
    assert figures.keys() == {"step", *(f"{m}_{x}" for m in ("student", "critic") for x in ("loss", "norm"))}
    run_command(monkeypatch, "convert", folder, out=tmp_path / "stock.safetensors")
    run_command(monkeypatch, "convert", folder / "lora.pt", out=tmp_path / "again.safetensors")
    stock = load_file(tmp_path / "stock.safetensors")
    assert "diffusion_model.blocks.0.ffn.2.lora_B.weight" in stock and len(stock) == 20
    assert stock.keys() == load_file(tmp_path / "again.safetensors").keys()
    plain = load_transformer(base, precision="fp32").transformer.state_dict()
    tuned = [
        load_transformer(base, [LoraChoice(lora)], precision="fp32").transformer.state_dict()
        for lora in (folder / "lora.pt", tmp_path / "stock.safetensors", tmp_path / "again.safetensors")
    ]
    changed = {name for name, weight in plain.items() if not torch.equal(weight, tuned[0][name])}
    assert changed == {name for name in plain if name.startswith("layers.") and plain[name].ndim == 2}
    assert all(same(tuned[0].values(), other.values()) for other in tuned[1:])


def test_a_model_card_with_the_recipe_is_next_to_the_result(options, tmp_path: Path, monkeypatch) -> None:
    """Completed by hand, it keeps every word but the recipe; an own one is left alone."""
    run_command(monkeypatch, "distil", **options, rank=2, longest=39)
    folder = options["folder"]
    card = folder / "lora.md"
    text = card.read_text()
    assert text.startswith("---\nbase_model: student.safetensors\n") and "--lora lora.pt --vae" in text
    for row in ("teacher | teacher.safetensors", "iterations | 1", "rank | 2", "pairs of prompts | 4"):
        assert f"| {row} |" in text
    card.write_text(text.replace("WRITE: one sentence", "It is better."))
    (tmp_path / "own.md").write_text("mine")
    run_command(monkeypatch, "distil", **(options | {"steps": 2}), rank=2, longest=39)
    assert "It is better." in card.read_text() and "| iterations | 2 |" in card.read_text()
    run_command(monkeypatch, "convert", folder, out=tmp_path / "own.safetensors")
    assert (tmp_path / "own.md").read_text() == "mine"


def test_the_first_stage_writes_a_checkpoint(options, monkeypatch) -> None:
    run_command(monkeypatch, "distil", **options, stage="init", lr=0.1)
    made = load_transformer(options["folder"] / "model.pt", precision="fp32").transformer
    plain = load_transformer(options["model"], precision="fp32").transformer.state_dict()
    assert not any(torch.equal(plain[name], weight) for name, weight in made.state_dict().items())


def test_wrong_files_end_in_one_sentence(options, tmp_path: Path, monkeypatch) -> None:
    write_wan(tmp_path / "image.safetensors", wan(replace(STUDENT, latent_channels=36), 4))
    write_wan(tmp_path / "other_text.safetensors", wan(replace(STUDENT, text_dim=8), 4))
    save_file(dict([*load_file(options["teacher"]).items()][:-1]), tmp_path / "part.safetensors")
    wrong = [
        ({"teacher": options["vae"]}, r"vae.safetensors is a VAE; the teacher must be"),
        ({"teacher": tmp_path / "other_text.safetensors"}, "8 values a text token and the student 16"),
        ({"teacher": tmp_path / "image.safetensors"}, "image.safetensors is a Wan image-to-video model"),
        ({"critic": tmp_path / "other_text.safetensors"}, "it cannot be its critic"),
        ({"vae": options["teacher"]}, "teacher.safetensors cannot be loaded as a VAE"),
        ({"batch": 3, "streams": 2}, "a batch of 3 is no multiple of the 2 streams"),
        ({"longest": 20}, "in a sequence of 20 are not possible"),
        ({"teacher": tmp_path / "part.safetensors"}, "incomplete or wrong teacher: "),
        ({"shard": "node"}, "--shard node needs processes that torchrun started"),
    ]
    for change, sentence in wrong:
        with pytest.raises(SystemExit, match=f"^error: .*{sentence}"):
            run_command(monkeypatch, "distil", **(options | change))
    with pytest.raises(SystemExit, match=r"^error: --offload-teacher is for sharded models"):
        run_command(monkeypatch, "distil", "--offload-teacher", **options)
    with pytest.raises(SystemExit, match="has no checkpoint of a tuning run"):
        run_command(monkeypatch, "convert", tmp_path, out=tmp_path / "x.safetensors")
    with pytest.raises(SystemExit, match=r"choose a name that ends in \.safetensors"):
        run_command(monkeypatch, "convert", tmp_path, out=tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ("a\nb\n", "a\n", r"has 2 prompts and .*second.txt has 1; every prompt needs its follow-up"),
        ("a\n\nb\n", "a\nb\nc\n", r"first.txt: line 2 is empty"),
        ("", "a", r"first.txt is empty"),
    ],
)
def test_prompts_that_do_not_pair_are_refused(tmp_path: Path, first: str, second: str, sentence: str) -> None:
    (tmp_path / "first.txt").write_text(first)
    (tmp_path / "second.txt").write_text(second)
    with pytest.raises(ValueError, match=sentence):
        read_pairs(tmp_path / "first.txt", tmp_path / "second.txt")
