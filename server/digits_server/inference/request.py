"""A request on its way through a batcher, its part in a batch, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, Self, TypeVar


class Rows(Protocol):
    """Rows that can be counted and cut, such as a numpy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Self: ...


RowsT = TypeVar("RowsT", bound=Rows)
AnswersT = TypeVar("AnswersT", bound=Sized)


@dataclass(slots=True)
class Outcome(Generic[AnswersT]):
    """What became of one request, or of one part of a request larger than a batch."""

    answers: AnswersT
    """Those of the whole batch; the request's own are rows `start` to `end`."""
    start: int
    end: int
    queue_s: float
    """Time from submission until the batch began to run."""
    inference_s: float
    """Time the batch ran."""
    batch_size: int
    """Rows in the batch, other callers' included."""


@dataclass(slots=True)
class BatchReport:
    """What happened in one run, for metrics."""

    size: int
    """Rows that ran."""
    queue_s: list[float]
    """For each request in the batch, how long it waited."""
    inference_s: float
    """Time the batch ran."""
    release: str
    """Why it ran then: `full`, `joined` (all who were expected have), `quiet` (nobody else came), `wait` (time up)."""
    unwanted: int = 0
    """Rows that ran for callers who had left by the end."""


class Job(Generic[RowsT, AnswersT]):
    """One caller's rows on their way through a batcher.

    Args:
        rows: At least one row.
        deadline: Time on the batcher's clock after which the caller has no use for the answer.
    """

    __slots__ = ("_future", "deadline", "outcomes", "result", "rows", "size", "submitted", "taken")
    submitted: float
    """Time of admission, on the batcher's clock."""

    def __init__(self, rows: RowsT, deadline: float = float("inf")) -> None:
        self.rows = rows
        self.size = len(rows)
        self.taken = 0
        """Rows that have run, or run now; fewer than all only for a request larger than a batch."""
        self.deadline = deadline
        self.outcomes: list[Outcome[AnswersT]] = []
        self.result: list[Outcome[AnswersT]] | BaseException | None = None
        """What became of it, as soon as that is known."""
        self._future: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the result any more: it is known, or the caller has left."""
        return self.result is not None or (self._future is not None and self._future.done())

    def end(self, result: list[Outcome[AnswersT]] | BaseException) -> None:
        """Tell the caller what became of it."""
        if not self.is_over:
            self.result = result
            if self._future is not None:
                self._future.set_result(None)

    async def settled(self) -> list[Outcome[AnswersT]]:
        """Return the outcomes: one, or several if the request is larger than a batch."""
        if self.result is None:
            self._future = asyncio.get_running_loop().create_future()
            await self._future
        if isinstance(self.result, BaseException):
            raise self.result
        return self.outcomes


class BatchItem(NamedTuple, Generic[RowsT, AnswersT]):
    """What a batch runs of one job: all of its rows, unless there are more than a batch holds."""

    job: Job[RowsT, AnswersT]
    rows: RowsT
    size: int
    """Number of the rows."""


class ResultSlice(NamedTuple, Generic[AnswersT]):
    """A batch's answers, and from which row to which they belong to an item."""

    answers: AnswersT
    start: int
    end: int


def run_batch(
    batch: Sequence[BatchItem[RowsT, AnswersT]], run: Callable[[Sequence[RowsT]], AnswersT]
) -> list[ResultSlice[AnswersT] | Exception]:
    """Return each item's slice of the answers, or the error that this item alone provokes.

    Args:
        batch: At least one item.
        run: Answers a list of rows with one row of answers for each row, in order.
    """
    ends = list(accumulate([item.size for item in batch]))
    try:
        answers = run([item.rows for item in batch])
        if len(answers) != ends[-1]:
            raise RuntimeError(f"the model answered {len(answers)} rows to {ends[-1]}")
    except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to a caller
        if len(batch) == 1:
            return [error]
        half = len(batch) // 2  # who is guilty, halving tells
        return run_batch(batch[:half], run) + run_batch(batch[half:], run)
    return [ResultSlice(answers, end - item.size, end) for item, end in zip(batch, ends, strict=True)]
