"""Settings and where each value comes from.

    flag  >  OPENAUTOGLM_<NAME> in the environment  >  ./openautoglm.toml  >  ~/.config/openautoglm/config.toml

A settings file is TOML with one table, the names below as keys. An unknown key or variable is refused, so that a
typing error never becomes a default in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from openautoglm.errors import ConfigError, OpenAutoGLMError
from openautoglm.log import LOG_FORMATS
from openautoglm.spec.formats import KV_NUMBERS, WEIGHT_GROUPS, ActivationScale, AttentionArithmetic
from openautoglm.spec.goal import Objective
from openautoglm.spec.offload import OffloadMode, parse_placement
from openautoglm.spec.reuse import Speculation
from openautoglm.units import parse_bytes, parse_bytes_per_minute

ENVIRONMENT_PREFIX = "OPENAUTOGLM_"
PROJECT_FILE_NAME = "openautoglm.toml"
MAX_FILE_BYTES = 1 << 20
QUANT_NAMES = ("auto", "bf16", "int8", "int4", "nf4")
REDACT_MODES = ("off", "mask", "hash", "block")
REDACT_KINDS = ("id_number", "bank_card", "mobile", "email", "api_key", "ip_address")
TOOL_PARSERS = ("auto", "glm4", "glm45", "hermes", "llama3")
REASONING_PARSERS = ("off", "think")
AUDIT_WHEN_FULL = ("block", "continue")
KV_NAMES = ("auto", *(number.value for number in KV_NUMBERS))

Value = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSpec:
    """One setting: its name (a TOML key, `--name` and OPENAUTOGLM_NAME), default, check and explanation."""

    name: str
    default: Value
    check: Callable[[str | int], str | int]
    help: str
    secret: bool = False

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value and its source: "default", "flag", a variable's name or a file's path."""

    name: str
    value: Value
    source: str
    secret: bool = False

    @property
    def shown(self) -> Value:
        """The value as it may be printed: secrets are hidden."""
        return "(hidden)" if self.secret and self.value is not None else self.value


def _text(value: str | int) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError("expected text that is not empty")
    return value


def _size(value: str | int) -> str:
    text = _text(value)
    if parse_bytes(text) < 1:
        raise ConfigError("expected a size above zero, such as 4GiB")
    return text


def _room(value: str | int) -> str:
    text = str(value)
    parse_bytes(text)
    return text


def _integer(low: int, high: int) -> Callable[[str | int], int]:
    def check(value: str | int) -> int:
        text = str(value)
        if isinstance(value, bool) or not text.lstrip("-").isdecimal() or not low <= int(text) <= high:
            raise ConfigError(f"expected a whole number from {low} to {high}")
        return int(text)

    return check


def _one_of(*names: str) -> Callable[[str | int], str]:
    def check(value: str | int) -> str:
        if str(value) not in names or isinstance(value, bool):
            raise ConfigError(f"expected one of {', '.join(names)}")
        return str(value)

    return check


def _switch(value: str | int) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ConfigError("expected true or false")
    return str(value).lower() == "true"


def _placement(value: str | int) -> str:
    text = _text(value)
    parse_placement(text)
    return text


def _rate(value: str | int) -> str:
    text = _text(value)
    parse_bytes_per_minute(text)
    return text


def parse_redact_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of private data in a list such as "mobile,email"; raise `ConfigError` for an unknown one."""
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in REDACT_KINDS]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no kind of private data: known kinds are {', '.join(REDACT_KINDS)}")
    return names


def _share(value: str | int) -> str:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ConfigError("expected a number from 0 to 1")
    return str(value)


def _redact_kinds(value: str | int) -> str:
    text = _text(value)
    parse_redact_kinds(text)
    return text


_MANY = 1 << 30
SETTINGS = (
    SettingSpec(name="memory", default=None, check=_size, help="Memory budget of the whole process tree."),
    SettingSpec(name="context", default=None, check=_integer(1, _MANY), help="Context of each sequence, in tokens."),
    SettingSpec(name="concurrency", default=None, check=_integer(1, _MANY), help="Sequences that must fit at once."),
    SettingSpec(name="quant", default="auto", check=_one_of(*QUANT_NAMES), help="Weight format."),
    SettingSpec(
        name="group", default=None, check=_one_of(*map(str, WEIGHT_GROUPS)), help="Weights per scale of int4 and nf4."
    ),
    SettingSpec(
        name="activations",
        default=ActivationScale.GROUP.value,
        check=_one_of(*(scale.value for scale in ActivationScale)),
        help="Granularity of activation scales.",
    ),
    SettingSpec(name="chunk", default=None, check=_integer(1, _MANY), help="Most tokens of one step."),
    SettingSpec(
        name="objective",
        default=None,
        check=_one_of(*(objective.value for objective in Objective)),
        help="What to favour where there is a choice.",
    ),
    SettingSpec(name="kv", default="auto", check=_one_of(*KV_NAMES), help="KV cache format."),
    SettingSpec(
        name="attention",
        default=AttentionArithmetic.FASTEST.value,
        check=_one_of(*(kind.value for kind in AttentionArithmetic)),
        help="Arithmetic of attention.",
    ),
    SettingSpec(name="threads", default=None, check=_integer(1, 4096), help="Compute threads (usable cores)."),
    SettingSpec(
        name="offload",
        default=OffloadMode.AUTO.value,
        check=_one_of(*(mode.value for mode in OffloadMode)),
        help="When layers may stay on disk.",
    ),
    SettingSpec(name="place", default=None, check=_placement, help="Layers that stay on disk, or in memory."),
    SettingSpec(name="offload_dir", default=None, check=_text, help="Directory of weights that stay on disk."),
    SettingSpec(name="spill_memory", default=None, check=_room, help="Host memory for KV blocks beside the pool."),
    SettingSpec(name="spill_disk", default=None, check=_room, help="Disk space for KV blocks beside the pool."),
    SettingSpec(name="spill_dir", default=None, check=_text, help="Directory of KV blocks on disk."),
    SettingSpec(name="cache", default=None, check=_text, help='Directory of packed weights; "off" for none.'),
    SettingSpec(name="strict", default=False, check=_switch, help="Whether fallbacks and downgrades are errors."),
    SettingSpec(
        name="watchdog",
        default="on",
        check=_one_of("on", "off"),
        help="Whether growth of memory is reported by itself.",
    ),
    SettingSpec(name="watchdog_slope", default=None, check=_rate, help="Growth per minute that is reported as well."),
    SettingSpec(name="log_format", default="text", check=_one_of(*LOG_FORMATS), help="Records as text or JSON."),
    SettingSpec(name="otlp_endpoint", default=None, check=_text, help="OpenTelemetry collector that gets traces."),
    SettingSpec(name="trace_sample", default=None, check=_share, help="Share of requests that are traced."),
    SettingSpec(name="log_dir", default=None, check=_text, help="Directory of memory reports."),
    SettingSpec(
        name="speculation",
        default=Speculation.AUTO.value,
        check=_one_of(*(mode.value for mode in Speculation)),
        help="When tokens are drafted from what a text has said before.",
    ),
    SettingSpec(
        name="slow_start", default=10, check=_integer(0, 86400), help="Seconds in which a new server's weight rises."
    ),
    SettingSpec(
        name="session_seconds", default=600, check=_integer(0, 1 << 30), help="How long a session's KV cache is kept."
    ),
    SettingSpec(name="session_bytes", default=None, check=_room, help="KV cache that all sessions may keep."),
    SettingSpec(name="host", default="127.0.0.1", check=_text, help="Address that the server listens on."),
    SettingSpec(name="port", default=8000, check=_integer(0, 65535), help="Port that the server listens on."),
    SettingSpec(name="api_key", default=None, check=_text, help="Key that clients must send.", secret=True),
    SettingSpec(name="admin_key", default=None, check=_text, help="Key for /admin.", secret=True),
    SettingSpec(name="metrics_key", default=None, check=_text, help="Key for /metrics.", secret=True),
    SettingSpec(name="tls_cert", default=None, check=_text, help="File of the server's certificate, for TLS."),
    SettingSpec(name="tls_key", default=None, check=_text, help="File of the certificate's key."),
    SettingSpec(name="keys_file", default=None, check=_text, help="File of API keys, made by `openautoglm keys`."),
    SettingSpec(name="tool_parser", default="auto", check=_one_of(*TOOL_PARSERS), help="Format of tool calls."),
    SettingSpec(
        name="reasoning_parser", default="off", check=_one_of(*REASONING_PARSERS), help="How reasoning is told."
    ),
    SettingSpec(name="jwt_issuer", default=None, check=_text, help="OpenID Connect provider whose tokens let in."),
    SettingSpec(name="jwt_audience", default=None, check=_text, help="Whom its tokens must be meant for."),
    SettingSpec(name="jwt_keys", default=None, check=_text, help="File or address of its keys."),
    SettingSpec(name="jwt_role_claim", default=None, check=_text, help="Claim that tells roles."),
    SettingSpec(name="jwt_roles", default=None, check=_text, help="Roles by that claim's values."),
    SettingSpec(name="jwt_tenant_claim", default=None, check=_text, help="Claim whose value is the tenant."),
    SettingSpec(name="redact", default="off", check=_one_of(*REDACT_MODES), help="What is done about private data."),
    SettingSpec(name="redact_kinds", default=None, check=_redact_kinds, help="Kinds of private data to look for."),
    SettingSpec(name="redact_answers", default=False, check=_switch, help="Whether answers are redacted too."),
    SettingSpec(name="audit_log", default=None, check=_text, help="File that tells of every request."),
    SettingSpec(name="audit_key", default=None, check=_text, help="Key that seals the audit log.", secret=True),
    SettingSpec(
        name="audit_when_full",
        default="block",
        check=_one_of(*AUDIT_WHEN_FULL),
        help="What happens to requests while the audit log cannot be written.",
    ),
    SettingSpec(name="redact_key", default=None, check=_text, help="Key of redaction by hashes.", secret=True),
)
_SPECS = {spec.name: spec for spec in SETTINGS}
# Variables with this prefix that are no settings: the kernels' own switch, and homes of files.
_OTHER_VARIABLES = frozenset({"OPENAUTOGLM_ISA", "OPENAUTOGLM_CONFIG"})


def user_file(environment: Mapping[str, str]) -> Path:
    """Return the user's settings file: $OPENAUTOGLM_CONFIG, else below $XDG_CONFIG_HOME, else below ~/.config."""
    if environment.get("OPENAUTOGLM_CONFIG"):
        return Path(environment["OPENAUTOGLM_CONFIG"])
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "openautoglm" / "config.toml"


def resolve_settings(
    flags: Mapping[str, Value] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> tuple[Setting, ...]:
    """Return every setting with its value and source, in the order of `SETTINGS`; None as a flag means: not given.

    Raises `ConfigError` for an unknown name or a bad value, naming the source.
    """
    environment = os.environ if environment is None else environment
    found = {spec.name: Setting(name=spec.name, value=spec.default, source="default") for spec in SETTINGS}
    for file in (user_file(environment), (directory or Path.cwd()) / PROJECT_FILE_NAME):
        found.update({name: _checked(name, value, str(file)) for name, value in _read_file(file).items()})
    found.update(_from_environment(environment))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    found.update({name: _checked(name, value, "flag") for name, value in given.items()})
    return tuple(found[spec.name] for spec in SETTINGS)


def command_defaults(settings: tuple[Setting, ...], commands: tuple[str, ...]) -> dict[str, dict[str, Value]]:
    """Return click's `default_map` for commands: what files and environment set, below the flags' precedence.

    Only settings that somebody set are in it, so that every other option keeps its own default.
    """
    values = {setting.name: setting.value for setting in settings if setting.source != "default"}
    return {command: dict(values) for command in commands}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Setting]:
    found = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in _SPECS or variable != _SPECS[name].variable:
            known = ", ".join(sorted({spec.variable for spec in SETTINGS} | _OTHER_VARIABLES))
            raise ConfigError(f"{variable} is no setting: correct or unset it; known variables are {known}")
        found[name] = _checked(name, value, variable)
    return found


def _checked(name: str, value: object, source: str) -> Setting:
    if name not in _SPECS:
        raise ConfigError(f"{source}: unknown setting {name!r}: known settings are {', '.join(_SPECS)}")
    spec = _SPECS[name]
    shown = "the value" if spec.secret else repr(value)
    if not isinstance(value, str | int):
        raise ConfigError(f"{source}: {name} is {shown}: expected text or a whole number")
    try:
        checked = spec.check(value)
    except OpenAutoGLMError as error:
        raise ConfigError(f"{source}: {name} is {shown}: {error}") from error
    return Setting(name=name, value=checked, source=source, secret=spec.secret)


def _read_file(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}

    import tomllib  # most users have no settings file

    if file.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_FILE_BYTES} bytes: that is no settings file")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
