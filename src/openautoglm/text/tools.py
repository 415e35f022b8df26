"""Tools that a model may call, and the formats in which models write calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ToolFormat(StrEnum):
    """How calls are written."""

    GLM4 = "glm4"
    GLM45 = "glm45"
    HERMES = "hermes"
    LLAMA3 = "llama3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function: its name, what it is for, and the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def properties(self) -> Mapping[str, object]:
        """Schemas of the arguments by name."""
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    def as_openai(self) -> dict[str, object]:
        """Return the tool as chat templates expect it."""
        function: dict[str, object] = {"name": self.name, "description": self.description}
        parameters = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function | {"parameters": dict(parameters)}}


def writes_plain_text(schema: object) -> bool:
    """Whether GLM-4.5 writes an argument as it is: it is text by its schema. All others are JSON."""
    if not isinstance(schema, Mapping):
        return False
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return all(isinstance(choice, str) for choice in choices)
    return schema.get("type") == "string"


def format_of_template(template: str) -> ToolFormat:
    """Return the format that a chat template teaches; Hermes for one that teaches none."""
    if "<arg_key>" in template:
        return ToolFormat.GLM45
    if "<tool_call>" in template:
        return ToolFormat.HERMES
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return ToolFormat.LLAMA3
    if "observation" in template and "tools" in template:
        return ToolFormat.GLM4
    return ToolFormat.HERMES
