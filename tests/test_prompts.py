"""What a schedule may look like, what it means, and what is said when it means nothing."""

import json
import pickle
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_core import geometry
from longlive_core.config import SWITCH_POLICIES, Policy
from longlive_core.schedule.cue import MAX_BLEND_SECONDS, MAX_CUES, MAX_SECONDS, Cue, ScheduleError
from longlive_core.schedule.prefix import slip
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.schedule.text_format import MAX_CHARACTERS
from tests.notations import LISTS_THAT_ARE_NOT, LISTS_THAT_ARE_READ, ONE_PROMPT_ALL_THE_SAME

BLOCK = 3  # latent frames


def schedule(*cues: tuple) -> PromptSchedule:
    return PromptSchedule(tuple(Cue(*cue) for cue in cues))


def refused(read, *args, **kwargs) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        read(*args, **kwargs)
    return caught.value


def timeline_json(*cues: dict, **fields) -> str:
    return json.dumps({"version": 1, "cues": list(cues), **fields})


# Schedule text: spellings that mean the same


@pytest.mark.parametrize(
    "seconds, spellings",
    [
        (0, ["0", "0s", "0.0", "0.0s", "00", "0:00", "00:00", "0:00.0", "0:00:00"]),
        (5, ["5", "5s", "5.0s", "05s", "0:05", "00:05", "0:05.0", "0:00:05", "0:0:05"]),
        (2.5, ["2.5", "2.5s", "2.50s", "0:02.5", "0:00:02.5"]),
        (0.25, [".25", ".25s", "0.25s", "0:00.25"]),
        (62.5, ["62.5s", "1:02.5", "01:02.50", "0:01:02.5"]),
        (3723, ["3723s", "62:03", "1:02:03", "01:02:03", "1:2:03"]),
        (MAX_SECONDS, ["86400s", "1440:00", "24:00:00"]),
    ],
)
def test_spellings_of_a_time(seconds, spellings):
    for spelling in spellings:
        assert PromptSchedule.parse(f"0 a\n{spelling} b") == schedule((0, "a"), (seconds, "b")), spelling


@pytest.mark.parametrize(
    "policy, spellings",
    [
        (
            None,
            ["5s => b c", "5s b c", "5s=>b c", "5s => auto: b c", "5s Auto:b c", "5s auto: b\n  c"],
        ),
        ("recache", ["5s => recache: b c", "5s recache: b c", "5s=>recache:b c", "5s RECACHE: b\tc"]),
        ("refresh", ["5s => refresh: b c", "5s refresh:b c", "5s => Refresh: b c"]),
        ("keep", ["5s => keep: b c", "5s   =>\tkeep:   b \t c  ", "0:05 KEEP: b c"]),
        ("cut", ["5s => cut: b c", "5s cut: b c", "5s => cut:\n  b\n\n# why\n  c", "5s =>\n cut: b\n\tc"]),
    ],
)
def test_spellings_of_a_cue(policy, spellings):
    for spelling in spellings:
        assert PromptSchedule.parse(f"0 a\n{spelling}") == schedule((0, "a"), (5, "b c", policy)), spelling


@pytest.mark.parametrize(
    "seconds, spellings",
    [
        (2.25, ["blend: b c", "Blend:b c", "blend 2.25s: b c"]),
        (3, ["blend 3s: b c", "blend 3: b c", "BLEND  3.0s:b c", "blend\t03s:\n  b c"]),
        (0.5, ["blend .5s: b c", "blend 0.5: b c"]),
        (60, ["blend 60s: b c"]),
    ],
)
def test_spellings_of_a_blend(seconds, spellings):
    for spelling in spellings:
        read = PromptSchedule.parse(f"0 a\n5s => {spelling}")
        assert read == schedule((0, "a"), (5, "b c", "blend", seconds)), spelling


@pytest.mark.parametrize(
    "policy, seed, spellings",
    [
        (None, 7, ["seed 7: b c", "Seed\t007:b c", "auto, seed 7: b c", "seed 7,\n  auto: b c"]),
        ("cut", 0, ["cut, seed 0: b c", "seed 0,cut: b c", "SEED  00 ,  Cut:b c"]),
        (
            "blend",
            2**64 - 1,
            [f"blend, seed {2**64 - 1}: b c", f"seed {2**64 - 1}, blend: b c"],
        ),
    ],
)
def test_spellings_of_a_seed(policy, seed, spellings):
    for spelling in spellings:
        read = PromptSchedule.parse(f"0 a\n5s => {spelling}")
        assert read.cues == (Cue(0, "a"), Cue(5, "b c", policy, seed=seed)), spelling
        assert PromptSchedule.parse(read.to_text()) == PromptSchedule.parse(read.to_json()) == read


@pytest.mark.parametrize(
    "image, seed, spellings",
    [
        ("sea.png", None, ["image sea.png: b c", "cut, image sea.png:b c", "IMAGE  sea.png , Auto: b c"]),
        (
            "my/The sea 2.WebP",
            7,
            ["image my/The sea 2.WebP, cut, seed 7: b c", "seed 7,image my/The sea 2.WebP:b c"],
        ),
        ("..a/\u6d77.jpeg", 0, ["cut,\n seed 0,\n image ..a/\u6d77.jpeg: b c"]),
    ],
)
def test_spellings_of_an_image(image, seed, spellings):
    for spelling in spellings:
        read = PromptSchedule.parse(f"0 a\n5s => {spelling}")
        assert read.cues == (Cue(0, "a"), Cue(5, "b c", "cut", seed=seed, image=image)), spelling
        assert PromptSchedule.parse(read.to_text()) == PromptSchedule.parse(read.to_json()) == read
        assert read.images == [image] and read.resolve(BLOCK).images == [image]


NO_IMAGES = [
    "image: b",
    "image sea: b",
    "image of a sea: b",
    "image a.b: c",
    "cut image a.png: b",
    "image C:\\a.png: b",
]


@pytest.mark.parametrize("words", [*NO_IMAGES, "auto: image a.png: b", "image a.png : b"])
def test_what_is_no_image_stays_words_of_the_prompt(words):
    cue = PromptSchedule.parse(f"0 a\n5s => {words}").cues[1]
    assert (cue.prompt, cue.policy, cue.image) == (words.removeprefix("auto: "), None, None)
    assert PromptSchedule.parse(PromptSchedule((Cue(0, "a"), cue)).to_text()).cues[1] == cue


SEEDLESS = ["seed: b", "seed x: b", "seed 7 b", "cut, keep: b", "auto: seed 7: b", "cut, seed seven: b"]


@pytest.mark.parametrize("words", [*SEEDLESS, "seed 7s: b", "seed -1: b", "sede 7: b", "cut seed 7: b"])
def test_what_is_no_seed_stays_words_of_the_prompt(words):
    cue = PromptSchedule.parse(f"0 a\n5s => {words}").cues[1]
    assert (cue.prompt, cue.policy, cue.seed) == (words.removeprefix("auto: "), None, None)


def test_a_prompt_that_begins_like_a_seed_is_written_with_auto():
    written = PromptSchedule((Cue(0, "seed 7: a"), Cue(5, "cut, seed 7: b", seed=8)))
    assert written.to_text() == "0s => auto: seed 7: a\n5s => seed 8: cut, seed 7: b\n"
    assert PromptSchedule.parse(written.to_text()) == written and written.resolve(BLOCK).warnings == ()


def test_a_large_seed_is_in_quotes_in_json():
    cues = [Cue(0, "a", seed=2**53 - 1), Cue(5, "b", "cut", seed=2**53)]
    written = PromptSchedule(tuple(cues)).to_json()
    assert [cue["seed"] for cue in json.loads(written)["cues"]] == [2**53 - 1, str(2**53)]
    assert PromptSchedule.parse(written).cues == tuple(cues)


def test_text_says_only_what_the_cue_says():
    written = schedule((0, "keep: a"), (5, "b"), (6, "c", "recache"), (7, "d", "blend"), (8, "e", "blend", 3))
    assert written.to_text() == (
        "0s => auto: keep: a\n5s => b\n6s => recache: c\n7s => blend 2.25s: d\n8s => blend 3s: e\n"
    )
    assert json.loads(written.to_json())["cues"] == [
        {"time": 0, "prompt": "keep: a"},
        {"time": 5, "prompt": "b"},
        {"time": 6, "prompt": "c", "policy": "recache"},
        {"time": 7, "prompt": "d", "policy": "blend", "blend": 2.25},
        {"time": 8, "prompt": "e", "policy": "blend", "blend": 3},
    ]


def test_json_may_spell_that_a_cue_names_no_policy():
    for fields in ({}, {"policy": "auto"}, {"policy": None}, {"blend": None}):
        text = timeline_json({"time": 0, "prompt": "keep: a"} | fields)
        assert PromptSchedule.parse(text) == schedule((0, "keep: a"))


@pytest.mark.parametrize(
    "text",
    [
        "0:00 a\n5s b",
        "0:00 a\r\n5s b\r\n",
        "0:00 a\r5s b\r",
        "\n\n0:00 a\n\n5s b\n\n",
        "# title\n0:00 a\n# 3s => not this\n   # nor this\n5s b",
        "\ufeff0:00 a\n5s b",
        "    0:00 a\n    5s b",
        "\t0:00 a\n5s b",
        '{"cues": [{"time": 0, "prompt": "a"}, {"time": "5s", "prompt": "b"}]}',
    ],
)
def test_layouts_of_a_schedule(text):
    assert PromptSchedule.parse(text) == schedule((0, "a"), (5, "b"))


@pytest.mark.parametrize(
    "words",
    [
        "note: hello",
        "recached: hello",
        "cut the rope",
        "cut : the rope",
        "keep: calm",
        "auto: mobile",
        "blend: a smoothie",
        "blend 3s: a smoothie",
        "blend 3x: a smoothie",
        "blend the two: a smoothie",
        "blend 3 cats",
        "a #1 mug # still the prompt",
        "a => b",
        "=> b",
        "keep: recache: cut: b",
        "5s b",
        "0:05 b",
        '{"prompts": ["b"]}',
        "b, 100% (sharp:1.2) [x|y] {u|v} \\n \"quoted\" 'so'",
        "🟦➡️ 👨‍👩‍👧‍👦 a family",
        "دائرة حمراء تتحرك نحو اليمين",
        "\u200fעיגול אדום\u200f ו-red circle",
        "e\u0301 and \u00e9 stay as they are",
        "赤い円が右へ動く",
    ],
)
def test_a_prompt_is_left_as_it_is(words):
    expected = schedule((0, "a"), (5, words))
    assert PromptSchedule.parse(f"0 => auto: a\n5s => auto: {words}") == expected
    assert PromptSchedule.parse(expected.to_text()) == expected
    assert PromptSchedule.parse(expected.to_json()) == expected
    assert PromptSchedule.single(words).cues[0].prompt == words


@pytest.mark.parametrize(
    "space", [" ", "  ", "\t", "\n", "\r\n", "\n\n  ", "\u00a0", "\u2028", "\x0b", "\u3000"]
)
def test_only_the_whitespace_of_a_prompt_changes(space):
    assert Cue(0, f"{space}a{space}b{space}").prompt == "a b"


@pytest.mark.parametrize(
    "text, prompt",
    [
        ("a red circle", "a red circle"),
        ("a red circle\ndrifts right\n\n  over navy\n", "a red circle drifts right over navy"),
        ("# title\na red circle", "a red circle"),
        ("3 cats on a sofa,\n2 of them asleep", "3 cats on a sofa, 2 of them asleep"),
        ("3D render, 8k, 50mm", "3D render, 8k, 50mm"),
        ("cut: a dog", "cut: a dog"),
        ("note: hello", "note: hello"),
        ("from a => to b", "from a => to b"),
        ("a list\n  5s long", "a list 5s long"),
        ("{red|blue} circle", "{red|blue} circle"),
        ("[draft] a circle", "[draft] a circle"),
        ("infinity pool", "infinity pool"),
        ("- a dash", "- a dash"),
    ],
)
def test_text_without_times_is_one_prompt(text, prompt):
    assert PromptSchedule.parse(text) == PromptSchedule.single(prompt) == schedule((0, prompt))


# Lists of timed prompts as other tools and people write them


@pytest.mark.parametrize("text", LISTS_THAT_ARE_READ)
def test_plain_lists_of_other_notations_are_read(text):
    assert PromptSchedule.parse(text) == schedule((0, "a red circle"), (5, "it turns blue"))


@pytest.mark.parametrize("text", LISTS_THAT_ARE_NOT)
def test_other_lists_are_never_one_prompt(text):
    error = refused(PromptSchedule.parse, text)
    says = "a list of timed prompts in another notation; write 0:00 a red circle"
    assert says in str(error) and error.line and error.column == 1


@pytest.mark.parametrize("text", ONE_PROMPT_ALL_THE_SAME)
def test_numbers_alone_do_not_make_a_list(text):
    assert PromptSchedule.parse(text) == PromptSchedule.single(text)


@pytest.mark.parametrize("words", ["- x", "-> x", "| x", "s x", "- 5s x", "to 5s x", "0-5s: x", "**0:05** x"])
def test_an_arrow_keeps_what_follows_as_it_is(words):
    expected = schedule((0, "a"), (5, words))
    assert PromptSchedule.parse(f"0 a\n5s => {words}") == PromptSchedule.parse(expected.to_text()) == expected


@pytest.mark.parametrize(
    "text, line, column, says",
    [
        ("- 0:00 a\n- 0:75 b", 2, 1, '"0:75" is not a time'),
        ("0 a\n5 sec b", 2, 1, '"5sec" is not a time'),
        ("0 a\n5 ms b", 2, 1, '"5ms" is not a time'),
        ("0 a\n**5s** cut:", 2, 8, "prompt is empty"),
        ("- 5s a", 1, 1, "first cue is at 5s"),
        ("a film\n- 0:00 a\n- 0:05 b", 2, 1, "begin the first line with 0 =>"),
        ("a film\n0:00 → a", 2, 1, "begin the first line with 0 =>"),
    ],
)
def test_what_is_wrong_in_a_list_is_said_where_it_is(text, line, column, says):
    error = refused(PromptSchedule.parse, text)
    assert says in str(error) and (error.line, error.column) == (line, column)


def test_a_colour_continues_a_prompt_and_a_comment_does_not():
    text = "0 a circle over\n  #001f3f navy\n  # a comment\n  #decade\n#00ff00 a comment\n5s b"
    assert PromptSchedule.parse(text) == schedule((0, "a circle over #001f3f navy"), (5, "b"))


def test_single_takes_its_text_as_it_is():
    assert PromptSchedule.single("5s => # not\nread").cues == (Cue(0, "5s => # not read"),)


# Errors: what is said, and where


@pytest.mark.parametrize(
    "text, line, column, says",
    [
        ("", 1, 1, "empty"),
        (" \n\t\n", 1, 1, "empty"),
        ("# only a comment", 1, 1, "empty"),
        ("5s => a", 1, 1, "first cue is at 5s"),
        ("\n\n  5s => a", 3, 3, "first cue is at 5s"),
        ("1980s diner", 1, 1, "meant as words"),
        ("0:05 a\n0:10 b", 1, 1, "first cue is at 5s"),
        ("0 a\n5s b\n\n3s c", 4, 1, "cue 3 at 3s comes after cue 2 at 5s"),
        ("-5s => a", 1, 1, '"-5s" is negative'),
        ("0 a\n  b\n-0:05 c", 3, 1, '"-0:05" is negative'),
        ("0 a\nlater => b", 2, 1, '"later" is not a time'),
        ("0 a\nand so on", 2, 1, '"and" is not a time'),
        ("  0 a\n  later b", 2, 3, '"later" is not a time'),
        ("0 a\n=> b", 2, 1, "a time is missing"),
        ("=> a", 1, 1, "a time is missing"),
        ("0 a\n0:5 b", 2, 1, '"0:5" is not a time'),
        ("0:0 a", 1, 1, '"0:0" is not a time'),
        ("0sec a", 1, 1, '"0sec" is not a time'),
        ("0s: a", 1, 1, '"0s:" is not a time'),
        ("16:9 picture", 1, 1, '"16:9" is not a time'),
        ("0 a\n0:75 b", 2, 1, '"0:75" is not a time'),
        ("0 a\n1:75:00 b", 2, 1, '"1:75:00" is not a time'),
        ("0 a\n1:2:3:04 b", 2, 1, "is not a time"),
        ("0 a\n1e3 b", 2, 1, '"1e3" is not a time'),
        ("0 a\n٥s b", 2, 1, "is not a time"),
        ("0 a\nnan => b", 2, 1, '"nan" is not a time'),
        ("inf => b", 1, 1, '"inf" is not a time'),
        ("0 a\n86401s b", 2, 1, "86400 seconds (24 h)"),
        ("0 a\n24:00:01 b", 2, 1, "86400 seconds (24 h)"),
        ("0 a\n" + "9" * 5000 + " b", 2, 1, "86400 seconds (24 h)"),
        ("0 a\n5s", 2, 3, "prompt is empty"),
        ("0 a\n5s =>", 2, 6, "prompt is empty"),
        ("0 a\n5s => cut:", 2, 6, "prompt is empty"),
        ("0 =>\n5s b", 1, 5, "prompt is empty"),
        ("0 a\n5s => blend 3x: b", 2, 6, '"3x" is not how long a blend takes; write it as blend 3s:'),
        ("0 a\n5s => blend -3s: b", 2, 6, '"-3s" is not how long a blend takes'),
        ("0 a\n5s => blend 0: b", 2, 6, "more than 0 and at most 60 seconds"),
        ("0 a\n5s => blend 61s: b", 2, 6, "more than 0 and at most 60 seconds"),
        ("0 a\n5s => blend: ", 2, 6, "prompt is empty"),
        ("0 a\n5s \ud800", 2, 4, "surrogate"),
        (
            "0 a\n5s \0",
            None,
            None,
            "the schedule holds NUL characters, as UTF-16 text does; save it as UTF-8",
        ),
        ("0 a red circle\n".encode("utf-16-le").decode(), None, None, "save it as UTF-8"),
        ("0 a\n5s => cut, seed 18446744073709551616: b", 2, 6, "from 0 to 18446744073709551615"),
        ("0 a\n5s => cut, seed 7, keep: b", 2, 6, "at most one of each"),
        ("0 a\n5s => image a.png, image b.png: c", 2, 6, "at most one of each"),
        ("0 a\n5s => keep, image a.png: c", 2, 6, "came with keep, and a new scene begins with an image"),
        ("0 a\n5s => blend 2s, image a.png: c", 2, 6, "came with blend"),
        *(
            (f"0 a\n5s => image {name}: c", 2, 6, "name a file of ComfyUI's input folder")
            for name in ("../a.png", "/a.png", "a/../b.png", "./a.png", "a//b.png")
        ),
        ("0 a\n5s => seed 7, seed 8: b", 2, 6, "write auto: before it"),
        ("0 a\n5s => blend 3x, seed 7: b", 2, 6, "not how long a blend takes"),
        ("a red circle\n5s => b", 2, 1, "begin the first line with 0 =>"),
        ("0 a\n" * (MAX_CUES + 1), None, None, "at most 100000"),
        ("a" * (MAX_CHARACTERS + 1), None, None, "at most 8000000"),
    ],
)
def test_text_that_is_refused(text, line, column, says):
    error = refused(PromptSchedule.parse, text)
    assert says in str(error)
    assert (error.line, error.column) == (line, column)
    assert str(error).startswith(f"line {line}, column {column}: ") == (line is not None)


@pytest.mark.parametrize(
    "text, line, column, says",
    [
        ("", 1, 1, "not valid JSON"),
        ('{"cues": [\n  {"time": 0 "prompt": "a"}]}', 2, 14, "Expecting ','"),
        ('{"cues": [', 1, 11, "not valid JSON"),
        ("[" * 100_000, None, None, "nested"),
        ('{"cues": [{"time": ' + "1" * 5000 + ', "prompt": "a"}]}', None, None, "cannot be read"),
        ("null", None, None, "list of cues"),
        ("[{}]", None, None, "list of cues"),
        ("{}", None, None, "list of cues"),
        ('{"cues": {}}', None, None, "list of cues"),
        (timeline_json(), None, None, "no cues"),
        (timeline_json(version=2), None, None, "version 2"),
        ('{"cues": [1]}', None, None, "cue 1 is 1"),
        (timeline_json({"time": 0}), None, None, 'write {"time"'),
        (timeline_json({"time": 0, "prompt": 7}), None, None, "cue 1: the prompt 7 is not text"),
        (timeline_json({"time": 0, "prompt": " "}), None, None, "cue 1: the prompt is empty"),
        (timeline_json({"time": None, "prompt": "a"}), None, None, "None is not a number"),
        (timeline_json({"time": True, "prompt": "a"}), None, None, "True is not a number"),
        (timeline_json({"time": "soon", "prompt": "a"}), None, None, '"soon" is not a time'),
        (timeline_json({"time": " ", "prompt": "a"}), None, None, "a time is missing"),
        (timeline_json({"time": -1, "prompt": "a"}), None, None, "the time -1 is not possible"),
        (timeline_json({"time": float("nan"), "prompt": "a"}), None, None, "nan is not possible"),
        (timeline_json({"time": float("inf"), "prompt": "a"}), None, None, "inf is not possible"),
        (timeline_json({"time": 10**400, "prompt": "a"}), None, None, "is not possible"),
        (timeline_json({"time": 1, "prompt": "a"}), None, None, "first cue is at 1s"),
        (
            timeline_json({"time": 0, "prompt": "a", "policy": "fade"}),
            None,
            None,
            "recache, refresh, keep, cut",
        ),
        (timeline_json({"time": 0, "prompt": "a", "policy": []}), None, None, "[] is not a policy"),
        (
            timeline_json({"time": 0, "prompt": "a", "blend": 3}),
            None,
            None,
            "cue 1: a blend of 3 seconds came with auto; only blend takes seconds",
        ),
        *(
            (timeline_json({"time": 0, "prompt": "a", "policy": "blend", "blend": blend}), None, None, says)
            for blend, says in [
                (0, "a blend of 0 seconds is not possible"),
                (-1, "is not possible"),
                (60.5, "at most 60 seconds"),
                (float("nan"), "nan seconds is not possible"),
                (10**400, "is not possible"),
                (True, "True is not a number"),
                ("3s", '"3s" is not a number of seconds'),
            ]
        ),
        *(
            (timeline_json({"time": 0, "prompt": "a", "image": image}), None, None, "cue 1: the image")
            for image in (
                "",
                "sea",
                "a,b.png",
                "a\\b.png",
                "a\tb.png",
                " a.png",
                "a.png ",
                7,
                ["a.png"],
                "\ud800.png",
            )
        ),
        *(
            (timeline_json({"time": 0, "prompt": "a", "seed": seed}), None, None, says)
            for seed, says in [
                (-1, "cue 1: the seed -1 is not possible; use a whole number from 0 to 18446744073709551615"),
                (2**53, "write it in quotes, as every seed above 9007199254740991"),
                (float("inf"), "write it in quotes"),
                *((bad, "is not possible") for bad in (0.5, float("nan"), True, [], "", "7 ", str(2**64))),
            ]
        ),
        (timeline_json({"time": 0, "prompt": "\ud800"}), None, None, "surrogate"),
        (timeline_json({"time": 0, "prompt": "a\0"}), None, None, "cue 1: the prompt holds a NUL character"),
        (timeline_json(*[0] * (MAX_CUES + 1)), None, None, "at most 100000"),
    ],
)
def test_json_that_is_refused(text, line, column, says):
    error = refused(PromptSchedule.from_json, text)
    assert says in str(error)
    assert (error.line, error.column) == (line, column)


@pytest.mark.parametrize("text", ['{"cues": [}', '[{"time": 0}]', "{}", '\n {\n "a', '{"prompts": ["a"'])
def test_text_that_begins_like_json_is_read_as_json(text):
    assert "JSON" in str(error := refused(PromptSchedule.parse, text)) or "timeline" in str(error)


@pytest.mark.parametrize("thing", [None, b"0 a", 5, ["0 a"]])
def test_what_is_not_text_is_refused(thing):
    assert "a schedule is text" in str(refused(PromptSchedule.parse, thing))


@pytest.mark.parametrize(
    "fields, says",
    [
        ((-1, "a"), "not possible"),
        ((float("nan"), "a"), "not possible"),
        (("5s", "a"), "not a number"),
        ((0, ""), "empty"),
        ((0, None), "not text"),
        ((0, "a", "fade"), "use recache, refresh, keep, cut, blend, auto"),
        ((0, "a", None, 3), "came with auto"),
        ((0, "a", "cut", 3), "came with cut"),
        ((0, "a", "blend", 0), "more than 0 and at most 60"),
    ],
)
def test_a_cue_cannot_be_made_wrong(fields, says):
    assert says in str(refused(Cue, *fields))


def test_a_schedule_cannot_be_made_wrong():
    assert "no cues" in str(refused(schedule))
    assert refused(schedule, (1, "a")).cue == 1
    assert refused(schedule, (0, "a"), (5, "b"), (3, "c")).cue == 3


def test_an_error_is_a_value_error_and_survives_a_process_boundary():
    error = refused(PromptSchedule.parse, "0 a\nb c")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ValueError)
    assert (str(copy), copy.line, copy.column) == (str(error), 2, 1)


# Timeline JSON


def test_json_cues_may_come_in_any_order_and_keep_it_where_times_are_equal():
    later, first, second = ({"time": t, "prompt": p} for t, p in [(9, "d"), ("0:05", "b"), (5, "c")])
    text = timeline_json(later, first, second, {"time": 0, "prompt": "a", "policy": "cut"})
    assert PromptSchedule.parse(text) == schedule((0, "a", "cut"), (5, "b"), (5, "c"), (9, "d"))


def test_fields_that_are_not_ours_survive_json():
    cue = {"time": 0, "prompt": "a", "policy": "keep", "colour": "#f00", "lane": {"row": 2}}
    read = PromptSchedule.parse(timeline_json(cue, zoom=1.5, authors=["é"]))
    assert read.extra == {"zoom": 1.5, "authors": ["é"]}
    assert json.loads(read.to_json()) == {"version": 1, "cues": [cue], "zoom": 1.5, "authors": ["é"]}
    assert read == schedule((0, "a", "keep")) and hash(read) == hash(schedule((0, "a", "keep")))


# The reference's JSONL


def switch_blocks(*switch_frames: int) -> list[int]:
    """The block of each prompt after the first; the prompts themselves are checked on the way."""
    prompts = [f"p{i}" for i in range(len(switch_frames) + 1)]
    read = PromptSchedule.from_jsonl(json.dumps({"prompts": prompts}), switch_frames)
    assert [cue.prompt for cue in read.cues] == prompts
    assert PromptSchedule.parse(read.to_text()) == read
    segments = read.resolve(BLOCK).segments
    return [segment.block for segment in segments if segment.cue.prompt != "p0"]


@pytest.mark.parametrize(
    "switch_frames, latent_frames",
    [
        ([40, 80, 120, 160, 200], [42, 81, 120, 162, 201]),
        ([13, 14], [15, 18]),  # one switch a block: the second waits
        ([13, 13, 13, 22], [15, 18, 21, 24]),
        ([13, 14, 16], [15, 18, 21]),  # and makes the third wait
        ([12], [12]),
        ([1], [3]),
        ([0], [0]),
        ([0, 0], [0, 3]),
    ],
)
def test_switches_take_effect_where_the_reference_switches(switch_frames, latent_frames):
    assert switch_blocks(*switch_frames) == [frame // BLOCK for frame in latent_frames]


@given(st.lists(st.integers(0, 60), max_size=8).map(sorted))
def test_switches_follow_the_reference_loop(switch_frames):
    expected, waiting = [], list(switch_frames)
    for block in range(60):
        if waiting and block * BLOCK >= waiting[0]:
            waiting.pop(0)
            expected.append(block)
    assert switch_blocks(*switch_frames) == expected


def test_other_sizes_of_block():
    text = '{"prompts": ["a", "b", "c"]}'
    read = PromptSchedule.from_jsonl(text, [13, 14], block_latent_frames=4)
    assert [segment.block for segment in read.resolve(4).segments] == [0, 4, 5]


def test_a_line_of_several():
    text = '\n{"prompts": ["a"], "id": 7}\n\n{"prompts": ["b", "c"]}\n'
    assert PromptSchedule.parse(text) == PromptSchedule.from_jsonl(text) == PromptSchedule.single("a")
    assert PromptSchedule.from_jsonl(text, [3], line=2).cues[1] == Cue(9 / 16, "c")
    assert PromptSchedule.parse('{"prompts": ["b", "c"]}', [3]).cues[1] == Cue(9 / 16, "c")


@pytest.mark.parametrize(
    "text, switch_frames, says",
    [
        ("", [], "empty"),
        ('{"prompts": []}', [], "no cues"),
        ('{"prompts": "a"}', [], 'write {"prompts"'),
        ("[]", [], 'write {"prompts"'),
        ('\n{"prompts": ["a",]}', [], "line 2, column 18"),
        ('{"prompts": ["a", 5]}', [3], "cue 2: the prompt 5 is not text"),
        ('{"prompts": ["a", ""]}', [3], "cue 2: the prompt is empty"),
        ('{"prompts": ["a", "b", "c"]}', [3], "3 prompts came with 1 switch frames; give exactly 2"),
        ('{"prompts": ["a"]}', [3], "give exactly 0"),
        ('{"prompts": ["a", "b", "c"]}', [30, 12], "switch frame 12 comes after 30"),
        ('{"prompts": ["a", "b"]}', [-3], "-3 is not a switch frame"),
        ('{"prompts": ["a", "b"]}', [3.0], "3.0 is not a switch frame"),
        ('{"prompts": ["a", "b"]}', [10**400], "is not a switch frame"),
    ],
)
def test_jsonl_that_is_refused(text, switch_frames, says):
    assert says in str(refused(PromptSchedule.from_jsonl, text, switch_frames))


@pytest.mark.parametrize("line", [0, 3])
def test_a_line_that_is_not_there(line):
    text = '{"prompts": ["a"]}\n{"prompts": ["b"]}'
    assert "choose 1 to 2" in str(refused(PromptSchedule.from_jsonl, text, line=line))


STYLE = "Realistic film still, a young woman in a red coat"


@pytest.mark.parametrize(
    "text",
    [
        f"always: {STYLE}\n0 she walks\n5s => cut: she smiles\n",
        f"\ufeff# mine\n\nAlways:{STYLE}\n\n# cues\n0 she walks\n5s => cut: she smiles\n",
        "  always: Realistic film still,\n   a young woman\n  # who?\n\tin a   red coat\n"
        "  0 she walks\n  5s => cut: she\n    smiles",
        timeline_json(
            {"time": 5, "prompt": "she smiles", "policy": "cut"},
            {"time": 0, "prompt": "she walks"},
            always=f" {STYLE} ",
        ),
    ],
)
def test_a_first_line_is_put_before_every_prompt(text):
    read = PromptSchedule.parse(text)
    assert read == replace(schedule((0, "she walks"), (5, "she smiles", "cut")), always=STYLE)
    assert read.prompts == read.resolve(BLOCK).prompts == [f"{STYLE} she walks", f"{STYLE} she smiles"]
    assert read.to_text() == f"always: {STYLE}\n0s => she walks\n5s => cut: she smiles\n"
    assert PromptSchedule.parse(read.to_json()) == read and json.loads(read.to_json())["always"] == STYLE
    assert read.extra == {}


def test_one_prompt_may_have_it_and_nothing_is_in_every_prompt_where_it_is_empty():
    assert PromptSchedule.parse("always: film\nshe walks\n  and runs").prompts == ["film she walks and runs"]
    for text in ("always:\n0 a", "always: \n \na", '{"always": " ", "cues": [{"time": 0, "prompt": "a"}]}'):
        assert PromptSchedule.parse(text) == PromptSchedule.single("a")
        assert "always" not in PromptSchedule.parse(text).to_text() + PromptSchedule.parse(text).to_json()
    for text in ("0 => always: a", "0 => a\n  always: b"):
        assert PromptSchedule.parse(text).always == ""


@pytest.mark.parametrize(
    "text, says",
    [
        ("# x\nalways: film\n  0 a", "line 2, column 1: no prompt follows what is in every prompt"),
        ("always: a\0\n0 a", "NUL"),
        ("always: \ud800\n0 a", "line 1, column 1: the prompt holds a lone UTF-16 surrogate"),
        ("0 a\nalways: film", 'line 2, column 1: "always:" is not a time'),
        ('{"always": 5, "cues": [{"time": 0, "prompt": "a"}]}', "the prompt 5 is not text"),
    ],
)
def test_what_cannot_be_in_every_prompt_is_refused(text, says):
    assert says in str(refused(PromptSchedule.parse, text))


def test_a_prompt_that_goes_on_is_known_with_what_is_in_every_prompt():
    written = replace(schedule((0, "a"), (5, "b")), always="film")
    assert written.with_on_switch(Policy.KEEP, "film a").cues[0].policy is None
    assert written.with_on_switch(Policy.KEEP, "a").cues[0].policy is Policy.KEEP


def test_switch_frames_go_with_jsonl_only():
    assert "JSONL" in str(refused(PromptSchedule.parse, "0 a\n5s b", [40]))


# Snapping to blocks


def test_cues_snap_to_the_next_block_and_the_report_says_so():
    timeline = PromptSchedule.parse("0 a red circle\n5s => it turns into a blue square").resolve(BLOCK, 10)
    assert [(segment.block, segment.seconds) for segment in timeline.segments] == [(0, 0), (7, 81 / 16)]
    assert timeline.report() == (
        '0s "a red circle" takes effect at 0s (block 0)',
        '5s "it turns into a blue square" takes effect at 5.1s (block 7)',
    )
    assert timeline.warnings == ()


def test_the_report_gives_the_time_in_a_frame_wise_model_where_it_is_another():
    cues = schedule((0, "a"), (5, "b"), (5.2, "c"))
    assert cues.resolve(BLOCK).report(cues.resolve(1)) == (
        '0s "a" takes effect at 0s (block 0)',
        '5s "b" takes effect at 5.1s (block 7)',
        '5.2s "c" takes effect at 5.8s (block 8), in a frame-wise model at 5.3s (block 22)',
    )


def test_the_report_may_leave_out_cues_that_are_nearly_on_time():
    cues = schedule((0, "a"), (5, "b"), (5.2, "c"))
    late = '5.2s "c" takes effect at 5.8s (block 8), in a frame-wise model at 5.3s (block 22)'
    assert cues.resolve(BLOCK).report(cues.resolve(1), moved=0.4) == (late,)


def test_a_cue_on_a_boundary_stays_there():
    on_boundary, after = geometry.block_seconds(4, BLOCK), geometry.block_seconds(4, BLOCK) + 1 / 16
    blocks = [s.block for s in schedule((0, "a"), (on_boundary, "b"), (after, "c")).resolve(BLOCK).segments]
    assert blocks == [0, 4, 5]


def test_every_block_finds_its_segment():
    timeline = schedule((0, "a"), (5, "b", "cut"), (9, "c")).resolve(BLOCK)
    first, second, third = timeline.segments
    found = [timeline.segment_at(block) for block in range(20)]
    assert found == [first] * 7 + [second] * (third.block - 7) + [third] * (20 - third.block)
    assert [block for block in range(20) if timeline.cue_at(block)] == [0, 7, third.block]
    assert timeline.cue_at(7) is second.cue and second.cue.policy is Policy.CUT


def test_of_two_cues_on_one_block_the_later_wins():
    timeline = schedule((0, "a"), (5, "b"), (5, "c"), (5.05, "d"), (9, "e")).resolve(BLOCK)
    assert [segment.cue.prompt for segment in timeline.segments] == ["a", "d", "e"]
    advice = "takes effect at the same block (7); put them further apart"
    assert timeline.warnings == (
        f"cue 2 at 5s is never seen: cue 3 at 5s {advice}",
        f"cue 3 at 5s is never seen: cue 4 at 5s {advice}",
    )


def test_a_second_cue_at_0_takes_the_place_of_the_first():
    timeline = schedule((0, "a"), (0, "b")).resolve(BLOCK)
    assert [(segment.block, segment.cue.prompt) for segment in timeline.segments] == [(0, "b")]


@pytest.mark.parametrize(
    "total_seconds, num_played, says",
    [
        (62.5, 3, ()),
        (12, 2, ("1 cue after 0:12 is not played",)),
        (10.5, 2, ("1 cue after 0:10.5 is not played",)),
        (5, 1, ("2 cues after 0:05 are not played",)),
        (0, 1, ("2 cues after 0:00 are not played",)),
    ],
)
def test_cues_beyond_the_end_warn(total_seconds, num_played, says):
    timeline = schedule((0, "a"), (5, "b"), (12, "c")).resolve(BLOCK, total_seconds)
    assert (len(timeline.segments), timeline.warnings) == (num_played, says)


def test_a_cue_after_the_start_of_the_last_block_is_never_seen():
    timeline = schedule((0, "a"), (5, "b"), (9.9, "c")).resolve(BLOCK, 10)
    assert [segment.cue.prompt for segment in timeline.segments] == ["a", "b"]
    assert timeline.warnings == (
        "cue 3 at 9.9s is never seen: the video's last block begins at 9.6s; "
        "move it there or earlier, or raise seconds",
    )


SLIPS = {
    "recahce": "recache",
    "Recach": "recache",
    "rekash": None,
    "fresh": "refresh",
    "kepe": "keep",
    "ekep": "keep",
    "note": None,
    "cutt": "cut",
    "cat out": None,
    "cut ": "cut",
    "blnd 3s": "blend",
    "Belnd 2.5": "blend",
    "blend the two": None,
    "recache": None,  # it was asked for: auto: recache: x
}


@pytest.mark.parametrize("typed", SLIPS)
def test_what_is_within_two_letters_of_a_policy_warns(typed):
    timeline = schedule((0, "a"), (19.3125, f"{typed}: it rests"), (30, f"{typed}: b", "keep")).resolve(BLOCK)
    meant = SLIPS[typed] and (
        f'cue 2 at 19.3s begins with "{typed}:", read as words of the prompt; '
        f"for the policy write {SLIPS[typed]}:"
    )
    assert timeline.warnings == ((meant,) if meant else ())


@pytest.mark.parametrize(
    "typed, meant",
    [
        *[("sede 7", "seed 7"), ("seed 7s", "seed 7"), ("cut, seed=7", "cut, seed 7"), ("seed 7 ", "seed 7")],
        *[("cut seed 7", "cut, seed 7"), ("seed 7 cut", "seed 7, cut"), ("seed: 7", None), ("week 3", None)],
    ],
)
def test_what_is_nearly_a_seed_warns(typed, meant):
    timeline = PromptSchedule((Cue(0, "a"), Cue(5, f"{typed}: it rests"))).resolve(BLOCK)
    begins = f'cue 2 at 5s begins with "{typed}:", read as words of the prompt; for the seed write {meant}:'
    assert timeline.warnings == ((begins,) if meant else ())


@pytest.mark.parametrize(
    "cue, meant",
    [
        ("cut: seed 7: x", "seed write cut, seed 7:"),
        ("blend 3s: seed 7: x", "seed write blend 3s, seed 7:"),
        ("seed 7: Keep: x", "policy write seed 7, Keep:"),
        ("seed 7: cut, image a.png: x", "image write seed 7, cut, image a.png:"),
        ("cut: image a.png: x", "image write cut, image a.png:"),
        ("cut: image the a.png, seed 7: x", "image write cut, image the a.png, seed 7:"),
        *(
            (words, None)
            for words in ("cut: keep: x", "auto: seed 7: x", "cut, seed 7: seed 8: x", "cut: note: x")
        ),
    ],
)
def test_what_follows_a_prefix_and_is_one_too_warns(cue, meant):
    (warning,) = PromptSchedule.parse(f"0 a\n5s => {cue}").resolve(BLOCK).warnings or ("",)
    assert warning.endswith(f"read as words of the prompt; for the {meant}" if meant else "") == bool(
        meant or not warning
    )


@pytest.mark.parametrize(
    "typed, meant",
    [
        *[
            ("imgae sea.png", "image sea.png"),
            ("image=sea.png", "image sea.png"),
            ("cut image sea.png", "cut, image sea.png"),
        ],
        *[("cut, seed 7 image The sea.PNG", "cut, seed 7, image The sea.PNG"), ("picture sea.png", None)],
        *[("image of the sea", None), ("image: sea.png", None), ("an image sea.png", None)],
    ],
)
def test_what_is_nearly_an_image_warns(typed, meant):
    timeline = PromptSchedule((Cue(0, "a"), Cue(5, f"{typed}: it rests"))).resolve(BLOCK)
    begins = f'cue 2 at 5s begins with "{typed}:", read as words of the prompt; for the image write {meant}:'
    assert timeline.warnings == ((begins,) if meant else ())


def test_ten_thousand_cues():
    text = "".join(f"{second}s => cut: scene {second} 🎬\n" for second in range(10_000))
    read = PromptSchedule.parse(text)
    assert read.to_text() == text and PromptSchedule.parse(read.to_json()) == read
    timeline = read.resolve(BLOCK, 10_000)
    opened = [timeline.cue_at(block) for block in range(geometry.num_blocks(160_000, BLOCK))]
    assert (
        tuple(filter(None, opened)) == tuple(s.cue for s in timeline.segments)
        and len(timeline.segments) == 10_000
    )


def test_the_policy_of_a_switch_is_for_cues_that_name_none():
    written = schedule((0, "a"), (5, "b", "recache"), (9, "c", "blend"), (12, "d"))
    assert [cue.policy for cue in written.with_on_switch(Policy.KEEP).cues] == [
        *(Policy.KEEP, Policy.RECACHE, Policy.BLEND, Policy.KEEP)
    ]


# Whatever comes

prompts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: text.split()
)
prefixes = st.sampled_from(
    ["", "cut:", "auto: ", "blend 3s: ", "Blend 1x:", "seed 7:", "cut, seed 7: ", "image a.png: "]
)
prompts |= st.tuples(prefixes, prompts).map("".join)
policies = st.tuples(st.sampled_from([None, *SWITCH_POLICIES])) | st.tuples(
    st.just(Policy.BLEND), st.none() | st.floats(0, MAX_BLEND_SECONDS, exclude_min=True)
)
cues = st.builds(
    lambda seconds, prompt, policy, seed: Cue(seconds, prompt, *policy, seed=seed),
    *(st.floats(0, MAX_SECONDS), prompts, policies, st.none() | st.integers(0, 2**64 - 1)),
)
cues |= st.builds(
    lambda seconds, prompt, seed, name: Cue(seconds, prompt, seed=seed, image=f"{name}.png"),
    *(st.floats(0, MAX_SECONDS), prompts, st.none() | st.integers(0, 9)),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=",:\\/"), min_size=1).filter(
        lambda name: name[0] != " "
    ),
)
schedules = st.builds(
    lambda some, always: PromptSchedule(
        (replace(some[0], seconds=0), *sorted(some[1:], key=lambda cue: cue.seconds)), always=always
    ),
    *(st.lists(cues, min_size=1, max_size=6), st.just("") | prompts),
)
pieces = [
    "cut:",
    "keep:",
    "blend 3s:",
    "auto:",
    "seed 7:",
    ", seed 7",
    "image a.png",
    '"cues":',
    '"time":',
    '"prompts":',
    *'0125s:.=>-#ax \n\r\t{}[]",',
]
tricky = st.lists(st.sampled_from(pieces)).map("".join)


@given(schedules)
def test_text_and_json_bring_back_the_same_schedule(written):
    assert PromptSchedule.parse(written.to_text()) == written
    assert PromptSchedule.parse(written.to_json()) == PromptSchedule.from_json(written.to_json()) == written


@given(schedules, st.integers(1, 8))
def test_every_cue_waits_for_the_next_block_and_no_longer(written, block_latent_frames):
    timeline = written.resolve(block_latent_frames)
    assert timeline.segments[0].block == 0
    slips = sum(map(bool, map(slip, count(), written.cues)))
    assert len(timeline.segments) + len(timeline.warnings) - slips == len(written.cues)
    for segment in timeline.segments:
        late = segment.seconds - segment.cue.seconds
        assert -1e-6 < late < block_latent_frames * geometry.TIME_STRIDE / geometry.FRAME_RATE
        assert timeline.segment_at(segment.block) is segment
        assert timeline.cue_at(segment.block) is segment.cue


@settings(max_examples=300)
@given(st.one_of(st.text(), tricky, tricky.map("0 a\n".__add__), tricky.map('{"cues": [{'.__add__)))
def test_any_text_is_read_or_refused_with_a_sentence(text):
    for read in (PromptSchedule.parse, PromptSchedule.from_json, PromptSchedule.from_jsonl):
        try:
            assert PromptSchedule.parse(read(text).to_text()) == read(text)
        except ScheduleError as error:
            assert len(str(error)) > 20


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["time", "prompt", "policy", "seed", "image", "x"]), inner)
    ),
)


@given(anything)
def test_any_json_is_read_or_refused_with_a_sentence(value):
    for document in (value, {"cues": value}, {"cues": [value]}, {"version": value, "cues": []}):
        try:
            PromptSchedule.from_json(json.dumps(document))
        except ScheduleError as error:
            assert len(str(error)) > 20
