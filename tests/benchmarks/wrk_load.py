"""wrk as a load of streamed chats, and what its run came to. Tokens are counted by the bytes that came back. No script.

Having wrk look into every reply would cost it more than the servers take. Replies of one length differ by the text of
their tokens only, so a few are read in full first (`sample`), and say how many bytes a token is.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PROMPT_CHARS = 2000
_NUM_SAMPLES = 12

_SCRIPT = """
local words = {"alpha","beta","gamma","delta","order","house","paper","green","stone","river","light","table","seven"}
local number, headers, tail = 0, {}, nil
function init(args)
  math.randomseed(tonumber(args[4]))
  headers["Content-Type"] = "application/json"
  if args[3] ~= "" then headers["Authorization"] = "Bearer " .. args[3] end
  tail = '"}],"max_tokens":' .. args[2] .. ',"ignore_eos":true,"stream":true}'
  pool = {}
  for i = 1, 256 do
    local text = {}
    local size = 0
    while size < %(chars)d - 20 do
      local word = words[math.random(#words)]
      text[#text + 1] = word
      size = size + #word + 1
    end
    pool[i] = table.concat(text, " ")
  end
  first = '{"model":"' .. args[1] .. '","messages":[{"role":"user","content":"'
  run = args[4]
end
function request()
  number = number + 1
  local text = run .. "-" .. number .. " " .. pool[number %% #pool + 1]
  return wrk.format("POST", "/v1/chat/completions", headers, first .. text .. tail)
end
function done(summary, latency, requests)
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.bytes, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.errors.status, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Sample:
    """What one reply looks like."""

    bytes_a_token: float  # of a whole reply, headers included
    ttft_s: float  # median over the samples, one at a time


@dataclass(frozen=True)
class Load:
    """What a run of wrk came to."""

    requests: int  # that ended
    tokens: float  # that arrived, also of requests that had not ended
    duration_s: float
    num_errors: int
    p50_s: float  # of whole requests
    p99_s: float


def find_problem() -> str | None:
    """Return why there can be no load, or None."""
    return None if shutil.which("wrk") else "skipped, no wrk: apt-get install wrk"


def run_wrk(
    directory: Path, url: str, *, model: str, key: str | None, connections: int, max_tokens: int, seconds: float,
    bytes_a_token: float,
) -> Load:  # fmt: skip
    """Have `connections` clients ask again and again for `seconds`. Every prompt is another from its first word on."""
    script = directory / "load.lua"
    script.write_text(_SCRIPT % {"chars": PROMPT_CHARS})
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "120s", "-s", script, url]
    command += ["--", model, str(max_tokens), key or "", str(time.time_ns() % 1_000_000_007)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds + 60, check=True)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk said nothing that is understood: {done.stdout} {done.stderr}")
    requests, received, duration_us, num_failed, num_bad, p50_us, p99_us = map(int, found[1].split())
    return Load(
        requests=requests,
        tokens=received / bytes_a_token,
        duration_s=duration_us / 1e6,
        num_errors=num_failed + num_bad,
        p50_s=p50_us / 1e6,
        p99_s=p99_us / 1e6,
    )


def sample(port: int, model: str, key: str | None, max_tokens: int) -> Sample:
    """Stream a few replies over one connection. Raises `RuntimeError` unless every one has all its tokens."""
    total, ttfts = 0, []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(_NUM_SAMPLES):
            request = _request(model, key, max_tokens, number)
            sent_at = time.perf_counter()
            connection.sendall(request)
            reply, ttft_s = _read_reply(connection, sent_at)
            num_tokens = sum(map(_has_text, re.findall(rb"^data: (\{.*)$", _body(reply), re.MULTILINE)))
            if not max_tokens - 1 <= num_tokens <= max_tokens:  # the last one's text may be held back
                raise RuntimeError(f"{num_tokens} of {max_tokens} tokens in {reply!r}")
            total += len(reply)
            ttfts.append(ttft_s)
    return Sample(total / _NUM_SAMPLES / max_tokens, sorted(ttfts)[_NUM_SAMPLES // 2])


def _request(model: str, key: str | None, max_tokens: int, number: int) -> bytes:
    text = f"{time.time_ns()}-{number} " + "sample " * (PROMPT_CHARS // 7)
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _read_reply(connection: socket.socket, sent_at: float) -> tuple[bytes, float]:
    reply, ttft_s = b"", 0.0
    connection.settimeout(30)
    while not reply.endswith(b"\r\n0\r\n\r\n"):
        data = connection.recv(1 << 16)
        if not data:
            raise RuntimeError(f"the connection ended after {reply!r}")
        reply += data
        if not reply.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"refused: {reply[:500]!r}")
        if not ttft_s and _first_text.search(reply):
            ttft_s = time.perf_counter() - sent_at
    return reply, ttft_s


def _body(reply: bytes) -> bytes:
    """Return the body of a chunked reply; proxies cut it anywhere."""
    rest, body = reply.split(b"\r\n\r\n", 1)[1], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        num_bytes = int(size, 16)
        body, rest = body + rest[:num_bytes], rest[num_bytes + 2 :]
    return body


_first_text = re.compile(rb'"content": ?"[^"]')


def _has_text(event: bytes) -> bool:
    choices = json.loads(event).get("choices")
    return bool(choices and choices[0]["delta"].get("content"))
