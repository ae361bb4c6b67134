"""The page's own code, without a page: node's tests of it, and the timeline against the Python parser."""

import hashlib
import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from longlive_core import geometry
from longlive_core.schedule.cue import Cue, ScheduleError
from longlive_core.schedule.prefix import meant_prefix, slip
from longlive_core.schedule.schedule import PromptSchedule
from tests.notations import LISTS_THAT_ARE_NOT, LISTS_THAT_ARE_READ, ONE_PROMPT_ALL_THE_SAME

WEB = Path(__file__).parent / "web"
BLOCK = 3  # latent frames
NODE = shutil.which("node")
LINT_WORDS = ("TODO", "console.log", "debugger")

pytestmark = pytest.mark.skipif(not NODE, reason="WEB TESTS NOT RUN: no node; install Node.js 20 or newer")


def run_node(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([NODE, *arguments], input=text, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("file", sorted(WEB.glob("*.test.mjs")), ids=lambda file: file.name)
def test_what_node_tests(file: Path):
    done = run_node("--test", str(file))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", sorted((WEB.parents[1] / "web" / "js").rglob("*.js")), ids=lambda f: f.name)
def test_page_code_is_finished(file: Path):
    assert not [word for word in LINT_WORDS if word in file.read_text()]


# 200 schedules: written as a user might, some of them wrong

WORDS = [
    *("a", "red", "circle", "keep:", "cut: x", "auto:", "blend", "blend 3s:", "note:", "=>", "5s", "0:05"),
    *("#1", '{"a"', "\u00e9", "\u8d64\u3044", "\U0001f7e6", "\u00a0", "\u0085", "\ufeff", "\x1c", "\u3000"),
]
AS_BEFORE_ALWAYS = (
    "83cf126245a0c4c7217766f77ec5dca789985130bcfa3242de27ea4db8054a0c"  # what texts were read as
)
POLICIES = [
    *("", "", "", "recache:", "refresh:", "Keep:", "cut:", "auto:", "AUTO: ", "blend:", "blend 3s:"),
    *("blend .5:", "Blend  2.25s:", "blend 60s:", "cut :", "blend 3s :", "blend\u00a03s:"),
]
BAD_POLICIES = ["blend 0s:", "blend 61:", "blend 3x:", "blend -1s:", "cut: keep:", "blend: ", "keep:   "]
TIMES = ["{0}", "{0}s", "{0:.2f}", "{0:.1f}s", "0:{0:02.0f}", "0:00:{0:02.0f}", "{0:g}s", "0{0:g}"]
BAD_TIMES = [
    "{0}e3",
    "0:{0:.0f}:",
    "-{0}s",
    "{0},5s",
    "soon",
    "1:75",
    "",
    "\u0665s",
    "{0}sec",
    "99:99:99",
    "9" * 400,
]
NULS = [
    "0 a\n5s \0",
    '{"cues": [{"time": 0, "prompt": "a\\u0000"}]}',
    "0\0 \0a\0",
    '{"prompts": ["a\\u0000"]}',
]
POLICY_NAMES = ["recache", "refresh", "keep", "cut", "blend"]
SLIPS_OF_PROMPTS = f"""
import {{ readFileSync }} from "node:fs";
import {{ meantPrefix, slipOf }} from {json.dumps((WEB.parents[1] / "web/js/timeline/prefix.js").as_uri())};
import {{ parse }} from {json.dumps((WEB.parents[1] / "web/js/timeline/model.js").as_uri())};
const [words, cues] = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify([words.map(meantPrefix), cues.map((text) => slipOf(parse(text).cues[1]))]));
"""
KINDS = ["cut", "Keep", "recache", "blend", "blend 3s", "BLEND  .5", "auto", "blend 3x", "blend 3,5s", "kep"]
SEEDS = [
    *("seed 7", "seed 0", "Seed  007", "seed\t8", "seed 9007199254740993", f"seed {2**64 - 1}"),
    *(f"seed {2**64}", f"seed {'0' * 5000}9", "sede 7", "seed -1", "seed 7s", "seed", "seed\u00a07"),
]
IMAGES = [
    *("image sea.png", "Image  sea.PNG", "image a/b c.webp", "image \u6d77.jpg", "image s.e.a.png"),
    *(
        "image ../a.png",
        "image /a.png",
        "image a//b.png",
        "imgae sea.png",
        "image sea",
        "image\u00a0a.png",
        "image=a.png",
    ),
]
JSON_SEEDS = [
    *(7, 0, -0.0, 7.0, "7", "007", 2**53 - 1, str(2**53), str(2**64 - 1), None),
    *(7.5, -1, 2**53, 1e19, str(2**64), "", " 7", "x", True, [7], {}),
]
ENDS = ["\n", "\n", "\r\n", "\r", "\n\n", "\n# note\n", "\n  # note\n", "\n \n"]


def some_prompt(dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, 4)))


def some_prefix(dice: random.Random) -> str:
    """A seed and sometimes a policy, in any order and now and then wrong."""
    seed = dice.choice(SEEDS[:6] if dice.random() < 0.9 else SEEDS)
    kinds = dice.sample(KINDS[:7] if dice.random() < 0.9 else KINDS, dice.choice([0, 1, 1, 1, 1, 2]))
    image = dice.choice(IMAGES[:5] if dice.random() < 0.9 else IMAGES)
    scenes = [[image], [image, seed], [image, "cut"], [image, "Auto", seed], [image, *kinds]]
    parts = [seed, *kinds] if dice.random() < 0.78 else dice.choice(scenes)
    dice.shuffle(parts)
    between = dice.choice([", ", ", ", ",", " , ", ",\n  ", " ", "\u00a0, "])
    return between.join(parts) + dice.choice([":", ":", ":", " :", ":cut:"])


def some_cue(dice: random.Random, seconds: float) -> str:
    is_odd = dice.random() < 0.04
    time = dice.choice(BAD_TIMES if is_odd else TIMES).format(seconds)
    policy = dice.choice(BAD_POLICIES if dice.random() < 0.04 else POLICIES)
    policy = some_prefix(dice) if dice.random() < 0.4 else policy
    words = some_prompt(dice) if dice.random() < 0.98 else dice.choice(["", " ", "\ud800"])
    more = dice.choice(["", "", "", "\n  and on", "\n\tand\n# no\n on"])
    return f"{time}{dice.choice([' => ', ' ', '=>', '  =>'])}{policy}{dice.choice([' ', ''])}{words}{more}"


def some_times(dice: random.Random) -> list[float]:
    times = sorted(dice.choice([dice.randint(1, 59), dice.uniform(0, 59)]) for _ in range(dice.randint(0, 5)))
    times = [0 if dice.random() < 0.95 else 1, *times]
    if dice.random() < 0.05:
        dice.shuffle(times)
    return times


def some_always(dice: random.Random) -> str:
    """A first line of words for every prompt, often with lines that continue it, sometimes a wrong one."""
    words = dice.choice(["", " ", some_prompt(dice), some_prompt(dice), "\ud800"])
    more = dice.choice(["", "", "\n  and on", "\n# no\n\ton", "\n \n"])
    begin = dice.choice(["", "", "\ufeff", "# title\n", "\n"])
    return f"{begin}{dice.choice(['always:', 'always: ', 'Always: ', 'always :'])}{words}{more}\n"


def some_text(dice: random.Random) -> str:
    start = dice.choice(
        ["", "", "", "\ufeff", "# title\n", "\n", "a plain prompt\n"] if dice.random() < 0.3 else [""]
    )
    lines = [some_cue(dice, seconds) + dice.choice(ENDS) for seconds in some_times(dice)]
    start = some_always(dice) + start if dice.random() < 0.3 else start
    indent = dice.choice(["", "", "", "", "  ", "\t"])
    return start + "".join(indent + line for line in lines)


def some_entry(dice: random.Random, seconds: float) -> dict:
    entry = {
        "time": dice.choice([seconds, seconds, f"{seconds}s", f" {seconds} "]),
        "prompt": some_prompt(dice),
    }
    if dice.random() < 0.5:
        entry["policy"] = dice.choice(["recache", "keep", "cut", "auto", "blend", "blend"])
    if entry.get("policy") == "blend" and dice.random() < 0.6:
        entry["blend"] = dice.choice([0.75, 3, 60])
    if dice.random() < 0.3:
        entry["seed"] = dice.choice(JSON_SEEDS[:10] if dice.random() < 0.9 else JSON_SEEDS)
    if dice.random() < (0.3 if entry.get("policy", "cut") in ("cut", "auto") else 0.03):
        names = ["a.png", "a/b c.jpg", "\u6d77.webp", None]
        entry["image"] = dice.choice(
            names if dice.random() < 0.9 else ["../a.png", "a", 7, "", "a\u2028/../b.png"]
        )
    if dice.random() < 0.3:
        entry |= {"colour": "#f00", "lane": {"row": 2.5, "name": None}}
    if dice.random() < 0.06:
        name = dice.choice(["time", "prompt", "policy", "blend"])
        entry[name] = dice.choice([None, True, -1, 0, "", [], {}, "fade", "soon", 1e6, 61])
    return entry


def some_json(dice: random.Random) -> str:
    cues = [some_entry(dice, seconds) for seconds in some_times(dice)]
    dice.shuffle(cues)
    document = {"version": 1 if dice.random() < 0.95 else 2, "cues": cues}
    if dice.random() < 0.3:
        document |= {"zoom": 1.5, "authors": ["\u00e9"]}
    if dice.random() < 0.4:
        document["always"] = dice.choice([some_prompt(dice), some_prompt(dice), "", " ", None, 5])
    text = json.dumps(document, indent=dice.choice([None, 2]), ensure_ascii=dice.random() < 0.5)
    return text if dice.random() < 0.95 else text[: -dice.randint(1, len(text) - 12)]


def some_jsonl(dice: random.Random) -> tuple[str, list[int]]:
    prompts = [some_prompt(dice) for _ in range(dice.randint(1, 4))]
    frames = sorted(dice.randint(0, 60) for _ in prompts[1:])
    if dice.random() < 0.2:
        frames = [*frames, 70] if dice.random() < 0.5 else frames[::-1]
    return json.dumps({"prompts": prompts, "id": 3}) + dice.choice(["", "\n", '\n{"prompts": ["b"]}']), frames


def some_schedule(dice: random.Random) -> tuple[str, list[int]]:
    kind = dice.random()
    if kind < 0.15:
        return some_jsonl(dice)
    return (some_text(dice) if kind < 0.65 else some_json(dice)), []


def seed_of(cue: Cue) -> str | None:
    """The digits, which the timeline has."""
    return None if cue.seed is None else str(cue.seed)


def fields_of(schedule: PromptSchedule) -> list:
    policies = [cue.policy and cue.policy.value for cue in schedule.cues]
    return [
        [cue.seconds, cue.prompt, policy, cue.blend_seconds, seed_of(cue), cue.image, dict(cue.extra)]
        for cue, policy in zip(schedule.cues, policies, strict=True)
    ]


def read(text: str, switch_frames: list[int]) -> PromptSchedule | ScheduleError:
    try:
        return PromptSchedule.parse(text, switch_frames)
    except ScheduleError as error:
        return error


def test_python_and_the_timeline_read_the_same_1200_schedules_200_with_seeds_100_with_images():
    dice = random.Random(5)
    written = [some_schedule(dice) for _ in range(1200)]
    refused = num_refused(written)
    assert 180 < refused < 720, refused
    made = [schedule for one in written if isinstance(schedule := read(*one), PromptSchedule)]
    assert sum(any(cue.seed is not None for cue in schedule.cues) for schedule in made) >= 200
    assert sum(any(cue.image is not None for cue in schedule.cues) for schedule in made) >= 100


def test_what_is_in_every_prompt_changes_nothing_else_and_old_schedules_are_read_as_ever():
    dice = random.Random(5)
    said = hashlib.sha256()
    for _ in range(1000):
        text, _ = some_list(dice)
        said.update(read_as(text).encode())
        with_always = read("always: film\n  still\n" + text, [])
        if isinstance(with_always, PromptSchedule):
            assert with_always.always == "film still"
            assert replace(with_always, always="") == PromptSchedule.parse(text)
        else:
            assert with_always.message == read(text, []).message
    assert said.hexdigest() == AS_BEFORE_ALWAYS


def read_as(text: str) -> str:
    schedule = read(text, [])
    return str(schedule) if isinstance(schedule, ScheduleError) else schedule.to_text() + schedule.to_json()


def test_python_and_the_timeline_find_the_same_slips():
    dice = random.Random(5)
    typed = [*POLICY_NAMES, "blend 3s", "blend .5", "cut ", "blend 3s ", "blend\u00a03"]
    for _ in range(400):
        letters = list(dice.choice([*POLICY_NAMES, "blend 3s"]))
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(letters))
            other = dice.choices("abcehklnprsuTU: ", k=dice.randint(0, 2))
            letters[place : place + dice.randint(0, 2)] = other
        typed.append("".join(letters) or "x")
    typed += [some_prefix(dice).rstrip(":") for _ in range(400)]
    prompts = [" ".join(f"{word}: it rests".split()) for word in typed]
    ours = [meant_prefix(prompt) for prompt in prompts]
    own = (
        dice.choice(["", "cut: ", "blend 2.5: ", "seed 7: ", "seed 7, keep: ", "image a.png: "])
        for _ in prompts
    )
    texts = [f"0 a\n5s => {prefix}{prompt}" for prefix, prompt in zip(own, prompts, strict=True)]
    read_here = [(text, made) for text in texts if isinstance(made := read(text, []), PromptSchedule)]
    given = json.dumps([prompts, [text for text, _ in read_here]])
    done = run_node("--input-type=module", "-e", SLIPS_OF_PROMPTS, text=given)
    words, slips = json.loads(done.stdout or done.stderr)
    assert words == ours
    said = [slip(1, made.cues[1]) for _, made in read_here]
    for sentence, found in zip(said, slips, strict=True):
        assert bool(sentence) == bool(found), (sentence, found)
        assert not found or sentence.endswith(f"; for the {found['kind']} write {found['meant']}:")
    assert sum(map(bool, said)) > 60
    assert 50 < sum(map(bool, ours[:400])) < 350
    assert 20 < sum("seed" in meant for meant in filter(None, ours)) < 350


MARKS = ["", "", "", "- ", "* ", "• ", "1. ", "12) ", "**", "[", "(", "- **", '"', "Frame ", "t=", "Shot 1 ("]
RANGES = ["", "", "", "-7s", " - 0:07", "–7", " to 7 s", "-7"]
CLOSES = ["", "", "", "**", "]", ")", ":**", '"', "%"]
AFTER = [" ", " ", " => ", "->", " → ", " - ", " — ", " | ", ": ", ",", " -- ", "\u3000-\u3000", ";", "\n  "]
LISTED_TIMES = ["{0}", "{0}s", "{0} s", "0:{0:02}", "{0} sec", "{0}ms", "{0}f", "{0} s"]


def some_list(dice: random.Random) -> tuple[str, list[int]]:
    """Lines that begin alike, as in another notation, whether there is one like it or not."""
    parts = (MARKS, LISTED_TIMES, RANGES, CLOSES, AFTER)
    form = "".join(dice.choice(choices) for choices in parts)
    title = dice.choice(["", "", "", "a film\n", "# a film\n", "0 a\n"])
    lines = [form.format(seconds) + some_prompt(dice) for seconds in sorted(dice.sample(range(9), 3))]
    lines[0] = dice.choice([form.format(0) + "a", lines[0]])
    return title + "\n".join(lines), []


def test_python_and_the_timeline_read_the_same_lists_of_other_notations():
    dice = random.Random(5)
    known = [*LISTS_THAT_ARE_READ, *LISTS_THAT_ARE_NOT, *ONE_PROMPT_ALL_THE_SAME]
    written = [(text, []) for text in known + NULS] + [some_list(dice) for _ in range(1000)]
    assert num_refused(written) > 200


def num_refused(written: list[tuple[str, list[int]]]) -> int:
    """How many of these schedules both refuse, with the same words; they agree on all others too."""
    ours = [read(*schedule) for schedule in written]
    done = run_node(str(WEB / "schedules.mjs"), text=json.dumps(written))
    assert done.returncode == 0, done.stderr
    refused = 0
    for (text, _), mine, theirs in zip(written, ours, json.loads(done.stdout), strict=True):
        if isinstance(mine, ScheduleError):
            refused += 1
            is_json = text.lstrip("\ufeff \n").startswith("{")
            assert "error" in theirs, text
            assert is_json or (theirs["line"], theirs["column"]) == (mine.line, mine.column), (text, theirs)
            said = str(mine).replace(".0 seconds", " seconds").replace("time inf ", "time Infinity ")
            assert is_json or theirs["error"] == said, text
            continue
        assert theirs.get("cues") == fields_of(mine), (text, theirs)
        assert (theirs["extra"], theirs["always"]) == (mine.extra, mine.always)
        assert theirs["blocks"] == [geometry.block_at(cue.seconds, BLOCK) for cue in mine.cues]
        for again in (theirs["written"], theirs["rewritten"]):
            assert PromptSchedule.parse(again) == mine, again
            assert fields_of(PromptSchedule.parse(again)) == fields_of(mine), again
            assert PromptSchedule.parse(again).extra == mine.extra
        if not again.startswith("{"):
            assert again == mine.to_text()
    return refused
