"""What an operator says about tokens of an identity provider."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from openautoglm.errors import ConfigError
from openautoglm.serve.keys import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """Which JSON web tokens are believed, and what they open.

    `keys` is a file or an address of a key set. Values of the claim `role_claim` (a path with dots may lead into
    objects) become roles by `roles`. Callers with equal values of `tenant_claim` share cached prefixes.
    """

    issuer: str
    audience: str
    keys: str
    role_claim: str = "roles"
    roles: Mapping[str, Role] = field(default_factory=lambda: {role.value: role for role in Role})
    tenant_claim: str = "sub"

    def check(self) -> None:
        """Raise `ConfigError` where the extra is not installed."""
        if importlib.util.find_spec("jwt") is None or importlib.util.find_spec("cryptography") is None:
            raise ConfigError("--jwt-issuer needs more packages: pip install 'openautoglm[oidc]'")


def parse_roles(text: str) -> dict[str, Role]:
    """Return roles by value of a claim, from a list such as "staff=user,ops=admin"; raise `ConfigError`."""
    roles: dict[str, Role] = {}
    for part in text.split(","):
        value, _, role = part.strip().rpartition("=")
        if not value or role not in set(Role):
            raise ConfigError(f"{part.strip()[:80]!r} gives no role: write VALUE=ROLE, with one of {', '.join(Role)}")
        roles[value] = Role(role)
    return roles
