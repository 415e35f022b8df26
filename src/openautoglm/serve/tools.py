"""Tools and reasoning of a chat: what a request asks for, what its answer must look like, and how that is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openautoglm.errors import ConfigError, InvalidRequestError
from openautoglm.serve.answer_options import AnswerOptions
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.schemas import ChatBody
from openautoglm.spec.notices import NoticeCode
from openautoglm.spec.sampling import SamplingParams
from openautoglm.text.answer_parts import AnswerParser
from openautoglm.text.call_scan import TOOL_NAME
from openautoglm.text.reasoning import ThinkSplitter
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tool_grammar import call_constraint
from openautoglm.text.tool_messages import mentions
from openautoglm.text.tool_parsers import make_tool_parser
from openautoglm.text.tools import Tool, ToolFormat, format_of_template

MAX_TOOLS = 128
_CHOICES = (
    '"none", "auto", "required", {"type": "function", "function": {"name": …}}, or {"type": "allowed_tools", '
    '"allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": …}}, …]}}'
)


def check_tool_format(wanted: ToolFormat | None, template: ChatTemplate) -> None:
    """Raise `ConfigError` for a format that the model is not shown: its template takes no tools."""
    if wanted not in (None, ToolFormat.HERMES) and not mentions(template.source(with_tools=True), "tools"):
        raise ConfigError(
            f"--tool-parser {wanted} cannot work: the model's chat template takes no tools, so they are described in "
            "the format of hermes: leave the option out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tooling:
    """What one request wants of tools and reasoning. Without `tools` no call is looked for, nor shown to the model.

    With `required` the answer is a call of one of `callable_tools`. `variables` go to the chat template.
    """

    options: AnswerOptions
    tools: tuple[Tool, ...]
    callable_tools: tuple[Tool, ...]
    required: bool
    parallel: bool
    format: ToolFormat
    variables: Mapping[str, Any]

    def constrained(self, sampling: SamplingParams, *, inside: bool) -> SamplingParams:
        """Return parameters that make the answer a call where one is required; `inside` a prompt that reasons."""
        if not self.tools:
            return sampling
        if sampling.constraint is not None:
            raise InvalidRequestError(
                f"{sampling.constraint.param} and tools both say what the answer is to be: send one of them, or "
                'tool_choice "none"',
                param=sampling.constraint.param,
            )
        if not self.required:
            return sampling
        constraint = call_constraint(
            self.format,
            self.callable_tools,
            parallel=self.parallel,
            thinks=self.options.splits_reasoning,
            inside=inside and self.options.splits_reasoning,
        )
        return replace(sampling, constraint=constraint)

    def parsers(self, sampling: SamplingParams, *, inside: bool) -> list[AnswerParser]:
        """Return what takes each choice apart."""
        # An answer that follows a schema or a grammar of the request has no room for the end of reasoning.
        inside = inside and (sampling.constraint is None or self.required)
        return [
            AnswerParser(
                reasoning=ThinkSplitter(inside=inside) if self.options.splits_reasoning else None,
                tools=make_tool_parser(self.format, self.tools, parallel=self.parallel) if self.tools else None,
            )
            for _ in range(sampling.n)
        ]


def tooling_of(context: ServeContext, body: ChatBody, extension: Extension) -> Tooling:
    """Read a request's tools and switches; raise `InvalidRequestError` naming what cannot be honoured."""
    choice = _choice(body.tool_choice)
    tools = read_tools(body.tools or [], extension) if choice.mode != "none" else ()
    called = choice.among(tools)
    if not choice.required:
        # Nothing holds a model back that may write what it likes: it is not shown what it may not call.
        tools = called
    template = context.template.source(with_tools=bool(tools))
    shown = mentions(template, "tools")
    if tools and not shown:
        extension.add(
            NoticeCode.TOOLS_AS_TEXT,
            "the model's chat template takes no tools: they are described in the system message",
            param="tools",
        )
    if tools and not choice.required and any(_is_strict(tool) for tool in body.tools or []):
        extension.add(
            NoticeCode.TOOLS_NOT_STRICT,
            "arguments follow a schema for certain only where tool_choice requires the call",
            param="tools",
        )
    known = format_of_template(template) if shown else ToolFormat.HERMES
    return Tooling(
        options=context.settings.answers,
        tools=tools,
        callable_tools=called,
        required=choice.required,
        # A call that is asked for by name is one call.
        parallel=body.parallel_tool_calls is not False and not choice.one,
        format=context.settings.answers.tool_format or known,
        variables={**(body.chat_template_kwargs or {}), **_switches(body, template)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What a request says of calling: "none", "auto" or "required", and of which tools, where it names some.

    `one` is a call of the tool that is named.
    """

    mode: str
    names: tuple[str, ...] | None = None
    one: bool = False

    @property
    def required(self) -> bool:
        return self.mode == "required"

    def among(self, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        """Return the tools that may be called; raise `InvalidRequestError` for a choice that there is none for."""
        if self.names is None:
            if self.required and not tools:
                raise InvalidRequestError("tool_choice needs tools, of which there are none", param="tool_choice")
            return tools
        if not {tool.name for tool in tools}.issuperset(self.names):
            raise InvalidRequestError("tool_choice names a tool that is none of those sent", param="tool_choice")
        return tuple(tool for tool in tools if tool.name in self.names)


def _choice(value: str | dict[str, Any] | None) -> _Choice:
    if value is None or value in ("none", "auto", "required"):
        return _Choice(mode=str(value or "auto"))
    if isinstance(value, dict):
        name = _function_name(value)
        if name is not None:
            return _Choice(mode="required", names=(name,), one=True)
        allowed = value.get("allowed_tools")
        if value.get("type") == "allowed_tools" and isinstance(allowed, dict):
            mode, listed = allowed.get("mode"), allowed.get("tools")
            names = [_function_name(one) for one in listed] if isinstance(listed, list) else []
            known = tuple(name for name in names if name is not None)
            if mode in ("auto", "required") and known and len(known) == len(names):
                return _Choice(mode=mode, names=known)
    raise InvalidRequestError(f"tool_choice must be {_CHOICES}", param="tool_choice")


def _function_name(value: object) -> str | None:
    """Return the name in {"type": "function", "function": {"name": …}}, None for anything else."""
    if not isinstance(value, Mapping) or value.get("type") != "function":
        return None
    function = value.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def read_tools(values: Sequence[Mapping[str, Any]], extension: Extension) -> tuple[Tool, ...]:
    """Return the functions among tools, telling of others; raise `InvalidRequestError` for what cannot be called."""
    if len(values) > MAX_TOOLS:
        raise InvalidRequestError(f"tools holds {len(values)} tools, at most {MAX_TOOLS}", param="tools")
    tools: dict[str, Tool] = {}
    for index, value in enumerate(values):
        if value.get("type") != "function":
            extension.add(
                NoticeCode.FIELDS_IGNORED,
                f"tools[{index}] is no function, and means nothing to this server",
                param=f"tools[{index}]",
            )
            continue
        tool = _tool(value.get("function"), f"tools[{index}].function")
        if tool.name in tools:
            raise InvalidRequestError(f"tools[{index}] has the name of another tool", param=f"tools[{index}]")
        tools[tool.name] = tool
    return tuple(tools.values())


def _tool(function: object, where: str) -> Tool:
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f'{where} must be {{"name": …, "parameters": {{…}}}}', param=where)
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters") or {}
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{where}.name must be 1 to 128 letters, digits or any of _ - . :", param=f"{where}.name"
        )
    if not isinstance(description, str):
        raise InvalidRequestError(f"{where}.description must be text", param=f"{where}.description")
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise InvalidRequestError(
            f'{where}.parameters must be a JSON schema of "type": "object"', param=f"{where}.parameters"
        )
    return Tool(name=name, description=description, parameters=parameters)


def _is_strict(value: Mapping[str, Any]) -> bool:
    function = value.get("function")
    return isinstance(function, Mapping) and function.get("strict") is True


def _switches(body: ChatBody, template: str) -> dict[str, object]:
    """Return variables for the switches that have fields of their own; refuse those that the template lacks."""
    switches: dict[str, object] = {}
    if body.enable_thinking is not None:
        switches["enable_thinking"] = body.enable_thinking
    if body.reasoning_effort is not None:
        if mentions(template, "reasoning_effort"):
            switches["reasoning_effort"] = body.reasoning_effort
        elif body.reasoning_effort == "none" and mentions(template, "enable_thinking"):
            switches.setdefault("enable_thinking", False)
        else:
            raise InvalidRequestError(
                "reasoning_effort cannot be honoured: the model's chat template has no such switch",
                param="reasoning_effort",
            )
    if "enable_thinking" in switches and not mentions(template, "enable_thinking"):
        raise InvalidRequestError(
            "enable_thinking cannot be honoured: the model's chat template has no such switch", param="enable_thinking"
        )
    return switches
