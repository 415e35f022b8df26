"""Plan and load in one go, with the helper processes of the model's text started before anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from openautoglm.engine.heartbeat import Heartbeat
from openautoglm.engine.options import EngineOptions
from openautoglm.progress import ProgressCallback
from openautoglm.spec.plan import Plan
from openautoglm.text.ahead import TextAhead
from openautoglm.text.template import ChatTemplate

if TYPE_CHECKING:
    from openautoglm.engine.assemble import OpenedEngine


def open_model(
    options: EngineOptions,
    *,
    on_plan: Callable[[Plan], None] | None = None,
    progress: ProgressCallback | None = None,
    heartbeat: Heartbeat | None = None,
    chat: bool = False,
) -> tuple[OpenedEngine, ChatTemplate | None]:
    """Plan and load; return the engine, and with `chat` the template, whose worker has begun to start."""
    with TextAhead(options.model, chat=chat) as text:
        # Most of this package's imports are these: they take as long as the helper processes take to start.
        from openautoglm.engine.assemble import open_engine, prepare

        text.settle()
        prepared = prepare(options, to_run=True)
        if on_plan is not None:
            on_plan(prepared.plan)
        check, template = text.open(prepared.directory(progress=progress))
        try:
            return open_engine(prepared, progress=progress, heartbeat=heartbeat, check=check), template
        except BaseException:
            if template is not None:
                template.close()
            raise
