"""Stage `cancellations`: requests of random lengths to the server of `moa serve`, of which some are given up."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import Coroutine, Mapping
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI
from serving_parts.answers import same
from serving_parts.processes import server
from serving_parts.sizes import Sizes
from serving_parts.texts import texts
from transformers import AutoTokenizer

GIVEN_UP = 0.4
"""Part of the requests that are given up."""
AT_ONCE = 16
MINUTES = 20
"""Longest that the server may take to start."""


def cancellations(model: str, plan: str, sizes: Sizes) -> dict[str, Any]:
    """Return how many answers were finished, given up, lost, and other ones than when asked alone, and pages in use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", str(sizes.longest), "--max-num-seqs", str(AT_ONCE)]
    options += ["--enforce-eager", "--kv-cache-memory-bytes", str(sizes.pool << 20), "--disable-uvicorn-access-log"]
    command = [sys.executable, "-m", "moa", "serve", model, "--plan", plan, "--engine", "vllm", "--port", str(port)]
    with server([*command, "--", *options], environment(os.environ)) as process:
        return asyncio.run(asked(Server(process, port, model), model, sizes))


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the server's environment: ours, without what engines in this process are told there."""
    kept = {name: value for name, value in ours.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", **kept, **quiet}


class Server:
    """The server and a client of it."""

    def __init__(self, process: Any, port: int, model: str) -> None:
        self._process, self._url, self._model = process, f"http://127.0.0.1:{port}", model
        self._client = AsyncOpenAI(base_url=f"{self._url}/v1", api_key="none", timeout=3600, max_retries=0)

    async def ready(self) -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(60 * MINUTES):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended with {self._process.returncode}")
                try:
                    if (await client.get(f"{self._url}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(1)
        raise RuntimeError(f"the server was not ready after {MINUTES} minutes")

    async def in_use(self) -> float:
        """Return the part of all pages that are in use, at the end of the last step."""
        async with httpx.AsyncClient() as client:
            said = (await client.get(f"{self._url}/metrics")).text
        return float(re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", said, re.MULTILINE)[1])

    async def answer(self, ids: list[int], new: int, stop_after: int | None = None) -> list[dict[str, float]] | None:
        """Return the tokens of an answer with their logprobs and those of the next best; None if it was given up.

        Args:
            ids: The prompt.
            new: Tokens of the answer.
            stop_after: The connection is closed after so many of them; None waits for all.
        """
        stream = await self._client.completions.create(
            model=self._model, prompt=ids, max_tokens=new, temperature=0, logprobs=2, stream=True,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
        )  # fmt: skip
        found: list[dict[str, float]] = []
        async with stream:
            if stop_after == 0:
                return None
            async for part in stream:
                for choice in part.choices:
                    given = choice.logprobs
                    pairs = zip(given.tokens, given.top_logprobs, strict=True) if given else ()
                    found += [{token: top[token]} | top for token, top in pairs]
                if stop_after is not None and len(found) >= stop_after:
                    return None
        return found


async def asked(server: Server, model: str, sizes: Sizes) -> dict[str, Any]:
    """Return what `cancellations` does."""
    random = np.random.default_rng(0)
    lengths = random.integers(*sizes.texts, sizes.calls).tolist()
    prompts = texts(AutoTokenizer.from_pretrained(model), lengths)
    replies = random.integers(*sizes.replies, sizes.calls).tolist()
    stops = [int(random.integers(0, new)) if random.random() < GIVEN_UP else None for new in replies]
    waits = random.exponential(0.2, sizes.calls).cumsum().tolist()
    await server.ready()

    async def later(i: int) -> list[dict[str, float]] | None:
        await asyncio.sleep(waits[i])
        return await server.answer(prompts[i], replies[i], stops[i])

    together = await asyncio.gather(*map(later, range(sizes.calls)), return_exceptions=True)
    kept = [i for i in range(sizes.calls) if stops[i] is None]
    lost = [i for i in kept if not isinstance(together[i], list) or len(together[i]) != replies[i]]
    await server.answer([1], 1)  # a step more, so that the server tells what is in use now
    in_use = await server.in_use()
    whole = [i for i in kept if i not in lost]
    alone = [await tried(server.answer(prompts[i], replies[i])) for i in whole]
    changed = [i for i, found in zip(whole, alone, strict=True) if not same(together[i], found)]
    errors = [f"{type(x).__name__}: {x}" for x in (*together, *alone) if isinstance(x, BaseException)]
    return {
        "finished": len(whole), "given up": sizes.calls - len(kept), "lost": len(lost), "errors": len(errors),
        "first errors": errors[:3], "changed": len(changed), "pages in use": in_use,
        "pages in use at the end": await server.in_use(),
    }  # fmt: skip


async def tried(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return the answer, or the error that came instead."""
    [found] = await asyncio.gather(answer, return_exceptions=True)
    return found
