"""Model references: a directory, the embedded "demo", or org/name[:quant][@revision] on a Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from openautoglm.checkpoint.files import quoted
from openautoglm.errors import HubError
from openautoglm.spec.formats import WEIGHT_NUMBERS, NumberFormat

DEMO_NAME = "demo"
DEFAULT_REVISION = "main"
AUTO_QUANT = "auto"

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}"
_QUANT = "|".join((AUTO_QUANT, *WEIGHT_NUMBERS))
# The one pattern of hub references; what it admits is checked again for parts that mean more than a name.
_HUB_REFERENCE = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?::(?P<quant>{_QUANT}))?(?:@(?P<revision>{_REVISION}))?", re.ASCII
)
_NOT_IN_A_REFERENCE = ("..", "//", "/.", "./")
_NOT_AT_THE_END = (".git", ".lock", ".", "/")
_WITH_QUANT = re.compile(rf"(?P<path>.+):(?P<quant>{_QUANT})", re.ASCII | re.DOTALL)
_PATH_BEGINNINGS = ("/", "./", "../", "~")
_MAX_REFERENCE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """What a user names: exactly one of `repository` (on the hub), `path` (local) or `demo`; the rest is optional.

    `quant` None leaves the choice to the planner; `revision` None is the hub's main branch.
    """

    repository: str | None = None
    path: Path | None = None
    demo: bool = False
    quant: NumberFormat | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """Return the reference as it would be typed."""
        name = DEMO_NAME if self.demo else self.repository or str(self.path)
        if self.path is not None and not name.startswith(_PATH_BEGINNINGS):
            name = f"./{name}"
        quant = f":{self.quant}" if self.quant else ""
        return f"{name}{quant}{f'@{self.revision}' if self.revision else ''}"


def parse_reference(text: str) -> ModelReference:
    """Parse a reference: "demo", else what exists as a path (also before ":quant"), else a hub's name.

    Text that begins like a path (/, ./, ../, ~) never becomes a hub's name. Raises `HubError` for anything else.
    """
    if not 0 < len(text) <= _MAX_REFERENCE_CHARACTERS or "\0" in text:
        raise _bad(text)
    path, quant = Path(text), None
    split = _WITH_QUANT.fullmatch(text)
    if split is not None and not _exists(path):
        path, quant = Path(split["path"]), _quant(split["quant"])
    if text.split(":")[0] == DEMO_NAME and str(path) == DEMO_NAME:
        return ModelReference(demo=True, quant=quant)
    if _exists(path) or text.startswith(_PATH_BEGINNINGS):
        return ModelReference(path=path.expanduser() if text.startswith("~") else path, quant=quant)
    return _parse_hub_reference(text)


def _parse_hub_reference(text: str) -> ModelReference:
    match = _HUB_REFERENCE.fullmatch(text)
    if match is None or any(mark in text for mark in _NOT_IN_A_REFERENCE):
        raise _bad(text)
    repository, revision = match["repository"], match["revision"]
    # The cache joins the names of a repository by "--".
    if "--" in repository or any(part.endswith(_NOT_AT_THE_END) for part in (repository, revision or "")):
        raise _bad(text)
    return ModelReference(repository=repository, quant=_quant(match["quant"]), revision=revision)


def _quant(text: str | None) -> NumberFormat | None:
    return None if text is None or text == AUTO_QUANT else NumberFormat(text)


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists() if str(path).startswith("~") else path.exists()
    except (OSError, RuntimeError):
        # A name too long for the file system, or a home directory that is not known: no path of ours.
        return False


def _bad(text: str) -> HubError:
    return HubError(
        f"{quoted(text)} is no model: nothing here has that name, and it is neither {DEMO_NAME} nor a name on the hub, "
        f"org/name[:quant][@revision] (quant: {', '.join((AUTO_QUANT, *WEIGHT_NUMBERS))}); check the spelling"
    )
