"""Fixtures that several suites share."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.fixtures_deployment", "tests.fixtures_devcluster"]

# The clock of a busy machine says nothing about the code.
settings.register_profile("hpcserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hpcserve")
