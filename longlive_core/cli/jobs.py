"""Jobs of `longlive batch`: a line of JSON -> options of `longlive generate`, and a hash of them."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..config import MINI, VERSION
from ..geometry import FRAME_RATE
from ..journal import digest, fact
from ..pipeline import ModelFiles, Pipeline
from ..rollout.rollout import RolloutError
from ..weights.files import first_line
from ..weights.lora import LoraChoice
from . import generate
from .outputs import images_in, is_same

OUTPUTS = ("contact_sheet", "state")  # of a job, next to its video
MODEL = tuple(field.name for field in fields(ModelFiles) if field.name != "embeddings")
WRITE = 'write one object a line, like {"prompt": "...", "seconds": 10}'
WITHOUT_EFFECT = ("folder", "keep_text_encoder", "embeddings")  # on the frames


@dataclass
class Job:
    """A line of the file as options of generate; `digest` is of all that decides the result."""

    line: int
    options: argparse.Namespace
    digest: str = ""
    frames: int = 0  # that are to be made
    seed: int = 0

    @property
    def outputs(self) -> list[Path]:
        """The files to be written, the video first."""
        return [self.options.out, *filter(None, (getattr(self.options, name) for name in OUTPUTS))]

    def record(self, frames: int = 0, error: str | None = None) -> dict[str, Any]:
        """The line of the manifest; `frames` are those in the file."""
        file = self.options.out
        named = {"line": self.line, "name": file.stem, "file": file.name}
        made = {"frames": frames, "seconds": frames / FRAME_RATE, "seed": self.seed}
        return {**named, **made, "hash": self.digest, "error": error}


Made = tuple[Job, int, str | None]  # the frames in its file, or the error


class JobParser(argparse.ArgumentParser):
    """The options of generate for one job; raises ValueError where the command would end."""

    def __init__(self, common: argparse.Namespace, folder: Path):
        """`common` has the model's options and the folder `out`; paths of jobs count from `folder`."""
        super().__init__(add_help=False, allow_abbrev=False)
        generate.add_options(self)
        self._common, self._folder = common, folder
        self._names = vars(self.parse_args(["--prompt="])).keys() - {"out"}

    def error(self, message: str) -> None:
        raise ValueError(message)

    def job(self, line: int, text: str) -> Job:
        """The job of a line; ValueError says what is wrong."""
        given = job_object(text)
        name = given.pop("name", f"{line:04}")
        if unknown := sorted(given.keys() - self._names):
            raise ValueError(
                f"unknown option {', '.join(map(repr, unknown))}; choose name or those of longlive generate: "
                f"{', '.join(sorted(self._names))}"
            )
        options = self.parse_args([part for item in given.items() for part in arguments(*item)])
        for key, value in given.items():
            check_kind(key, value, getattr(options, key))
            setattr(options, key, placed(getattr(options, key), self._folder))
        self._check_model(given, options)
        for key in filter(given.get, OUTPUTS):
            setattr(options, key, self._common.out / file_name(given[key]))
        file = file_name(name)
        is_named = file.lower().endswith((".mp4", ".m4v"))
        options.out = self._common.out / (file if is_named else f"{file}.mp4")
        return Job(line, options)

    def _check_model(self, given: dict[str, Any], options: argparse.Namespace) -> None:
        """Take the model's options of the command; ValueError where a job has others."""
        for key in MODEL:
            own, value = getattr(options, key), getattr(self._common, key)
            are_files = isinstance(own, Path) and value is not None
            if key in given and own != value and not (are_files and is_same(own, value)):
                raise ValueError(f"{key} is of the model, which all jobs share; give it to longlive batch")
            setattr(options, key, value)


def job_object(text: str) -> dict[str, Any]:
    """The options in a line that are not null, with _ in their names."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON ({error}); {WRITE}") from error
    if not isinstance(given, dict):
        raise ValueError(f"this is no object; {WRITE}")
    return {name.replace("-", "_"): value for name, value in given.items() if value is not None}


def arguments(name: str, value: Any) -> Iterator[str]:
    """An option as arguments of the command; a switch that is off has none."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, list) and not all(isinstance(one, str) for one in value):
        value = ",".join(map(str, value))
    for one in value if isinstance(value, list) else [value]:
        if one is not False:
            yield option if one is True else f"{option}={one}"


def check_kind(name: str, value: Any, parsed: Any) -> None:
    """Raise ValueError where a value was only taken because arguments are all texts."""
    is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
    if isinstance(value, bool):
        fits = isinstance(parsed, bool) or (value and parsed == Path())  # a switch, or --with-source alone
    elif isinstance(value, int | float):
        fits = is_number
    elif isinstance(value, list):
        fits = isinstance(parsed, list | tuple)
    else:
        fits = isinstance(value, str) and not is_number
    if not fits:
        raise ValueError(
            f"{name} cannot be {json.dumps(value)}; numbers stand without quotes, texts and files with them, "
            "switches are true or false"
        )


def placed(value: Any, folder: Path) -> Any:
    """A value of an option with its paths counted from a folder."""
    if isinstance(value, list):
        return [placed(one, folder) for one in value]
    if isinstance(value, LoraChoice):
        return replace(value, path=folder / value.path)
    return folder / value if isinstance(value, Path) and value != Path() else value


def file_name(name: Any) -> str:
    """The name, if it is one; ValueError for folders in it, which would leave that of the batch."""
    if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.strip(". "):
        raise ValueError(
            f"{json.dumps(name)} is not the name of a file; leave folders out: all files are in --out"
        )
    return name


def model_facts(options: argparse.Namespace) -> dict[str, Any]:
    """What of the model decides a video; ValueError if its files are not there."""
    files = ModelFiles(**{key: getattr(options, key) for key in MODEL})
    found = files if files.model == MINI.name else files.found()
    return {key: fact(value) for key, value in vars(found).items() if key not in WITHOUT_EFFECT}


def digest_of(options: argparse.Namespace, model: dict[str, Any]) -> str:
    """SHA-256 of all that decides a video: options, contents of files, model, version of LongLive.

    Not of GPU, torch and number of threads, on which only the last bits depend.
    """
    left_out = (*MODEL, *OUTPUTS, *generate.WITHOUT_EFFECT, "out")
    own = {key: fact(value) for key, value in vars(options).items() if key not in left_out}
    outputs = {key: path.name for key in OUTPUTS if (path := getattr(options, key))}
    if images := images_in(options.schedule):
        own["images"] = fact(images)
    return digest({"version": VERSION, **model, **own, **outputs})


def attempt(pipeline: Pipeline, job: Job) -> tuple[int, str | None]:
    """Make the video of a job: the frames in its file, or 0 and the error."""
    try:
        return generate.make(pipeline, job.options, *generate.checked(job.options)), None
    except Exception as error:  # whatever it is, the other jobs are made
        is_expected = isinstance(error, ValueError | OSError | RolloutError)
        return 0, str(error) if is_expected else f"{type(error).__name__}: {first_line(error)}"
