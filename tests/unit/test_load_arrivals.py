from kvgauge.load.arrivals import ClosedLoop, Due, Waves, arrivals_of


def test_closed_loop_slots_begin_spread_over_the_window():
    loop = ClosedLoop(slots=4, requests=100, start_ns=1_000, stagger_ns=400)
    assert loop.first() == [Due(1_000, 0), Due(1_100, 1), Due(1_200, 2), Due(1_300, 3)]


def test_a_closed_loop_slot_is_due_again_the_moment_it_has_ended():
    loop = ClosedLoop(slots=2, requests=3, start_ns=0)
    loop.first()
    assert loop.ended(1, 77) == [Due(77, 1)]
    assert loop.ended(0, 99) == []


def test_more_slots_than_requests_leaves_slots_unused():
    assert len(ClosedLoop(slots=8, requests=3, start_ns=0).first()) == 3
    assert len(Waves(slots=8, requests=3, start_ns=0).first()) == 3


def test_a_wave_waits_for_the_last_of_the_wave_before_it():
    waves = Waves(slots=3, requests=5, start_ns=10)
    assert waves.first() == [Due(10, 0), Due(10, 1), Due(10, 2)]
    assert waves.ended(0, 50) == []
    assert waves.ended(2, 70) == []
    assert waves.ended(1, 60) == [Due(70, 0), Due(70, 1)]
    assert waves.ended(0, 80) == []
    assert waves.ended(1, 81) == []


def test_single_sends_one_after_another_whatever_the_concurrency():
    single = arrivals_of("single", slots=9, requests=2, start_ns=5, stagger_ns=1_000)
    assert single.first() == [Due(5, 0)]
    assert single.ended(0, 6) == [Due(6, 0)]
    assert single.ended(0, 7) == []


def test_every_request_is_due_exactly_once():
    for load in ("single", "wave", "closed"):
        arrivals = arrivals_of(load, slots=4, requests=10, start_ns=0, stagger_ns=9)
        due, count, now_ns = arrivals.first(), 0, 0
        while due:
            count += 1
            now_ns += 5
            due = due[1:] + arrivals.ended(due[0].slot, now_ns)
        assert count == 10
