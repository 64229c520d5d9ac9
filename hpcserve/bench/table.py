"""A result as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hpcserve.bench.result import BenchResult


def print_result(result: BenchResult) -> None:
    """Print what was measured beside what was fitted, and the model, to standard output."""
    console = Console()
    console.print(_prefill(result))
    console.print(_decode(result))
    totals = Table(show_header=False)
    for label, text in _totals(result):
        totals.add_row(label, text)
    console.print(totals)


def _prefill(result: BenchResult) -> Table:
    table = _table("prefill, tokens", "TTFT ms", "pass ms", "fitted ms", "off")
    for point in result.prefill:
        times = (f"{value:,.2f}" for value in (point.ttft_ms, point.pass_ms, point.fitted_ms))
        table.add_row(f"{point.num_tokens:,}", *times, f"{point.error:+.1%}")
    return table


def _decode(result: BenchResult) -> Table:
    table = _table("decode, sequences", "tokens", "KV read", "step ms", "fitted ms", "off")
    for point in result.decode:
        sizes = (f"{point.num_sequences}", f"{point.context:,}", f"{point.share:.1%}")
        table.add_row(*sizes, f"{point.step_ms:,.2f}", f"{point.fitted_ms:,.2f}", f"{point.error:+.1%}")
    return table


def _totals(result: BenchResult) -> list[tuple[str, str]]:
    info, fit = result.info, result.fit
    kv = f"{info.num_kv_blocks:,} blocks of {info.block_size} tokens"
    if result.kv_bytes_per_token is not None:
        kv += f", {result.kv_bytes_per_token:,} bytes a token"
    return [
        ("prefill, n tokens", f"{_terms(fit.prefill_ms, 'n')} ms"),
        ("off, median", f"{result.prefill_error:.1%}"),
        ("decode, share u", f"{_terms(fit.decode_ms, 'u')}, at least {fit.min_decode_ms:.4g} ms"),
        ("off, median", f"{result.decode_error:.1%}"),
        ("TTFT beyond pass", f"{result.ttft_overhead_ms:.2f} ms"),
        ("KV cache", kv),
    ]


def _terms(coefficients: tuple[float, float, float], x: str) -> str:
    square, linear, constant = (f"{value:.4g}" for value in coefficients)
    return f"{square} {x}\N{SUPERSCRIPT TWO} + {linear} {x} + {constant}".replace("+ -", "- ")


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
