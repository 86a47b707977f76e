"""What both views must answer, worked out from the CSV in plain Python: nothing here is shared with the layers.

Not even the event time: this takes the local time of the schedule and New York's summer time of 2013, where the
conversion takes the CSV's column in UTC. Whole numbers must be equal; averages and ratios of whole numbers too, since both
sides divide once; a sum of float64 within `n · ε · Σ |x|`, the bound that Highwater states for it. Quantiles must be within 1 %; a
number of different planes equal where the answer calls it no estimate, which all rows of the batch layer must do, and
elsewhere within twice the bound that the answer states: it holds in 95 of 100 cases. Of fewer than 1,000 planes an estimate,
too, must be equal, but where two of them share a hash of 32 bits: then it is one less, and that a handful of times at most.
"""

import calendar
import datetime
import math
from fractions import Fraction

import convert

EPSILON = 2.0**-52
# So many values share no hash: two of 1,000 do in one of 10,000 cells.
FEW = 1_000
# How often they may do so among all cells of a view. It is about once in a thousand comparisons of the whole year, but two planes
# that do share theirs do so in every cell that both are in.
COLLISIONS = 5
# New York's clocks, as naive local times.
SUMMER = (datetime.datetime(2013, 3, 10, 2), datetime.datetime(2013, 11, 3, 2))
HOUR, DAY = 3_600, 86_400


class Near:
    """A sum of float64: the exact value, and how far the answer may be off."""

    __slots__ = ("exact", "bound")

    def __init__(self, exact, count):
        self.exact = exact
        # What is added up is never negative here, so Σ |x| is the sum itself.
        self.bound = count * EPSILON * float(exact)

    def __float__(self):
        return float(self.exact)


class Distinct:
    """How many different values there are."""

    __slots__ = ("exact",)

    def __init__(self, exact):
        self.exact = exact

    def __float__(self):
        return float(self.exact)

    def agrees(self, answered, row):
        estimate = row["estimates"].get("planes")
        if estimate is None:
            return answered == self.exact
        if row["layer"] == "batch":
            return False
        if self.exact < FEW:
            return answered == self.exact or self.collided(answered)
        return abs(answered - self.exact) <= max(2 * estimate["error"] * self.exact, 1)

    def collided(self, answered):
        """Whether it looks as if two values shared a hash."""
        return 1 < self.exact < FEW and answered == self.exact - 1


class Quantiles:
    """The values at some levels: each may be off by a part of itself."""

    LEVELS = (0.5, 0.95, 0.99)
    __slots__ = ("values",)

    def __init__(self, values):
        self.values = values

    @property
    def exact(self):
        values = sorted(self.values)
        return [values[int(level * (len(values) - 1))] if values else None for level in self.LEVELS]

    def agrees(self, answered, row):
        near = (same(exact, found) for exact, found in zip(self.exact, answered, strict=True))
        return all(near) and ("delay_q" in row["estimates"]) == bool(self.values)


def same(exact, found):
    if exact is None or found is None:
        return exact is None and found is None
    # A hair more than 1 %, since doubles are rounded.
    return abs(found - exact) <= 0.01 * abs(exact) + 1e-9


class Departures:
    """A cell of the view `departures`."""

    grain, grain_name = HOUR, "1h"
    dimensions = ("origin", "carrier")
    __slots__ = ("flights", "departed", "delays", "longest", "delayed", "planes", "all_delays")

    def __init__(self):
        self.flights = self.departed = self.delays = self.delayed = 0
        self.longest = None
        self.planes, self.all_delays = set(), []

    def add(self, flight):
        self.flights += 1
        if flight.tail is not None:
            self.planes.add(flight.tail)
        delay = flight.departure_delay
        if delay is not None:
            self.all_delays.append(delay)
            self.departed += 1
            self.delays += delay
            self.delayed += delay > 15
            self.longest = delay if self.longest is None else max(self.longest, delay)

    def measures(self):
        return {
            "flights": self.flights,
            "departed": self.departed,
            "delay": self.delays / self.departed if self.departed else None,
            "longest_delay": self.longest,
            "delayed": self.delayed,
            "share_delayed": self.delayed / self.departed if self.departed else None,
            "planes": Distinct(len(self.planes)),
            "delay_q": Quantiles(self.all_delays),
        }


class Destinations:
    """A cell of the view `destinations`."""

    grain, grain_name = DAY, "1d"
    dimensions = ("destination",)
    __slots__ = ("flights", "arrived", "distance", "minutes", "flown", "delays", "earliest", "latest")

    def __init__(self):
        self.flights = self.arrived = self.distance = self.minutes = self.flown = self.delays = 0
        self.earliest = self.latest = None

    def add(self, flight):
        self.flights += 1
        self.distance += flight.distance
        if flight.air_time is not None:
            self.flown += 1
            self.minutes += flight.air_time
        delay = flight.arrival_delay
        if delay is not None:
            self.arrived += 1
            self.delays += delay
            self.earliest = delay if self.earliest is None else min(self.earliest, delay)
            self.latest = delay if self.latest is None else max(self.latest, delay)

    def measures(self):
        return {
            "flights": self.flights,
            "arrived": self.arrived,
            "distance": self.distance,
            "hours": Near(Fraction(self.minutes, 60), self.flown) if self.flown else None,
            "delay": self.delays / self.arrived if self.arrived else None,
            "earliest": self.earliest,
            "latest": self.latest,
        }


VIEWS = {"departures": Departures, "destinations": Destinations}


class Flight:
    """A row of the CSV, with its scheduled departure in seconds since 1970."""

    __slots__ = (
        "scheduled", "origin", "carrier", "tail", "destination", "distance", "departure_delay", "arrival_delay", "air_time",
    )  # fmt: skip

    def __init__(self, row):
        clock = int(row["sched_dep_time"])
        local = datetime.datetime(int(row["year"]), int(row["month"]), int(row["day"]), clock // 100, clock % 100)
        behind = 4 if SUMMER[0] <= local < SUMMER[1] else 5
        self.scheduled = calendar.timegm(local.timetuple()) + behind * HOUR
        self.origin, self.carrier, self.destination = row["origin"], row["carrier"], row["dest"]
        self.tail = None if row["tailnum"] == "NA" else row["tailnum"]
        self.distance = int(row["distance"])
        self.departure_delay = None if row["dep_delay"] == "NA" else int(row["dep_delay"])
        self.arrival_delay = None if row["arr_delay"] == "NA" else int(row["arr_delay"])
        self.air_time = None if row["air_time"] == "NA" else int(row["air_time"])


def read(package, tick=lambda: None):
    """The flights in the CSV's order; `tick` is called meanwhile."""
    return [Flight(row) for row in convert.read_csv(package, tick)]


class Expected:
    """Both views over the flights that were sent so far."""

    def __init__(self, flights):
        self.flights = flights
        self.cells = {name: {} for name in VIEWS}
        self.totals = {name: cell() for name, cell in VIEWS.items()}

    def add(self, rows):
        """Counts the flights of these rows of the CSV. A flight is given once, however often its event is sent."""
        for flight in (self.flights[row] for row in rows):
            for name, cell in VIEWS.items():
                window = flight.scheduled - flight.scheduled % cell.grain
                key = (window, *(getattr(flight, dimension) for dimension in cell.dimensions))
                self.cells[name].setdefault(key, cell()).add(flight)
                self.totals[name].add(flight)

    def compare(self, view, answers):
        """(values compared, sentences about those that differ), of all cells and the API's rows about them."""
        cells, dimensions = self.cells[view], VIEWS[view].dimensions
        compared, differences, seen, collisions = 0, [], set(), 0
        for answer in answers:
            window = datetime.datetime.fromisoformat(answer["time"].replace("Z", "+00:00"))
            key = (int(window.timestamp()), *(answer[dimension] for dimension in dimensions))
            place = " ".join([answer["time"], *(str(part) for part in key[1:])])
            if key in seen or key not in cells:
                differences.append(f"{view} {place}: {'answered twice' if key in seen else 'no flight was sent'}")
                continue
            seen.add(key)
            measures = cells[key].measures()
            values = self.differing(measures, answer)
            compared += len(measures)
            collisions += sum(
                expected.collided(answer.get(name)) for name, expected in measures.items() if isinstance(expected, Distinct)
            )
            differences += [f"{view} {place}: {difference}" for difference in values]
        missing = cells.keys() - seen
        compared += sum(len(cells[key].measures()) for key in missing)
        differences += [f"{view} {key}: not answered" for key in sorted(missing)]
        if collisions > COLLISIONS:
            differences.append(f"{view}: {collisions} cells have a value less than they should, more than share a hash by chance")
        return compared, differences

    @staticmethod
    def differing(measures, answer):
        """Sentences about the measures of one row that are not as expected."""
        return [
            f"{name} is {answer.get(name)!r} instead of {shown(expected)}"
            for name, expected in measures.items()
            if name not in answer or not agrees(expected, answer[name], answer)
        ]


def number(value):
    """A number as the API writes it: sums and extremes of whole numbers are text, so that no digit is lost."""
    return int(value) if isinstance(value, str) else value


def shown(expected):
    if isinstance(expected, Quantiles):
        return repr(expected.exact)
    return repr(float(expected)) if isinstance(expected, Near | Distinct) else repr(expected)


def agrees(expected, answered, row):
    if expected is None or answered is None:
        return expected is None and answered is None
    if isinstance(expected, Distinct | Quantiles):
        return expected.agrees(answered, row)
    answered = number(answered)
    if isinstance(expected, Near):
        return math.isfinite(answered) and abs(Fraction(answered) - expected.exact) <= Fraction(expected.bound)
    return answered == expected
