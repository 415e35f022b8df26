"""The checkpoint's own chat template: found in its files, rendered in a worker process under limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from openautoglm.checkpoint.files import read_small_file
from openautoglm.checkpoint.json_files import read_json
from openautoglm.errors import InvalidRequestError, TemplateError
from openautoglm.text.special_tokens import read_special_tokens, read_tokenizer_config
from openautoglm.text.template_process import TemplateLimits, TemplateProcess
from openautoglm.units import MIB, format_bytes

MAX_TEMPLATE_BYTES = MIB
_DEFAULT = "default"
_TOOL_USE = "tool_use"
# Names under which clients send reasoning; templates read the first.
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """Turns messages into the prompt text that the model was trained on. Safe from any thread; close it."""

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        """Take named templates ("default", "tool_use", …) and the texts of special tokens ("bos_token", …)."""
        self._templates = dict(templates)
        self._special_tokens = dict(special_tokens or {})
        self._process = TemplateProcess(self._templates, limits or TemplateLimits())

    @classmethod
    def from_directory(cls, directory: Path, *, limits: TemplateLimits | None = None) -> ChatTemplate:
        """Find the template of a checkpoint; one without any gives an object whose `render` says so.

        Looks into chat_template.jinja, chat_template.json and tokenizer_config.json, in this order, and into
        additional_chat_templates/. Raises `TemplateError` or `CheckpointFormatError` if one of them is malformed.
        """
        return cls(_find_templates(directory), special_tokens=read_special_tokens(directory).named, limits=limits)

    @property
    def exists(self) -> bool:
        """Whether the checkpoint has a template."""
        return bool(self._templates)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, None before the first rendering and after `close`."""
        return self._process.pid

    def start(self) -> None:
        """Start the worker now, so that the first rendering need not wait for it; nothing without a template."""
        if self.exists:
            self._process.start()

    def spawn(self) -> None:
        """Begin to start the worker and do not wait for it; nothing without a template."""
        if self.exists:
            self._process.spawn()

    def source(self, *, with_tools: bool = False) -> str:
        """Return the template itself, to see what it knows of; empty where there is none."""
        return self._templates[self._choose(with_tools=with_tools)] if self.exists else ""

    def check(self) -> None:
        """Raise `TemplateError` if the checkpoint has no template for a conversation."""
        self._choose(with_tools=False)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt. `variables` are the model's own switches (such as enable_thinking).

        Raises `TemplateError` if there is no template, if it refuses the messages, fails, or passes its limits;
        `InvalidRequestError` if there are no messages or the result is not valid Unicode.
        """
        if not messages:
            raise InvalidRequestError("messages is empty: send at least one message", param="messages")
        name = self._choose(with_tools=bool(tools))
        extra = dict(variables or {})
        taken = sorted(_OWN_VARIABLES & extra.keys())
        if taken:
            raise InvalidRequestError(
                f"chat_template_kwargs cannot set {', '.join(taken)}: use the request's own fields",
                param="chat_template_kwargs",
            )
        return self._process.render(
            name,
            {
                **self._special_tokens,
                **extra,
                "messages": [_normalise(message) for message in messages],
                "tools": list(tools) if tools else None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def close(self) -> None:
        """End the worker; safe to call twice."""
        self._process.close()

    def __enter__(self) -> ChatTemplate:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _choose(self, *, with_tools: bool) -> str:
        if not self._templates:
            raise TemplateError(
                "this model has no chat template: it was not trained to chat, or its files are incomplete. "
                "Continue plain text instead (run --raw, LLM.generate, /v1/completions), or put a chat_template.jinja "
                "beside the model's files"
            )
        if with_tools and _TOOL_USE in self._templates:
            return _TOOL_USE
        if _DEFAULT in self._templates:
            return _DEFAULT
        raise TemplateError(
            f"this model has the chat templates {', '.join(sorted(self._templates))}, but none named {_DEFAULT!r}"
        )


def _normalise(message: Mapping[str, object]) -> dict[str, object]:
    """Drop fields that are null, which many templates would print, and give reasoning its usual name."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING_NAMES if name in given), None)
    if reasoning is not None:
        given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
    return given


def _find_templates(directory: Path) -> dict[str, str]:
    templates = _named_files(directory / "additional_chat_templates")
    jinja, legacy = directory / "chat_template.jinja", directory / "chat_template.json"
    if jinja.is_file():
        return templates | {_DEFAULT: _read_text(jinja)}
    if legacy.is_file():
        found = read_json(legacy).get("chat_template")
        if found is None:
            raise TemplateError(f"{legacy} has no chat_template")
        return templates | _from_config(found, legacy)
    found = read_tokenizer_config(directory).get("chat_template")
    return templates | (_from_config(found, directory / "tokenizer_config.json") if found is not None else {})


def _from_config(value: object, path: Path) -> dict[str, str]:
    """Read one template, or a list of {"name", "template"}."""
    templates: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [{"name": _DEFAULT, "template": value}]:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        template = entry.get("template") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not isinstance(template, str):
            raise TemplateError(f"{path}: chat_template must be text, or a list of objects with name and template")
        if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise TemplateError(f"{path}: a chat template may take {format_bytes(MAX_TEMPLATE_BYTES)}, not more")
        templates[name] = template
    return templates


def _named_files(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        return {}
    return {path.stem: _read_text(path) for path in sorted(directory.glob("*.jinja"))}


def _read_text(path: Path) -> str:
    data = read_small_file(path, max_bytes=MAX_TEMPLATE_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path} is not UTF-8 at byte {error.start}") from error
