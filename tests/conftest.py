"""What holds for every test: nothing of the person who runs them is read or written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_caches_and_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point caches and settings files at empty directories, for child processes too."""
    empty: Path = tmp_path_factory.mktemp("person")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(empty / "cache"))
        patch.setenv("XDG_CONFIG_HOME", str(empty / "config"))
        for name in os.environ:
            if name.startswith("OPENAUTOGLM_") and name != "OPENAUTOGLM_ISA":
                patch.delenv(name)
        yield
