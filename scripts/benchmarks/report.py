"""What was measured: printed as it comes, collected for JSON and the plot, and held against the goals at the end."""

import statistics
from dataclasses import dataclass

LABEL_WIDTH = 62
LIMITS = {
    "x": lambda limit: f"{limit:g} x",
    "s": lambda limit: f"{limit * 1e3:g} ms",
    "bytes": lambda limit: f"{limit / 1e6:g} MB",
    "n": lambda limit: f"{limit:g}",
}


@dataclass
class Row:
    label: str
    unit: str
    values: list

    @property
    def median(self):
        return statistics.median(self.values)

    def text(self):
        low, high = (shown(value, self.unit) for value in (min(self.values), max(self.values)))
        return f"{shown(self.median, self.unit)}  [{low} .. {high}]"


@dataclass
class Bound:
    """What a number has to be: at most or at least `limit`."""

    word: str
    limit: float
    unit: str = "x"

    def holds(self, value):
        return value <= self.limit if self.word == "at most" else value >= self.limit

    def __str__(self):
        return f"{self.word} {LIMITS[self.unit](self.limit)}"


def at_most(limit, unit="x"):
    return Bound("at most", limit, unit)


def at_least(limit, unit="x"):
    return Bound("at least", limit, unit)


class Report:
    def __init__(self, machine, rounds, scale):
        self.data = {"machine": machine, "rounds": rounds, "scale": scale, "sections": {}, "goals": []}
        self._rows = None

    def section(self, name, title, *meaning):
        """Starts a section. `meaning` says what its rows are."""
        self._rows = {}
        self.data["sections"][name] = {"title": title, "meaning": list(meaning), "rows": self._rows}
        print(f"\n{title}")
        for line in meaning:
            print(f"  ({line})")

    def row(self, label, unit, values):
        row = Row(label, unit, list(values))
        self._rows[label] = {"unit": unit, "median": row.median, "values": row.values}
        print(f"  {label:<{LABEL_WIDTH}} {row.text()}", flush=True)
        return row

    def rows(self, unit, samples):
        """A row for each label of a dictionary of values."""
        return {label: self.row(label, unit, values) for label, values in samples.items() if values}

    def ratio(self, label, numerator, denominator, published=None):
        """The ratio of two rows' medians. `published` is what others report for the same."""
        value = numerator.median / denominator.median
        self._rows[label] = {"unit": "x", "median": value, "published": published}
        beside = f"  (published: {published:g} x)" if published else ""
        print(f"  {label:<{LABEL_WIDTH}} {shown(value, 'x')}{beside}", flush=True)
        return value

    def missing(self, label, why):
        """A row that could not be measured."""
        self._rows[label] = {"missing": why}
        print(f"  {label:<{LABEL_WIDTH}} {'-':>11}  {why}", flush=True)

    def note(self, key, value):
        """Something for the JSON file only."""
        self._rows[key] = {"note": value}

    def goal(self, question, bound, value, why=None):
        """Holds a number against a goal. None: it was not measured, and `why` says the reason."""
        outcome = "not measured" if value is None else "met" if bound.holds(value) else "missed"
        self.data["goals"].append(
            {"goal": question, "bound": str(bound), "unit": bound.unit, "value": value, "outcome": outcome, "why": why}
        )

    def print_goals(self):
        goals = self.data["goals"]
        if not goals:
            return
        print("\n| goal | wanted | measured | outcome |\n|---|---|---|---|")
        for goal in goals:
            measured = "-" if goal["value"] is None else shown(goal["value"], goal["unit"]).strip()
            reason = f": {goal['why']}" if goal["why"] else ""
            print(f"| {goal['goal']} | {goal['bound']} | {measured} | {goal['outcome']}{reason} |")
        if self.data["scale"] != 1:
            print("\nThe goals are for models of full size, and these are scaled: the outcomes mean nothing.")


def shown(value, unit):
    """A number with its unit, in a column of its own width."""
    match unit:
        case "s" if value >= 10:
            return f"{value:>8.1f} s "
        case "s":
            return f"{value * 1e3:>8.2f} ms"
        case "bytes":
            return f"{value / 1e6:>8.1f} MB"
        case "bytes/s":
            return f"{value / 1e9:>6.2f} GB/s"
        case "n":
            return f"{value:>8.0f}   "
        case "x":
            return f"{value:>8.2f} x "
    raise ValueError(unit)
