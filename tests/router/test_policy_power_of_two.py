from collections import Counter

from hpcserve.types import LoadReport, Role


def placed(made, num):
    return Counter(made.assign().decode for _ in range(num))


def test_loads_stay_closer_together_than_at_random(bench):
    spans = {}
    for policy in ("random", "power_of_two"):
        made = bench(policy=policy)
        made.add(Role.BOTH, *(f"w{i}" for i in range(16)))
        counts = placed(made, 640)
        spans[policy] = max(counts.values()) - min(counts.values())
    assert spans["power_of_two"] <= 8
    assert spans["power_of_two"] < spans["random"]


def test_the_most_loaded_of_all_is_never_chosen(bench):
    made = bench(policy="power_of_two")
    made.add(Role.BOTH, "a", "b", "c")
    made.router.report("b", LoadReport(num_running=1000))
    assert "b" not in placed(made, 100)


def test_the_same_seed_makes_the_same_choices(bench):
    def choices(seed):
        made = bench(policy="power_of_two", seed=seed)
        made.add(Role.BOTH, *(f"w{i}" for i in range(8)))
        return [made.assign().decode for _ in range(40)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_one_worker_is_enough(bench):
    made = bench(policy="power_of_two")
    made.add(Role.BOTH, "a")
    assert placed(made, 3) == {"a": 3}
