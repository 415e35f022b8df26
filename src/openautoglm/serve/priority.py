"""Which queue a request goes to: `priority` and `service_tier`, within what its key may ask for."""

from __future__ import annotations

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.access import Caller
from openautoglm.serve.replies import ErrorReply, ReplyError
from openautoglm.spec.scheduling import Queue, queue_of

# The tiers of OpenAI's API, and the number that stands for each.
_TIERS = {"auto": None, "default": 0, "priority": -1, "flex": 1}
_FIRST_NUMBERS = {Queue.HIGH: -1, Queue.NORMAL: 0, Queue.BATCH: 1}


def wanted_priority(priority: int | None, service_tier: str | None) -> int | None:
    """Return the number that a request asks for; None if it leaves it to the server.

    Raises `InvalidRequestError` for a tier that is unknown or of another queue than the number.
    """
    if service_tier is None:
        return priority
    if service_tier not in _TIERS:
        raise InvalidRequestError(
            f"service_tier must be one of {', '.join(_TIERS)}, got {service_tier[:40]!r}", param="service_tier"
        )
    tier = _TIERS[service_tier]
    if priority is None or tier is None:
        return tier if priority is None else priority
    if queue_of(tier) is not queue_of(priority):
        raise InvalidRequestError(
            f"service_tier {service_tier} is the {queue_of(tier).label} queue and priority {priority} the "
            f"{queue_of(priority).label} one: send one of them",
            param="service_tier",
        )
    return priority


def granted_priority(wanted: int | None, caller: Caller) -> int:
    """Return the number under which a request runs: the one it wants, or the best of its key up to the normal queue.

    Raises `ReplyError` (403) where its key may not ask for that queue.
    """
    best = caller.queue
    if wanted is None:
        return _FIRST_NUMBERS[max(best, Queue.NORMAL, key=lambda queue: queue.value)]
    queue = queue_of(wanted)
    if queue.value < best.value:
        raise ReplyError(
            ErrorReply(
                status=403,
                message=f"this key may use the {best.label} queue, and the request asks for the {queue.label} one: "
                f"send no priority, or one that is {'above 0' if best is Queue.BATCH else '0 or above'}",
                code="queue_not_allowed",
                param="priority",
            )
        )
    return wanted
