"""Every failure of the hub, its client, the network or the disk as one `HubError` that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from openautoglm.checkpoint.files import quoted
from openautoglm.errors import HubError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def transport_error_type() -> type[Exception]:
    """Return the base of the errors of the hub's HTTP library, which differs between versions of the hub's client."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises while it works on the reference `name` into `HubError` with advice."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        yield
    except (transport_error_type(), OSError, EntryNotFoundError, HFValidationError) as error:
        raise HubError(f"{name}: {explain(error, name)}") from error


def explain(error: Exception, name: str) -> str:
    """Say what happened and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = name.split("@")[0].split(":")[0]
    match error:
        case OfflineModeIsEnabled():
            return (
                f"not complete in the local cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE forbids downloading; "
                "unset it, or give a local directory"
            )
        case GatedRepoError():
            return (
                f"the model is gated; accept its conditions at {constants.ENDPOINT}/{repository} and set HF_TOKEN to a "
                "token of that account"
            )
        case RevisionNotFoundError():
            return "the hub has the model but not this revision; check what follows the @"
        case RepositoryNotFoundError():
            return "the hub has no such model, or it is private; check the spelling, or set HF_TOKEN"
        case HfHubHTTPError():
            return _explain_status(error.response.status_code, error.server_message)
        case EntryNotFoundError():
            return f"a file of the model is not there ({quoted(str(error))}); check the model's page"
        case OSError() if error.errno in _DISK_FULL:
            return (
                f"no room left for {constants.HF_HUB_CACHE} ({error.strerror}); free some space or set HF_HOME to a "
                "bigger disk, then run it again: it resumes"
            )
        case OSError() if error.errno is not None and not isinstance(error, ConnectionError):
            return (
                f"cannot write {error.filename or constants.HF_HUB_CACHE} ({error.strerror}); check its owner and "
                "mode, or set HF_HOME to a directory of yours"
            )
        case _:
            return (
                f"cannot reach {constants.ENDPOINT} ({type(error).__name__}: {quoted(str(error))}); check the network "
                "and HF_ENDPOINT, then run it again: downloads resume"
            )


def _explain_status(status: int, server_message: str | None) -> str:
    match status:
        case 401 | 403:
            advice = "the hub refused access; set HF_TOKEN to a token that may read this model"
        case 404:
            advice = "the hub does not have a file it listed; try again, or report it on the model's page"
        case 429:
            advice = "the hub asks to slow down; wait some minutes, or set HF_TOKEN for a higher limit"
        case _ if status >= 500:
            advice = "the hub has a fault of its own; try again later"
        case _:
            advice = "the hub refused the request; check HF_ENDPOINT and the reference"
    return f"{advice} (HTTP {status}{f', {quoted(server_message)}' if server_message else ''})"
