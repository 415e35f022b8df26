"""Messages about tools as a chat template takes them.

Templates differ: most take `tools` and `tool_calls`; those of GLM-4 take tools, and calls as messages with `metadata`
whose results are of the role "observation"; many know nothing of tools. For those, tools and calls are written as text
in Hermes' format, so that any model can be shown what it may call, if not how well it will.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

Message = dict[str, object]
_INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def mentions(template: str, name: str) -> bool:
    """Whether a template speaks of a variable or a word."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def adapt_history(messages: Sequence[Message], template: str) -> list[Message]:
    """Return messages with calls and their results as the template takes them; others stay as they are."""
    if mentions(template, "tool_calls") or not any(m.get("tool_calls") or m.get("role") == "tool" for m in messages):
        return list(messages)
    return _observed(messages) if mentions(template, "observation") else _as_text(messages)


def tools_as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> list[Message]:
    """Return messages whose system message also tells of the tools, each as OpenAI's object."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=lines)
    if messages and messages[0].get("role") == "system":
        return [{**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _observed(messages: Sequence[Message]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        if message.get("role") == "tool":
            result.append({**message, "role": "observation"})
            continue
        calls = _calls(message)
        plain = {key: value for key, value in message.items() if key != "tool_calls"}
        if plain.get("content") or not calls:
            result.append(plain)
        result += [
            {"role": "assistant", "metadata": name, "content": json.dumps(arguments, ensure_ascii=False)}
            for name, arguments in calls
        ]
    return result


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Write calls into their message's content, and results that follow each other as one message of the user."""
    result: list[Message] = []
    in_results = False
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
            if in_results:
                result[-1] = {"role": "user", "content": f"{result[-1]['content']}\n{text}"}
            else:
                result.append({"role": "user", "content": text})
        else:
            pieces = [str(message.get("content") or "")] if message.get("content") else []
            for name, arguments in _calls(message):
                call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
                pieces.append(f"<tool_call>\n{call}\n</tool_call>")
            plain = {key: value for key, value in message.items() if key != "tool_calls"}
            result.append({**plain, "content": "\n".join(pieces)})
        in_results = is_result
    return result


def _calls(message: Message) -> list[tuple[str, object]]:
    """Return names and arguments of a message's calls, which were checked before."""
    calls = message.get("tool_calls")
    functions = [call["function"] for call in calls] if isinstance(calls, list) else []
    return [(function["name"], function.get("arguments")) for function in functions]
