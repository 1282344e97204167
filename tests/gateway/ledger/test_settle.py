import pytest

from gateway.ledger.settle import Settler
from gateway.types import Units
from tests.gateway.ledger.support import CountingTriton, make_prices, make_record


class Books:
    """A settler, a Triton and a clock, read once a second."""

    def __init__(self, triton=None, **models):
        self.settler = Settler(make_prices(**models))
        self.triton = triton or CountingTriton()
        self.now = 1000.0

    def read(self):
        self.now += 1
        return self.settler.observe(self.triton.read(), self.now)

    def complete(self, **values):
        record = make_record(**values)
        self.settler.completed(record)
        return record


@pytest.fixture
def books():
    books = Books()
    books.triton.infer("sentiment", 0)
    books.read()
    return books


def test_time_is_split_by_tokens_and_adds_up_to_the_nanosecond(books):
    records = [books.complete(tokens=tokens) for tokens in (1, 2, 4)]
    books.triton.infer("sentiment", 3, compute_ns=1_000_001, queue_ns=700)
    settlements = books.read()
    assert [settlement.usage_id for settlement in settlements] == [record.usage_id for record in records]
    assert [settlement.compute_ns for settlement in settlements] == [142857, 285714, 571430]
    assert sum(settlement.queue_ns for settlement in settlements) == 700
    assert {settlement.basis for settlement in settlements} == {"measured"}
    assert settlements[0].cost_pico_usd == settlements[0].billed_pico_usd == 14286  # 0.1 pico-USD a nanosecond
    assert books.settler.pending == 0


def test_pixels_and_rows_where_there_are_no_tokens():
    books = Books()
    books.triton.infer("digits", 0)
    books.triton.infer("identity", 0)
    books.read()
    for rows in (1, 3):
        books.complete(model="digits", pixels=784 * rows, rows=rows)
        books.complete(model="identity", rows=rows)
    books.triton.infer("digits", 4, compute_ns=400)
    books.triton.infer("identity", 4, compute_ns=800)
    assert [settlement.compute_ns for settlement in books.read()] == [100, 300, 200, 600]


def test_calls_that_cannot_be_compared_by_tokens_are_compared_by_rows(books):
    books.complete(tokens=1000, rows=1)
    books.complete(tokens=0, rows=3)  # tensors sent raw
    books.triton.infer("sentiment", 4, compute_ns=400)
    assert [settlement.compute_ns for settlement in books.read()] == [100, 300]


def test_a_call_that_triton_has_not_counted_yet_waits_for_the_next_reading(books):
    first, second = books.complete(), books.complete()
    books.triton.infer("sentiment", 1, compute_ns=100)
    assert [settlement.usage_id for settlement in books.read()] == [first.usage_id]
    assert books.read() == []
    books.triton.infer("sentiment", 1, compute_ns=300)
    (settlement,) = books.read()
    assert (settlement.usage_id, settlement.compute_ns) == (second.usage_id, 300)


def test_what_is_left_of_a_reading_is_claimed_by_the_call_it_belongs_to(books):
    books.complete()
    books.triton.infer("sentiment", 2, compute_ns=200)  # the second answer is still on its way
    assert [settlement.compute_ns for settlement in books.read()] == [100]
    books.complete()
    assert [settlement.compute_ns for settlement in books.read()] == [100]


def test_nothing_is_settled_twice(books):
    books.complete()
    books.triton.infer("sentiment", 5, compute_ns=500)
    assert len(books.read()) == 1
    assert [books.read() for _ in range(20)] == [[]] * 20


def test_time_that_another_client_used_is_not_charged_here(books):
    for _ in range(20):
        books.complete(rows=1)
        books.triton.infer("sentiment", 10, compute_ns=1000)
        assert [settlement.compute_ns for settlement in books.read()] == [100]
    assert books.settler.unclaimed["sentiment"] > 100


def test_after_a_restart_of_triton_its_counters_begin_again(books):
    books.complete(tokens=10)
    books.triton.infer("sentiment", 1, compute_ns=1000)
    books.read()
    books.triton.restart()
    books.complete(tokens=10)
    books.triton.infer("sentiment", 1, compute_ns=400)
    (settlement,) = books.read()
    assert (settlement.compute_ns, settlement.basis) == (400, "measured")


def test_what_a_restart_lost_is_estimated_after_some_readings(books):
    for _ in range(3):
        books.complete(tokens=10)
        books.triton.infer("sentiment", 1, compute_ns=1000)
        books.read()
    books.complete(tokens=20)  # inferred, but Triton died before it was read
    books.triton.restart()
    settlements = [settlement for _ in range(15) for settlement in books.read()]
    assert [(settlement.basis, settlement.compute_ns) for settlement in settlements] == [("estimate", 2000)]


def test_without_readings_calls_are_estimated_too(books):
    books.complete(tokens=5, compute_ns=77)
    settlements = [settlement for _ in range(15) for settlement in books.settler.observe(None, 0.0)]
    assert [(settlement.basis, settlement.compute_ns) for settlement in settlements] == [("estimate", 77)]


def test_what_a_server_did_before_it_was_met_is_not_charged_but_tells_the_pace():
    books = Books()
    books.triton.infer("sentiment", 1000, compute_ns=5_000_000)
    books.complete(rows=1)
    assert books.read() == []
    assert books.settler.estimate("sentiment", Units(rows=3))[0] == 15_000
    assert books.settler.estimate("sentiment", Units(rows=3), 9_000)[0] == 9_000  # it cannot have taken longer


def test_servers_and_versions_are_summed():
    settler = Settler(make_prices())
    first, second = CountingTriton("a"), CountingTriton("b")
    for triton in (first, second):
        triton.infer("sentiment", 0)
    settler.observe(first.read() + second.read(), 1.0)
    for _ in range(2):
        settler.completed(make_record())
    first.infer("sentiment", 1, compute_ns=100)
    second.infer("sentiment", 1, compute_ns=300)
    assert [settlement.compute_ns for settlement in settler.observe(first.read() + second.read(), 2.0)] == [200, 200]


def test_a_model_loaded_later_is_charged_from_its_first_inference(books):
    books.triton.infer("late", 1, compute_ns=500)
    books.complete(model="late")
    assert [settlement.compute_ns for settlement in books.read()] == [500]


def test_cache_hits_cost_nothing_and_are_counted(books):
    for _ in range(4):
        books.complete(tokens=10)
    books.triton.infer("sentiment", 1, compute_ns=1000, cache_hits=3)
    settlements = books.read()
    assert sum(settlement.compute_ns for settlement in settlements) == 1000
    assert sum(settlement.cache_hits for settlement in settlements) == 3


def test_test_keys_cost_but_owe_nothing(books):
    books.complete(test=True)
    books.triton.infer("sentiment", 1, compute_ns=1000)
    (settlement,) = books.read()
    assert (settlement.cost_pico_usd, settlement.billed_pico_usd) == (100, 0)


def test_a_list_price_is_billed_in_place_of_the_cost():
    books = Books(sentiment={"per_request": 0.001, "per_1k_tokens": 0.002})
    books.triton.infer("sentiment", 0)
    books.read()
    books.complete(tokens=500)
    books.triton.infer("sentiment", 1, compute_ns=1000)
    (settlement,) = books.read()
    assert settlement.cost_pico_usd == 100
    assert settlement.billed_pico_usd == 2 * 10**9  # 0.001 + 0.5 x 0.002 USD
    assert settlement.prices_version == "test"


def test_estimates_follow_recent_readings_and_forget_old_ones(books):
    assert books.settler.estimate("sentiment", Units(tokens=10)) == (0, 0)
    for pace in (100, 1000):
        for _ in range(600):
            books.complete(tokens=10)
            books.triton.infer("sentiment", 1, compute_ns=10 * pace)
            books.read()
        compute_ns, billed = books.settler.estimate("sentiment", Units(tokens=7, rows=1))
        assert compute_ns == pytest.approx(7 * pace, rel=0.01)
        assert billed == pytest.approx(0.7 * pace, rel=0.01)


def test_giving_up_settles_everything_by_estimate(books):
    books.complete(compute_ns=50)
    assert [(settlement.basis, settlement.compute_ns) for settlement in books.settler.give_up()] == [("estimate", 50)]
    assert books.settler.pending == 0
