import pytest

from hpcserve.simulate.sweep import sweep


def test_the_smallest_fleet_that_meets_the_objective_is_found(scenario, ask):
    # 8 prompts at once, of which one worker computes one in 0.13 s
    requests = [ask(num_output=2, first_id=100 * i) for i in range(8)]
    result = sweep(scenario(workers=16, slo_ttft_ms=300), requests, 1.0, 1)
    assert result.smallest is not None
    assert result.smallest.num_workers == 4
    assert "4 workers meet TTFT <= 300 ms for 100% of requests" in result.verdict
    assert result.smallest.node_hours == pytest.approx(4 * result.smallest.report.duration_s / 3600)
    sizes = [trial.num_workers for trial in result.trials]
    assert sizes == sorted(sizes)
    assert {3, 4, 16} <= set(sizes)


def test_splits_are_tried_where_one_pool_is_not_enough(scenario, ask):
    # decoding beside the prefills of others takes longer than decoding alone
    requests = [ask(at=0.2 * i, num_prompt=8000, num_output=60, first_id=100 * i) for i in range(20)]
    result = sweep(scenario(workers=4, slo_itl_ms=9.0), requests, 1.0, 1)
    assert result.smallest is not None
    assert result.smallest.report.workers == "1 prefill + 1 decode"
    assert any(trial.report.workers == "2" and not trial.meets_slo for trial in result.trials)


def test_several_workers_share_a_node(scenario, ask):
    result = sweep(scenario(workers=1), [ask()], 1.0, 4)
    assert result.smallest is not None
    assert result.smallest.node_hours == pytest.approx(result.smallest.report.duration_s / 3600)


def test_an_objective_that_nobody_meets_is_said_so(scenario, ask):
    result = sweep(scenario(workers=2, slo_ttft_ms=1.0), [ask()], 0.5, 1)
    assert result.smallest is None
    assert "no fleet of up to 2 workers meets TTFT <= 1 ms for 50% of requests" in result.verdict
