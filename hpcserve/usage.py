"""What each tenant has used since the deployment was first started: one file in its state directory. Limits nobody."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hpcserve.errors import DeploymentError
from hpcserve.file_lock import locked
from hpcserve.state import StateDir


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant used, in all or in between."""

    requests: int = 0  # HTTP requests with its key
    rate_limited: int = 0  # of those, answered with a 429
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts' tokens, found in a prefix cache
    generated_tokens: int = 0
    first_used: float | None = None  # Unix time
    last_used: float | None = None  # Unix time

    def plus(self, more: Usage) -> Usage:
        """Return the sum, from the earliest use to the latest."""
        times = [each for each in (self.first_used, more.first_used, self.last_used, more.last_used) if each]
        return Usage(
            requests=self.requests + more.requests,
            rate_limited=self.rate_limited + more.rate_limited,
            prompt_tokens=self.prompt_tokens + more.prompt_tokens,
            cached_tokens=self.cached_tokens + more.cached_tokens,
            generated_tokens=self.generated_tokens + more.generated_tokens,
            first_used=min(times, default=None),
            last_used=max(times, default=None),
        )

    def since(self, earlier: Usage) -> Usage:
        """Return what was used after `earlier`, of which this is a later state."""
        return Usage(
            requests=self.requests - earlier.requests,
            rate_limited=self.rate_limited - earlier.rate_limited,
            prompt_tokens=self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
            generated_tokens=self.generated_tokens - earlier.generated_tokens,
            first_used=self.first_used,
            last_used=self.last_used,
        )


class UsageFile:
    """Totals by tenant, 0600 and replaced in one step.

    Frontends add to it, under a lock: what one that was restarted, or that runs beside, has counted is kept.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.path = state.path / "usage.json"

    def read(self) -> dict[str, Usage]:
        """Return what was used, by tenant; ended tenants stay. Raises `DeploymentError` for a damaged file."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, Usage])
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise DeploymentError(f"{self.path} cannot be read: {err.strerror}") from err
        except msgspec.MsgspecError as err:
            raise DeploymentError(f"{self.path} is damaged ({err}); remove it, and counting begins anew") from err

    def add(self, used: Mapping[str, Usage]) -> None:
        """Add what each tenant used since the last call. Raises `DeploymentError`; then nothing was added."""
        try:
            with locked(self._state.path / "usage.lock"):
                totals = self.read()
                for name, more in used.items():
                    totals[name] = totals.get(name, Usage()).plus(more)
                self._state.write_private(self.path, msgspec.json.format(msgspec.json.encode(totals)))
        except OSError as err:
            raise DeploymentError(f"{self.path} cannot be written: {err.strerror}") from err
