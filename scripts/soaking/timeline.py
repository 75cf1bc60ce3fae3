"""What may be seen of the source at which time, and which errors are right."""

import time
from dataclasses import dataclass, field

# A change shows within a second, and the time that it takes to look.
VISIBLE_S = 2.0
# What no reader asks about any more is forgotten.
KEPT_S = 60

# What there is of a file in place of the number of a version: nothing, or a file that is refused.
ABSENT, REFUSED = "absent", "refused"


@dataclass
class Interval:
    begin: float
    end: float | None = None

    def overlaps(self, since, until):
        return self.begin <= until and (self.end is None or self.end >= since)


class Intervals:
    """When something was the case. The last one may be going on."""

    def __init__(self):
        self._intervals = []

    def begin(self):
        self._intervals.append(Interval(time.monotonic()))

    def end(self):
        self._intervals[-1].end = time.monotonic()

    def overlap(self, since, until):
        return any(interval.overlaps(since, until) for interval in self._intervals)

    def seconds_in(self, since, until):
        return sum(
            max(0.0, min(until, interval.end or until) - max(since, interval.begin)) for interval in self._intervals
        )

    def before(self, moment):
        """The moment itself, or the beginning of what was the case shortly before it."""
        for interval in reversed(self._intervals):
            if interval.overlaps(moment - VISIBLE_S, moment):
                moment = interval.begin
        return moment

    def forget(self, before):
        self._intervals = [one for one in self._intervals if one.end is None or one.end >= before]


@dataclass
class State(Interval):
    value: object = ABSENT


@dataclass
class File:
    """One path of the source. From the beginning of a change to its end it may be as before, as after, or an error."""

    kind: str
    states: list = field(default_factory=lambda: [State(0.0)])
    changes: Intervals = field(default_factory=Intervals)
    busy: bool = False
    # The last change, in a word.
    how: str = "nothing"

    @property
    def value(self):
        return self.states[-1].value

    def begin_change(self, value):
        self.busy = True
        self.changes.begin()
        self.states.append(State(time.monotonic(), value=value))

    def end_change(self):
        self.busy = False
        self.changes.end()
        self.states[-2].end = time.monotonic()

    def values(self, since, until):
        """All that the file may have been."""
        return {state.value for state in self.states if state.overlaps(since, until)}

    def forget(self, before):
        self.changes.forget(before)
        self.states = [state for state in self.states if state.end is None or state.end >= before]
