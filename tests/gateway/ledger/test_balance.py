import random

import pytest

from gateway.ledger.balance import Balance

MODEL = "sentiment"


@pytest.fixture
def balance():
    return Balance()


def serve(balance, rows=1, completed=True):
    balance.accept(MODEL, rows)
    balance.end(MODEL, rows, rows, completed=completed)


def read(balance, counted, times=1):
    for index in range(times):
        balance.count(MODEL, 0 if index else counted)
        balance.check()
    return balance.imbalance[MODEL]


def test_equal_books_balance(balance):
    for _ in range(5):
        serve(balance, rows=3)
        assert read(balance, 3, times=2) == 0


def test_what_triton_counts_a_reading_later_is_no_imbalance(balance):
    serve(balance, rows=2)
    assert read(balance, 0) == 0
    assert read(balance, 2) == 0
    assert read(balance, 0, times=3) == 0


def test_a_call_in_flight_may_or_may_not_be_counted(balance):
    balance.accept(MODEL, 4)
    assert read(balance, 0, times=3) == 0
    assert read(balance, 4, times=3) == 0
    balance.end(MODEL, 4, 4, completed=True)
    assert read(balance, 0, times=3) == 0


def test_a_failed_call_may_have_been_executed_or_not(balance):
    serve(balance, rows=5, completed=False)
    assert read(balance, 3, times=3) == 0


def test_a_call_given_up_may_be_counted_long_after(balance):
    serve(balance, rows=1, completed=False)
    assert read(balance, 0, times=10) == 0
    assert read(balance, 1, times=3) == 0
    assert read(balance, 1, times=3) == 1  # but only once


def test_billed_and_never_counted_is_negative_and_stays(balance):
    serve(balance, rows=2)
    assert read(balance, 1, times=3) == -1
    serve(balance)
    assert read(balance, 1, times=3) == -1


def test_counted_and_never_asked_for_is_positive_and_stays(balance):
    serve(balance)
    assert read(balance, 4, times=3) == 3
    assert read(balance, 0, times=3) == 3


def test_an_imbalance_shows_while_calls_are_in_flight(balance):
    balance.accept(MODEL, 1)
    assert read(balance, 5) == 4


def test_a_restart_of_triton_begins_new_books(balance):
    serve(balance, rows=3)  # inferred, then the counters were lost
    balance.accept(MODEL, 2)
    balance.restart(MODEL)
    assert read(balance, 0, times=3) == 0
    balance.end(MODEL, 2, 2, completed=True)
    assert read(balance, 0, times=3) == 0
    serve(balance)
    assert read(balance, 1, times=3) == 0


def test_rows_that_become_known_at_the_end_count(balance):
    balance.accept(MODEL, 1)
    balance.end(MODEL, 1, 6, completed=True)
    assert read(balance, 6, times=3) == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_execution_counting_and_answering_balances(balance, seed):
    chance = random.Random(seed)
    waiting, executed, uncounted = [], [], 0
    for _ in range(400):
        action = chance.choice(("accept", "execute", "answer", "count", "read"))
        if action == "accept":
            rows = chance.randrange(1, 5)
            balance.accept(MODEL, rows)
            waiting.append(rows)
        elif action == "execute" and waiting:
            executed.append(waiting.pop(chance.randrange(len(waiting))))
            uncounted += executed[-1]
        elif action == "answer" and executed:
            rows = executed.pop()
            balance.end(MODEL, rows, rows, completed=chance.random() < 0.9)
        elif action == "read":
            balance.count(MODEL, uncounted)  # a reading has all that was executed before it
            uncounted = 0
            balance.check()
            assert balance.imbalance.get(MODEL, 0) == 0
