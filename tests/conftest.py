"""Fixtures that several suites share."""

from hypothesis import settings

pytest_plugins = ["tests.fixtures_deployment", "tests.fixtures_devcluster"]

settings.register_profile("hpcserve", deadline=None)  # the clock of a busy machine says nothing about the code
settings.load_profile("hpcserve")
