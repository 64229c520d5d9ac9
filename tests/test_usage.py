from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.errors import DeploymentError
from hpcserve.state import StateDir
from hpcserve.usage import Usage, UsageFile


@pytest.fixture
def totals(tmp_path: Path) -> UsageFile:
    return UsageFile(StateDir(tmp_path))


def test_what_several_frontends_add_is_summed_up_by_tenant(totals: UsageFile) -> None:
    totals.add({"alice": Usage(requests=2, prompt_tokens=10, first_used=5.0, last_used=9.0)})
    other = UsageFile(StateDir(totals.path.parent))
    other.add({"alice": Usage(requests=1, cached_tokens=4, first_used=3.0, last_used=4.0), "bob": Usage(requests=1)})
    assert totals.read() == {
        "alice": Usage(requests=3, prompt_tokens=10, cached_tokens=4, first_used=3.0, last_used=9.0),
        "bob": Usage(requests=1),
    }


def test_the_file_is_for_its_owner_only(totals: UsageFile) -> None:
    assert totals.read() == {}
    totals.add({"alice": Usage(requests=1)})
    assert totals.path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_named_and_left_alone(totals: UsageFile) -> None:
    totals.path.write_text("[]")
    with pytest.raises(DeploymentError, match=r"usage\.json is damaged"):
        totals.add({"alice": Usage(requests=1)})
    assert totals.path.read_text() == "[]"


def test_the_difference_of_two_states_adds_up_to_the_later_one() -> None:
    early = Usage(requests=1, prompt_tokens=2, first_used=1.0, last_used=1.0)
    late = Usage(requests=4, rate_limited=1, prompt_tokens=9, generated_tokens=3, first_used=1.0, last_used=7.0)
    assert early.plus(late.since(early)) == late
