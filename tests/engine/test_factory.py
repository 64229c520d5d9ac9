"""The factory imports the engine that it makes and no other."""

import subprocess
import sys

CODE = """
import sys
from pathlib import Path
from hpcserve.config import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import Role
config = Config.model_validate({"engine": {"kind": sys.argv[1]}})
context = EngineContext(worker="w", role=Role.BOTH, host="127.0.0.1", moves_kv=False, scratch=Path("."))
heavy = {"vllm", "torch", "transformers", "nixl"}
print(type(make_engine(config, context)).__name__, *sorted(heavy & set(sys.modules)))
"""


def test_engines_are_made_without_importing_what_they_run_on() -> None:
    for kind, name in (("mock", "MockEngine"), ("vllm", "VllmEngine")):
        done = subprocess.run([sys.executable, "-c", CODE, kind], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [name]
