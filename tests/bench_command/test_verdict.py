from hpcserve.bench.result import DecodePoint, PrefillPoint
from hpcserve.bench.verdict import find_warnings


def passes(*, fitted: float, spread: float = 0.01) -> list[PrefillPoint]:
    return [
        PrefillPoint(num_tokens=n, ttft_ms=n + 1.0, pass_ms=float(n), spread=spread, fitted_ms=n * fitted)
        for n in (10, 100, 1000)
    ]


def steps(*points: tuple[int, float, float, float], spread: float = 0.01) -> list[DecodePoint]:
    return [
        DecodePoint(
            num_sequences=many, context=int(share * 10_000), share=share, step_ms=took, spread=spread, fitted_ms=fitted
        )
        for many, share, took, fitted in points
    ]


GOOD_STEPS = steps((1, 0.1, 5, 5), (8, 0.8, 20, 20.5))


def test_a_good_fit_has_no_warnings() -> None:
    assert list(find_warnings(passes(fitted=1.1), GOOD_STEPS)) == []


def test_a_poor_prefill_fit_names_the_worst_length() -> None:
    (warning,) = find_warnings(passes(fitted=1.2), GOOD_STEPS)
    assert "prefill: the fit is 20% off" in warning
    assert "--max-prompt" in warning


def test_repeats_that_scatter_are_blamed_on_the_machine() -> None:
    (warning,) = find_warnings(passes(fitted=1.2, spread=0.3), GOOD_STEPS)
    assert "scatter by 30%" in warning
    assert "something else runs" in warning


def test_steps_that_depend_on_the_number_of_sequences_show_two_batches_and_a_way_out() -> None:
    points = steps((1, 0.02, 4, 4.1), (6, 0.4, 10, 20), (60, 0.41, 40, 20), (100, 0.8, 60, 35))
    (warning,) = find_warnings(passes(fitted=1.0), points)
    assert "6 sequences that read 40%: 10.0 ms; 60 that read 41%: 40.0 ms" in warning
    assert "--context" in warning


def test_a_cache_that_was_hardly_read_is_said() -> None:
    (warning,) = find_warnings(passes(fitted=1.0), steps((1, 0.01, 5, 5), (2, 0.2, 6, 6)))
    assert "up to 20% of the KV cache only" in warning
