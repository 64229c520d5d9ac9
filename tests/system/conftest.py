"""What the system tests use of `tests/fixtures_deployment.py`, whose fixtures every suite has."""

from tests.fixtures_deployment import HPCSERVE, Deployment, processes_of, run_hpcserve
from tests.system.vllm_alone import alone

__all__ = ["HPCSERVE", "Deployment", "alone", "processes_of", "run_hpcserve"]
