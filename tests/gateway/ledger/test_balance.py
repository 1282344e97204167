"""The books of several gateways on one Triton, read at different instants, with everything that arrives late."""

import random

import pytest

from gateway.ledger.balance import LAG, Balance
from gateway.store.usage_totals import RecordedRows

MODEL = "sentiment"


class Books:
    """A database, a Triton and one gateway that compares them, reading by reading."""

    def __init__(self, max_batch=1):
        self.balance = Balance(lambda _model: max_batch)
        self.rows = {"completed": 0, "other": 0, "unknown": 0, "reserved": 0}

    def record(self, state, rows=1):
        self.rows[state] += rows

    def read(self, counted=0, *, times=1, cache_hits=0, database=True, written=True):
        for index in range(times):
            self.balance.count(MODEL, 0 if index else counted, 0 if index else cache_hits)
            self.balance.close()
            if database:
                until = self.balance.reading if written else -1
                self.balance.check({MODEL: RecordedRows(**self.rows)}, until)
            else:
                self.balance.interrupt()
        return self.balance.imbalance[MODEL]


@pytest.fixture
def books():
    """Open: whatever happened before is history."""
    books = Books()
    books.record("completed", 1000)
    assert books.read(times=3 * LAG) == 0
    assert books.balance.compared[MODEL]
    return books


SETTLED = 3 * LAG


def test_equal_books_balance(books):
    for _ in range(5):
        books.record("completed", 3)
        assert books.read(3, times=2) == 0
    assert books.read(times=SETTLED) == 0


def test_before_the_books_are_open_nothing_is_judged():
    books = Books()
    assert books.read(7) == 0
    assert not books.balance.compared[MODEL]
    assert books.read(times=LAG) == 0
    assert not books.balance.compared[MODEL]


def test_what_triton_counts_a_reading_later_is_no_imbalance(books):
    books.record("completed", 2)
    assert books.read(0) == 0
    assert books.read(2, times=SETTLED) == 0


def test_what_another_gateway_records_seconds_later_is_no_imbalance(books):
    assert books.read(5, times=LAG) == 0
    books.record("completed", 5)
    assert books.read(times=SETTLED) == 0


def test_what_this_gateway_has_not_written_is_not_judged(books):
    assert books.read(5, times=3 * LAG, written=False) == 0
    books.record("completed", 5)
    assert books.read(times=SETTLED) == 0


def test_a_call_in_flight_may_or_may_not_be_counted(books):
    books.record("reserved", 4)
    assert books.read(0, times=SETTLED) == 0
    assert books.read(4, times=SETTLED) == 0
    books.record("reserved", -4)
    books.record("completed", 4)
    assert books.read(times=SETTLED) == 0


def test_calls_in_flight_when_a_gateway_starts_are_counted_by_it_later():
    books = Books()
    books.record("reserved", 3)
    assert books.read(times=2 * LAG) == 0
    books.record("reserved", -3)
    books.record("completed", 3)
    assert books.read(3, times=SETTLED) == 0


def test_a_failed_call_may_have_been_executed_or_not(books):
    books.record("other", 5)
    assert books.read(3, times=SETTLED) == 0


def test_a_call_given_up_may_be_counted_long_after_but_only_once(books):
    books.record("other", 1)
    assert books.read(times=SETTLED) == 0
    assert books.read(1, times=SETTLED) == 0
    assert books.read(1, times=SETTLED) == 1


def test_billed_and_never_counted_is_negative_and_stays(books):
    books.record("completed", 2)
    assert books.read(1, times=SETTLED) == -1
    books.record("completed", 1)
    assert books.read(1, times=SETTLED) == -1


def test_counted_and_never_recorded_is_positive_and_stays(books):
    books.record("completed", 1)
    assert books.read(4, times=SETTLED) == 3
    assert books.read(times=SETTLED) == 3
    books.record("completed", 2)
    assert books.read(2, times=SETTLED) == 3


def test_an_imbalance_shows_while_calls_are_in_flight(books):
    books.record("reserved", 1)
    assert books.read(5, times=LAG + 1) == 4


def test_a_small_imbalance_stays_under_load(books):
    assert books.read(2, times=LAG + 1) == 2
    for _ in range(100):
        books.record("completed", 50)
        assert books.read(50) == 2
    assert books.read(times=SETTLED) == 2


def test_the_journal_of_a_killed_gateway_settles_what_it_left(books):
    assert books.read(10, times=SETTLED) == 10  # executed, and its records are in the dead gateway's journal
    books.record("completed", 7)
    books.record("unknown", 3)
    assert books.read(times=SETTLED) == 0


def test_unknown_calls_explain_no_more_than_they_are(books):
    assert books.read(10, times=SETTLED) == 10
    books.record("completed", 5)
    books.record("unknown", 1)
    assert books.read(times=SETTLED) == 4


def test_a_restart_of_triton_begins_new_books(books):
    books.record("completed", 3)  # inferred, then the counters were lost
    books.record("reserved", 2)
    books.balance.restart(MODEL)
    assert books.read(times=SETTLED) == 0
    books.record("reserved", -2)
    books.record("completed", 2)
    assert books.read(times=SETTLED) == 0
    books.record("completed", 1)
    assert books.read(1, times=SETTLED) == 0
    assert books.read(4, times=SETTLED) == 4


def test_while_the_database_is_away_nothing_is_judged_and_then_all_of_it(books):
    assert books.read(100, times=5 * LAG, database=False) == 0
    assert not books.balance.compared[MODEL]
    assert books.read(times=LAG) == 0  # the gateways are catching up
    books.record("completed", 100)
    assert books.read(times=SETTLED) == 0
    assert books.balance.compared[MODEL]
    assert books.read(1, times=SETTLED) == 1


@pytest.mark.parametrize("rows", [1, 8])
def test_answers_from_the_cache_are_rows_too(rows):
    books = Books(max_batch=8)
    books.read(times=SETTLED)
    books.record("completed", 2 + 3 * rows)
    assert books.read(2, cache_hits=3, times=SETTLED) == 0


def test_more_rows_than_the_cache_can_have_answered_are_missing():
    books = Books(max_batch=4)
    books.read(times=SETTLED)
    books.record("completed", 10)
    assert books.read(cache_hits=2, times=SETTLED) == -2


def test_more_answers_from_the_cache_than_calls():
    books = Books(max_batch=4)
    books.read(times=SETTLED)
    books.record("completed", 1)
    assert books.read(cache_hits=2, times=SETTLED) == 1


@pytest.mark.parametrize("foreign", [0, 7])
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_execution_counting_and_recording_balances(foreign, seed):
    """Calls that fail or not, recorded after delays of their own, under load and in quiet stretches."""
    chance = random.Random(seed)
    books = Books()
    calls, found = [], set()
    for step in range(42 * LAG):
        executed = 0
        for _ in range(chance.randrange(6) if (step // (4 * LAG)) % 3 < 2 and step < 38 * LAG else 0):
            rows, failed = chance.randrange(1, 5), not foreign and chance.random() < 0.1
            begin = step + chance.randrange(LAG - 2)
            calls.append((begin, begin + chance.randrange(4), rows, "other" if failed else "completed"))
            executed += rows if not failed or chance.random() < 0.5 else 0
        for begin, end, rows, state in calls:
            if begin == step:
                books.record("reserved", rows)
            if end == step:
                books.record("reserved", -rows)
                books.record(state, rows)
        found.add(books.read(executed + (foreign if step == 21 * LAG else 0)))
    assert books.read(times=SETTLED) == foreign
    assert all(0 <= value <= foreign for value in found)
