"""`python -m openautoglm` is the `openautoglm` command."""

from __future__ import annotations

from openautoglm.cli.main import main

if __name__ == "__main__":
    main()
