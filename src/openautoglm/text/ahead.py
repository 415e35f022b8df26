"""A model's tokenizer and chat template, begun before anything is known of the model: their helper processes start
while this process imports and plans."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from openautoglm.checkpoint.reference import parse_reference
from openautoglm.demo import checkpoint_directory
from openautoglm.errors import OpenAutoGLMError
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer_process import TokenizerCheck


class TextAhead:
    """What the text of the model `reference` needs, if its directory is known without asking a hub. Close it.

    What is wrong with these files is not said here, and not before they are asked for: a plan that does not fit, or a
    model that cannot run, is more to the point. With `chat` the worker of the chat template starts too.
    """

    def __init__(self, reference: str, *, chat: bool) -> None:
        self._chat = chat
        self._check: TokenizerCheck | None = None
        self._template: ChatTemplate | None = None
        self._error: OpenAutoGLMError | OSError | None = None
        parsed = parse_reference(reference)
        directory = checkpoint_directory() if parsed.demo else parsed.path
        if directory is not None and directory.is_dir():
            try:
                self._begin(directory)
            except (OpenAutoGLMError, OSError) as error:
                self._error = error
            except BaseException:
                self.close()
                raise

    def _begin(self, directory: Path) -> None:
        self._check = TokenizerCheck(directory)
        if self._chat:
            self._template = ChatTemplate.from_directory(directory)
            self._template.spawn()

    def settle(self) -> None:
        """Wait until the tokenizer has been tried: what that takes is not to be seen as taken by others."""
        if self._check is not None:
            try:
                self._check.facts()
            except OpenAutoGLMError as error:
                self._error = self._error or error

    def open(self, directory: Path) -> tuple[TokenizerCheck, ChatTemplate | None]:
        """Return what was begun, or begin now; the template, if one was wanted, is the caller's to close from now on.

        Raises `TemplateError` where a template is wanted and there is none, and what `TokenizerCheck` and
        `ChatTemplate.from_directory` raise.
        """
        if self._error is not None:
            raise self._error
        if self._check is None:
            self._begin(directory)
        assert self._check is not None
        if self._template is not None:
            self._template.check()
        template, self._template = self._template, None
        return self._check, template

    def close(self) -> None:
        """End what was begun and not handed out; safe to call twice."""
        if self._check is not None:
            self._check.close()
        if self._template is not None:
            self._template.close()

    def __enter__(self) -> TextAhead:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()
