"""Time calls on the device: in turns, by medians, device events or CUDA graphs; measure what the device can reach."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import torch
import triton

from moa.hf.environment import environment

Call = Callable[[], Any]
Row = dict[str, Any]

MOST = 16e9
"""Bytes of the largest cache that is timed: two or three forms of it are in memory at once."""


class Bench:
    """The device, its clock, and the time left.

    Attributes:
        dry: Tiny sizes on the CPU under the interpreter; times are then meaningless.
        device: Where tensors go.
        skipped: What was not run, because no time or memory was left, or because it is too large.
    """

    def __init__(self, dry: bool) -> None:
        self.dry, self.end, self.skipped = dry, time.monotonic(), list[str]()
        if not dry and not torch.cuda.is_available():
            raise SystemExit("no GPU is visible: run on one, or pass --dry")
        self.device = torch.device("cpu" if dry else "cuda")
        self.repeats = 1 if dry else 20
        self._flush = torch.empty(1 if dry else 256 << 20, dtype=torch.uint8, device=self.device)
        torch.manual_seed(0)

    def about(self) -> dict[str, Any]:
        """Return what the figures depend on, and when they were made."""
        dry = {"device": "dry run on the CPU, no figure counts"} if self.dry else {}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        versions = environment(device=self.device) | {"triton": triton.__version__}
        return {**versions, **dry, "date": date, "repeats": self.repeats}

    def time(self, calls: dict[str, Call], cold: bool = True) -> dict[str, float]:
        """Return each call's median seconds, taken in turns `repeats` times after two rounds that are not measured.

        Args:
            calls: By name.
            cold: Overwrite the L2 cache before each.
        """
        taken: dict[str, list[Any]] = {name: [] for name in calls}
        for round_ in range(-2 if not self.dry else 0, self.repeats):
            for name, call in calls.items():
                if cold:
                    self._flush.zero_()
                stop = self._clock()
                call()
                if round_ >= 0:
                    taken[name].append(stop())
        if not self.dry:
            torch.cuda.synchronize()
        return {name: statistics.median(read() for read in reads) for name, reads in taken.items()}

    def _clock(self) -> Callable[[], Callable[[], float]]:
        """Start a clock. The result stops it when called, and returns a function that waits and gives the seconds."""
        if self.dry:
            begun = time.perf_counter()

            def stop_host() -> Callable[[], float]:
                seconds = time.perf_counter() - begun
                return lambda: seconds

            return stop_host
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()

        def stop() -> Callable[[], float]:
            end.record()
            return lambda: begin.elapsed_time(end) / 1e3

        return stop

    def graph(self, call: Call) -> Call:
        """Return `call` as a CUDA graph, so that launches cost nothing; in a dry run, `call` itself."""
        if self.dry:
            call()
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def allow(self, minutes: float) -> None:
        """Begin a part: nothing of it has been skipped, and it has `minutes` and what the part before has left."""
        self.end, self.skipped = max(self.end, time.monotonic()) + 60 * minutes, []

    def has_time(self, what: str) -> bool:
        """Return whether another measurement may start; if not, note `what`."""
        if self.dry or time.monotonic() < self.end:
            return True
        self.skipped.append(what)
        return False

    def sizes(self, what: str, sizes: Iterable[tuple[int, int]], token: int) -> list[tuple[int, int]]:
        """Return the (length, batch) whose caches, of `token` bytes per token, are not too large; note the others."""
        sizes = list(sizes)
        for length, batch in sizes:
            if length * batch * token > MOST:
                taken = f"its cache takes {length * batch * token / 1e9:.1f} GB, of at most {MOST / 1e9:g}"
                self.skipped.append(f"{what} {length} x {batch}: {taken}")
        return [(length, batch) for length, batch in sizes if length * batch * token <= MOST]

    def cell(self, what: str, measure: Callable[[], list[Row]]) -> list[Row]:
        """Return the rows that `measure` returns; none where time or memory does not suffice, which is noted."""
        if not self.has_time(what):
            return []
        try:
            return measure()
        except torch.OutOfMemoryError as error:
            self.skipped.append(f"{what}: {str(error).splitlines()[0]}")
        self.free()  # what the failed call held, once its frames are gone
        return []

    def free(self) -> float:
        """Return the bytes of device memory that can be had; in a dry run, a small made-up number."""
        if self.dry:
            return 1e6
        gc.collect()
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0])

    def peak(self, call: Call) -> int:
        """Return the bytes that `call` allocates at its peak, beyond those in use before."""
        if self.dry:
            call()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def ceilings(self) -> dict[str, float]:
        """Return the copy bandwidth (bytes read and written per second) and the bf16 matmul rate, measured now."""
        size, n = (1 << 12, 64) if self.dry else (1 << 30, 8192)
        a = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        x, y = (torch.randn(n, n, dtype=torch.bfloat16, device=self.device) for _ in range(2))
        times = self.time({"copy": lambda: b.copy_(a), "matmul": lambda: x @ y})
        return {"copy_bytes_per_s": 2 * size / times["copy"], "matmul_flops_per_s": 2 * n**3 / times["matmul"]}
