"""Progress bars on stderr for downloading and loading; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from openautoglm.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class LoadProgress:
    """A `ProgressCallback` with one bar per stage; `finish` leaves the screen to the answer."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LoadProgress:
        """Start drawing, if anybody looks."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bars = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __call__(self, progress: Progress) -> None:
        """Show news of a stage."""
        if self._bars is None:
            return
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total_bytes)
        self._bars.update(self._tasks[progress.stage], completed=progress.done_bytes, total=progress.total_bytes)

    def finish(self) -> None:
        """Remove the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars, also after a failure."""
        self.finish()
