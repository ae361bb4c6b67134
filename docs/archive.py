"""`python docs/archive.py longlive.zip` writes the archive that the Comfy registry takes.

As `comfy node publish` does: every file that git tracks, but those that `.comfyignore` names.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IGNORE = ".comfyignore"


def tracked(*options: str) -> set[str]:
    """Paths that `git ls-files` lists, of files that exist."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *options]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def files() -> list[str]:
    """Paths of the archive, in order. subprocess.CalledProcessError outside a git checkout."""
    return sorted(tracked() - tracked("--cached", "--ignored", f"--exclude-from={ROOT / IGNORE}"))


def write(path: Path) -> None:
    """Write the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files():
            archive.write(ROOT / name, name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the name of the archive: python docs/archive.py longlive.zip")
    write(Path(sys.argv[1]))
