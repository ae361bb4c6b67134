"""`longlive batch`: a job a line -> a video each, by one model; a manifest says what is finished."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path

from tqdm import tqdm

from ..config import MINI, Preset
from ..output.manifest import Manifest
from ..pipeline import Plan
from ..weights.published import DOWNLOADS
from . import cluster, generate
from .jobs import WRITE, Job, JobParser, Made, attempt, digest_of, model_facts
from .options import add_model, preset_named
from .outputs import inputs_of
from .signals import ending_like_ctrl_c
from .stderr import STDERR, show

HELP = "make many videos: a job a line, the model loaded once; run again, it makes what is missing"
MANIFEST = "manifest.jsonl"
EXIT_SOME_FAILED = 1
AGAIN = "run the same command again for what is missing"


def add_options(parser: argparse.ArgumentParser) -> None:
    jobs = "JSONL, in UTF-8: in a line the options of generate by their names, and the name of the video"
    parser.add_argument("jobs", type=Path, metavar="JOBS", help=jobs)
    out = f"folder for the videos and {MANIFEST}; made if there is none"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
    cluster.add_options(parser)
    add_model(parser)


def run(options: argparse.Namespace) -> int:
    """Check all jobs, then make those that are not finished."""
    cluster.check_options(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with ending_like_ctrl_c(), Manifest(options.out / MANIFEST) as manifest:
        problems, preset = Problems(options.jobs), known_preset(options)
        jobs = read_jobs(options, problems)
        check_files(jobs, problems)
        settle_hashes(jobs, options, problems)
        due = [job for job in jobs if not manifest.is_finished(job.digest, job.outputs)]
        check_due(due, preset, problems)
        problems.report()
        if len(due) < len(jobs):
            show(f"{len(jobs) - len(due)} of {len(jobs)} videos are finished already", STDERR)
        try:
            failed = make_due(due, options, preset, manifest) if due else []
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("; ".join(filter(None, (str(stop), AGAIN)))) from stop
    for line in failed:
        show(line, STDERR)
    show(f"{options.out}: {len(jobs) - len(failed)} of {len(jobs)} videos are finished")
    return EXIT_SOME_FAILED if failed else 0


class Problems:
    """What is wrong with the lines of a file, for one report of all of it."""

    def __init__(self, path: Path):
        self._path, self._found = path, {}

    @contextmanager
    def of(self, line: int) -> Iterator[None]:
        """Keep an error of a line; only its first one, since others may follow from it."""
        try:
            yield
        except (ValueError, OSError) as error:
            self._found.setdefault(line, str(error))

    def report(self) -> None:
        """Print all; ValueError if there are any."""
        for line, text in sorted(self._found.items()):
            show(f"{self._path}, line {line}: {text}", STDERR)
        if self._found:
            raise ValueError(f"{self._path} has {len(self._found)} bad lines; nothing was begun")


def known_preset(options: argparse.Namespace) -> Preset | None:
    """The preset of a model that is known by its name, before it is loaded."""
    is_known = options.model in (MINI.name, *DOWNLOADS) and not options.family
    return preset_named(options.model) if is_known else None


def read_jobs(options: argparse.Namespace, problems: Problems) -> list[Job]:
    """The jobs of the file; empty lines are left out. ValueError if there are none."""
    parser, jobs = JobParser(options, options.jobs.parent), []
    lines = generate.read_text(options.jobs).split("\n")  # splitlines would also split in a prompt
    for number, text in enumerate(lines, 1):
        with problems.of(number):
            jobs += [parser.job(number, text)] if text.strip() else []
    if not "".join(lines).strip():
        raise ValueError(f"{options.jobs} has no jobs; {WRITE}")
    return jobs


def check_files(jobs: Sequence[Job], problems: Problems) -> None:
    """Each file is written by one job, and read by none: else the order of the jobs would count."""
    written = {MANIFEST: "the manifest"}
    for job in jobs:
        with problems.of(job.line):
            for path in job.outputs:
                key = path.name.casefold()  # some disks ignore it
                if key in written:
                    raise ValueError(f"{path.name} is also written by {written[key]}; choose another name")
                written[key] = f"line {job.line}"
    places = {realpath(path): job.line for job in reversed(jobs) for path in job.outputs}
    for job in jobs:
        with problems.of(job.line):
            for name, path in inputs_of(job.options):
                if places.get(realpath(path), job.line) != job.line:
                    line = places[realpath(path)]
                    raise ValueError(f"the {name} {path} is written by line {line}; make that video first")


def settle_hashes(jobs: Sequence[Job], options: argparse.Namespace, problems: Problems) -> None:
    """Give each job its hash; ValueError if the model's files are not there."""
    model = model_facts(options)
    for job in jobs:
        with problems.of(job.line):
            job.digest = digest_of(job.options, model)


def check_due(due: Sequence[Job], preset: Preset | None, problems: Problems) -> None:
    """Check what is to be made, as far as possible without the model; all of it if there is a preset."""
    for job in due:
        with problems.of(job.line):
            beginning, _ = generate.checked(job.options)
            generate.schedule_from(job.options)
            if preset:
                plan = Plan(preset, generate.request_from(job.options, preset, beginning))
                generate.earlier_video(plan, job.options, beginning)
                job.frames, job.seed = plan.frames, plan.request.seed


def make_due(
    due: Sequence[Job], options: argparse.Namespace, preset: Preset | None, manifest: Manifest
) -> list[str]:
    """Make the videos, each noted when it is finished; a sentence for each that failed."""

    def check(loaded: Preset) -> None:
        if loaded != preset:  # it was not known before
            problems = Problems(options.jobs)
            check_due(due, loaded, problems)
            problems.report()

    failed, done, begun = [], 0, time.monotonic()
    make = cluster.make_there if options.ray else make_here
    for number, (job, frames, error) in enumerate(make(due, options, check), 1):
        manifest.add(job.record(frames, error))
        if error:
            failed.append(f"{options.jobs}, line {job.line}: {job.options.out.name} failed: {error}")
        done += job.frames
        left = (time.monotonic() - begun) * (sum(one.frames for one in due) / done - 1)
        name = f"{job.options.out.name}, line {job.line}"
        show(f"{number} of {len(due)}: {name}, about {tqdm.format_interval(left)} left", STDERR)
    return failed


def make_here(
    due: Sequence[Job], options: argparse.Namespace, check: Callable[[Preset], None]
) -> Iterator[Made]:
    """Make the videos one after another; `check` sees the preset of the model first."""
    pipeline = generate.pipeline_from(options)
    check(pipeline.preset)
    for job in due:
        yield job, *attempt(pipeline, job)
