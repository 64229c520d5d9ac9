"""Fixtures that several suites share."""

import gc
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# One definition each: a fixture of a session that modules import is made again for each of them.
pytest_plugins = ["tests.contract.models", "tests.fixtures_deployment", "tests.fixtures_devcluster"]

# The clock of a busy machine says nothing about the code.
settings.register_profile("hpcserve", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("hpcserve"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "hpcserve"))


def pytest_configure(config: pytest.Config) -> None:
    """Have what is killed in a test, or leaves files by itself (vLLM's sockets, Chromium), leave them where they go.

    Their directory ends with the session; it is short, as sockets want it. `tmp_path` stays where pytest keeps it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # it has its session's
    usual = tempfile.gettempdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)
    tempfile.tempdir = os.environ["TMPDIR"] = own = tempfile.mkdtemp(prefix="ht-", dir=usual)
    config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of all later garbage collections: it is large, and it stays."""
    gc.collect()
    gc.freeze()
