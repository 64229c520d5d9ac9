"""The HTTP server: OpenAI's endpoints in front of a `Backend`. No routing logic, and neither vLLM nor torch in here."""

from hpcserve.frontend.app import make_app
from hpcserve.frontend.auth import auth_required
from hpcserve.frontend.backend import Backend
from hpcserve.frontend.key_ring import KeyRing
from hpcserve.frontend.site import Site, start_site
from hpcserve.frontend.tokenizer import Tokenizer

__all__ = ["Backend", "KeyRing", "Site", "Tokenizer", "auth_required", "make_app", "start_site"]
