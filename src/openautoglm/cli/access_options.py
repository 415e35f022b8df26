"""The options of `serve` that say who may use the server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from openautoglm.serve.token_options import TokenOptions

_OPTIONS = (
    click.option(
        "--api-key",
        envvar="OPENAUTOGLM_API_KEY",
        metavar="KEY",
        help="Key that clients must send; better in OPENAUTOGLM_API_KEY, which other users do not see.",
    ),
    click.option(
        "--admin-key",
        envvar="OPENAUTOGLM_ADMIN_KEY",
        metavar="KEY",
        help="Key for /admin, which is refused without one; better in OPENAUTOGLM_ADMIN_KEY.",
    ),
    click.option(
        "--metrics-key",
        envvar="OPENAUTOGLM_METRICS_KEY",
        metavar="KEY",
        help="Key for /metrics alone; better in OPENAUTOGLM_METRICS_KEY.",
    ),
    click.option(
        "--keys-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File of many keys, made by `openautoglm keys`; followed while the server runs.",
    ),
    click.option("--jwt-issuer", metavar="URL", help="Let in who has a token of this OpenID Connect provider."),
    click.option("--jwt-audience", metavar="NAME", help="Whom its tokens must be meant for."),
    click.option(
        "--jwt-keys", metavar="FILE|URL", help="Its keys: a JSON Web Key Set, followed while the server runs."
    ),
    click.option(
        "--jwt-role-claim", metavar="CLAIM", help="Claim that tells roles, such as realm_access.roles (roles)."
    ),
    click.option(
        "--jwt-roles", metavar="VALUE=ROLE,...", help="Roles by that claim's values (user, admin and metrics as such)."
    ),
    click.option("--jwt-tenant-claim", metavar="CLAIM", help="Claim whose value is the tenant (sub)."),
)


def _tokens(
    issuer: str | None,
    audience: str | None,
    keys: str | None,
    role_claim: str | None,
    roles: str | None,
    tenant_claim: str | None,
) -> TokenOptions | None:
    from openautoglm.serve.token_options import TokenOptions, parse_roles

    if issuer is None or audience is None or keys is None:
        if any((issuer, audience, keys, role_claim, roles, tenant_claim)):
            raise click.UsageError("tokens need --jwt-issuer, --jwt-audience and --jwt-keys together")
        return None
    options = TokenOptions(issuer=issuer, audience=audience, keys=keys)
    given = {
        "role_claim": role_claim,
        "tenant_claim": tenant_claim,
        "roles": None if roles is None else parse_roles(roles),
    }
    return replace(options, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def access_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options to a command, which gets them as one `access`."""

    @functools.wraps(command)
    def with_access(
        *args: object,
        api_key: str | None,
        admin_key: str | None,
        metrics_key: str | None,
        keys_file: Path | None,
        jwt_issuer: str | None,
        jwt_audience: str | None,
        jwt_keys: str | None,
        jwt_role_claim: str | None,
        jwt_roles: str | None,
        jwt_tenant_claim: str | None,
        **kwargs: object,
    ) -> object:
        from openautoglm.serve.access import AccessOptions

        access = AccessOptions(
            api_key=api_key or None,
            admin_key=admin_key or None,
            metrics_key=metrics_key or None,
            keys_file=keys_file,
            tokens=_tokens(jwt_issuer, jwt_audience, jwt_keys, jwt_role_claim, jwt_roles, jwt_tenant_claim),
        )
        return command(*args, access=access, **kwargs)

    for option in reversed(_OPTIONS):
        with_access = option(with_access)
    return with_access
