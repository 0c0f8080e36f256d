"""A progress bar on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self


class Bar:
    """``with Bar("embedding", shown) as bar: bar.update(done, total)``; draws ten times a second.
    A `note`, such as a loss, stands behind.

    Where standard error is no terminal, one line is written at the end.
    """

    def __init__(self, label: str, shown: bool = True) -> None:
        self._label = label
        self._shown = shown
        self._start = time.perf_counter()
        self._drawn = 0.0
        self._text = ""

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        if not self._shown:
            return
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        share = done / total if total else 1.0
        rate = done / seconds
        left = (total - done) / rate if rate else 0.0
        filled = int(24 * share)
        pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:,.1f}"
        self._text = (
            f"{self._label} [{'#' * filled}{'.' * (24 - filled)}] {done:,}/{total:,} "
            f"{pace}/s {f'{left:,.0f} s left' if done < total else f'{seconds:,.1f} s'}"
            f"{note and '  ' + note}"
        )
        if sys.stderr.isatty() and (now - self._drawn > 0.1 or done >= total):
            self._drawn = now
            print(f"\r\x1b[K{self._text}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._text:
            print(f"\r\x1b[K{self._text}" if sys.stderr.isatty() else self._text, file=sys.stderr)
