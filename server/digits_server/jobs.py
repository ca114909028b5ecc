"""Requests while they are in a batcher, cut into jobs, and how a batch of jobs is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, Self, TypeVar


class Rows(Protocol):
    """Rows that can be counted and cut, such as a numpy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Self: ...


RowsT = TypeVar("RowsT", bound=Rows)
AnswersT = TypeVar("AnswersT", bound=Sized)
Part = tuple[AnswersT, int, int]
"""A batch's answers, and from which row to which they belong to a job."""


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


@dataclass(eq=False, slots=True)
class Job(Generic[RowsT, AnswersT]):
    """At most one batch full of one caller's rows. It owns the future that answers them.

    Times are on the batcher's clock, in seconds.
    """

    rows: RowsT
    size: int
    submitted: float
    deadline: float
    future: asyncio.Future[Outcome[AnswersT]]

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        if not self.future.done():  # the caller may have left while the batch ran
            self.future.set_exception(error)


def cut(rows: RowsT, size: int) -> list[RowsT]:
    """Return `rows` in parts of at most `size`."""
    if len(rows) <= size:
        return [rows]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def answer(
    batch: Sequence[Job[RowsT, AnswersT]], run: Callable[[Sequence[RowsT]], AnswersT]
) -> list[Part[AnswersT] | Exception]:
    """Return each job's part of the answers, or the error that this job alone provokes.

    Args:
        batch: At least one job.
        run: Answers a list of jobs' rows with one row of answers for each row, in order.
    """
    ends = list(accumulate([job.size for job in batch]))
    try:
        answers = run([job.rows for job in batch])
        if len(answers) != ends[-1]:
            raise RuntimeError(f"the model answered {len(answers)} rows to {ends[-1]}")
    except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to a caller
        if len(batch) == 1:
            return [error]
        half = len(batch) // 2  # who is guilty, halving tells
        return answer(batch[:half], run) + answer(batch[half:], run)
    return [(answers, end - job.size, end) for job, end in zip(batch, ends, strict=True)]
