"""Fixtures that several suites share."""

pytest_plugins = ["tests.fixtures_deployment", "tests.fixtures_devcluster"]
