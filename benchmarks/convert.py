"""`python -m benchmarks.convert FOLDER`: seconds to load LongLive-1.3B, as published and converted.

Random weights at the true size, written in the reference's layout (7 GB) unless they are there. Each load is
a process of its own, after one that fills the file cache.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import true_size
from benchmarks.measure import report
from longlive_core.weights.checkpoints import load_transformer
from longlive_core.weights.convert import CONVERTED, convert
from longlive_core.weights.lora import LoraChoice

LOADS = 2  # the first one fills the cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--load", nargs=2, metavar=("FILE", "PRECISION"), help="only this, in this process")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(seconds_to_load(options.folder, *options.load)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "lora.pt").exists():
        true_size.write(options.folder, "")
    report("convert", {precision: figures(options.folder, precision) for precision in CONVERTED})


def figures(folder: Path, precision: str) -> dict[str, object]:
    """Seconds to convert, and to load from either, by the clock and of CPU; size of the converted file."""
    out = folder / f"longlive-1.3b-{precision}.safetensors"
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    convert(folder / "longlive_base.pt", loras_of(folder), precision, out)
    seconds = {"converting": round(time.perf_counter() - start, 1)}
    for name in ("longlive_base.pt", out.name):
        command = [sys.executable, "-m", "benchmarks.convert", str(folder), "--load", name, precision]
        for _ in range(LOADS):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds[name] = json.loads(done.stdout)
    pairs = zip(seconds["longlive_base.pt"], seconds[out.name], strict=True)
    ratios = [round(published / converted, 2) for published, converted in pairs]
    return {"seconds": seconds, "times_faster": ratios, "gb": round(out.stat().st_size / 1e9, 3)}


def loras_of(folder: Path) -> list[LoraChoice]:
    return [LoraChoice(folder / "lora.pt")]


def seconds_to_load(folder: Path, name: str, precision: str) -> list[float]:
    """One load, with the LoRA unless the file is converted; CPU seconds hold on a busy machine too."""
    start, worked = time.perf_counter(), time.process_time()
    load_transformer(folder / name, loras_of(folder) if name.endswith(".pt") else (), precision)
    return [round(time.perf_counter() - start, 2), round(time.process_time() - worked, 2)]


if __name__ == "__main__":
    main()
