"""The ledger's promise: the sum of reservations is never above the budget, whatever order and threads."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from openautoglm.errors import OutOfMemoryError
from openautoglm.memory.ledger import Ledger


class LedgerModel(RuleBasedStateMachine):
    """Random reservations against a plain list of numbers."""

    reservations = Bundle("reservations")

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(1000)
        self.held = []
        self.peak = 0

    def total(self):
        return sum(size for _, size in self.held)

    @rule(target=reservations, name=st.sampled_from("abc"), size=st.integers(0, 600))
    def reserve(self, name, size):
        if self.total() + size > 1000:
            with pytest.raises(OutOfMemoryError):
                self.ledger.reserve(name, size)
            return None
        entry = [self.ledger.reserve(name, size), size]
        self.held.append(entry)
        return entry

    @rule(entry=reservations)
    def release(self, entry):
        if entry is None:
            return
        entry[0].release()
        self.held = [other for other in self.held if other is not entry]
        assert entry[0].num_bytes == 0

    @rule(entry=reservations, size=st.integers(0, 900))
    def resize(self, entry, size):
        if entry is None:
            return
        if not any(other is entry for other in self.held):
            with pytest.raises(ValueError, match="released"):
                entry[0].resize(size)
        elif self.total() - entry[1] + size > 1000:
            with pytest.raises(OutOfMemoryError):
                entry[0].resize(size)
        else:
            entry[0].resize(size)
            entry[1] = size

    @invariant()
    def agrees(self):
        self.peak = max(self.peak, self.total())
        assert self.ledger.in_use_bytes == self.total() <= self.ledger.budget_bytes
        assert self.ledger.free_bytes == 1000 - self.total()
        assert self.ledger.peak_bytes == self.peak
        assert sum(self.ledger.usage().values()) == self.total()


TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_message_names_budget_in_use_and_asked():
    ledger = Ledger(10 << 20)
    ledger.reserve("weights", 7 << 20)
    with pytest.raises(OutOfMemoryError) as caught:
        ledger.reserve("KV pool", 4 << 20)
    message = str(caught.value)
    for part in ("KV pool", "4.00 MiB", "10.0 MiB", "7.00 MiB", "3.00 MiB", "host"):
        assert part in message
    assert ledger.in_use_bytes == 7 << 20


def test_a_reservation_is_a_context():
    ledger = Ledger(100, domain="disk")
    with ledger.reserve("spill", 100) as reservation:
        assert reservation.num_bytes == 100
        assert dict(ledger.usage()) == {"spill": 100}
        with pytest.raises(OutOfMemoryError, match="disk budget"):
            ledger.reserve("spill", 1)
    assert ledger.in_use_bytes == 0
    reservation.release()
    assert ledger.in_use_bytes == 0


def test_names_are_summed_in_order():
    ledger = Ledger(100)
    ledger.reserve("b", 1)
    ledger.reserve("a", 2)
    ledger.reserve("b", 3)
    assert list(ledger.usage().items()) == [("b", 4), ("a", 2)]


def test_the_budget_shrinks_only_to_what_is_in_use():
    ledger = Ledger(100)
    held = ledger.reserve("x", 60)
    with pytest.raises(OutOfMemoryError, match="release"):
        ledger.set_budget(59)
    assert ledger.budget_bytes == 100
    ledger.set_budget(60)
    with pytest.raises(OutOfMemoryError):
        ledger.reserve("y", 1)
    held.release()
    ledger.reserve("y", 60)


@pytest.mark.parametrize("action", [lambda: Ledger(-1), lambda: Ledger(5).reserve("x", -1)])
def test_negative_sizes_are_mistakes(action):
    with pytest.raises(ValueError, match="negative"):
        action()


def test_threads_never_exceed_the_budget():
    ledger = Ledger(1000)
    taken = [0] * 8
    lock = threading.Lock()
    real = {"in_use": 0, "most": 0}

    def work(index):
        for size in range(1, 400):
            try:
                reservation = ledger.reserve("x", size % 250)
            except OutOfMemoryError:
                continue
            with lock:
                real["in_use"] += size % 250
                real["most"] = max(real["most"], real["in_use"])
            taken[index] += 1
            with lock:
                real["in_use"] -= size % 250
            reservation.release()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert real["most"] <= 1000
    assert ledger.in_use_bytes == 0
    assert all(taken)
