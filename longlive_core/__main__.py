"""`python -m longlive_core` is the `longlive` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
