"""`python -m mlc`: the same program as the `mlc` command."""

from __future__ import annotations

import sys

from mlc.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
