"""The configs of published models, so that `plan --table` needs neither network nor checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_FILE = Path(__file__).with_name("published.json")


def published_configs() -> Mapping[str, Mapping[str, object]]:
    """Return name -> config.json of published models, in the order of the file."""
    configs: dict[str, dict[str, object]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return configs
