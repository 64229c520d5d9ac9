"""What the system tests use of `tests/fixtures_deployment.py`, whose fixtures every suite has."""

from tests.fixtures_deployment import HPCSERVE, Deployment, processes_of, run_hpcserve

__all__ = ["HPCSERVE", "Deployment", "processes_of", "run_hpcserve"]
