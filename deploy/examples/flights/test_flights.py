"""What the demo's data must be, and that `expected.py` finds mistakes: `python -m unittest` in this folder."""

import collections
import datetime
import json
import unittest

import convert
import expected


class Conversion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = convert.prepared()
        cls.plan = json.loads((cls.folder / "plan.json").read_text())
        cls.lines = {
            name: (cls.folder / f"{name}.ndjson").read_bytes().split(b"\n")[:-1] for name in convert.STREAMS
        }
        cls.bad = [bad["line"].encode("latin-1") for bad in cls.plan["bad"]]
        cls.events = {}
        for name, lines in cls.lines.items():
            good = lines if name != "november" else [line for line in lines if line not in cls.bad]
            cls.events[name] = [json.loads(line) for line in good]

    @staticmethod
    def identity(event):
        return event["carrier"], event["flight"], event["scheduled_departure"]

    def test_every_flight_is_sent_once_and_the_repeats_twice(self):
        sent = collections.Counter(self.identity(event) for events in self.events.values() for event in events)
        self.assertEqual(len(sent), 336_776)
        self.assertEqual(collections.Counter(sent.values()), {1: 334_776, 2: 2_000})
        rows = self.plan["rows"]
        once = [row for name, rows in rows.items() if name != "repeats" for row in rows]
        self.assertEqual(sorted(once), list(range(336_776)))
        self.assertLessEqual(set(rows["repeats"]), set(rows["january-october"]))

    def test_the_streams_have_the_lengths_that_the_plan_says(self):
        lengths = {name: len(lines) for name, lines in self.lines.items()}
        self.assertEqual(lengths, self.plan["lines"])
        self.assertEqual(lengths, {"january-october": 276_138, "november": 34_241, "december": 28_417})
        rows = {name: len(rows) for name, rows in self.plan["rows"].items()}
        of_november = rows["november"] + rows["late"] + rows["repeats"] + len(self.bad)
        self.assertEqual(lengths["november"], of_november)
        self.assertEqual((rows["late"], rows["repeats"], len(self.bad)), (5_000, 2_000, 20))

    def test_an_event_is_its_row(self):
        rows = self.plan["rows"]
        streams = ((rows[name], self.events[name]) for name in ("january-october", "december"))
        events = {row: event for stream in streams for row, event in zip(*stream)}
        columns = ("carrier", "flight", "origin", "dest", "tailnum", "dep_delay")
        names = ("carrier", "flight", "origin", "destination", "tail", "departure_delay")
        for row, flight in enumerate(convert.read_csv(convert.source())):
            if row in events:
                values = ["NA" if events[row][name] is None else str(events[row][name]) for name in names]
                self.assertEqual([flight[column] for column in columns], values)

    def test_late_events_are_of_october_and_repeats_byte_for_byte_what_was_sent(self):
        first, november = set(self.lines["january-october"]), self.lines["november"]
        self.assertEqual(sum(line in first for line in november), 2_000)
        october = [event for event in self.events["november"] if event["scheduled_departure"] < "2013-11"]
        # Besides those held back and the repeats: flights of the last evening that landed after midnight.
        self.assertGreater(len(october), 5_000)
        days = {event["scheduled_departure"][:10] for event in october}
        self.assertLessEqual({f"2013-10-{day:02}" for day in range(1, 32)}, days)

    def test_events_come_in_the_order_of_their_landing_which_is_not_that_of_their_times(self):
        for name in ("january-october", "december"):
            landed, late = None, 0
            latest = ""
            for event in self.events[name]:
                scheduled = datetime.datetime.fromisoformat(event["scheduled_departure"][:-1])
                aloft = event["distance"] // 7 if event["air_time"] is None else event["air_time"]
                delay = event["departure_delay"]
                known = scheduled + datetime.timedelta(minutes=0 if delay is None else delay + aloft)
                self.assertTrue(landed is None or landed <= known)
                landed = known
                late += event["scheduled_departure"] < latest
                latest = max(latest, event["scheduled_departure"])
            self.assertGreater(late, len(self.events[name]) // 2)

    def test_cancelled_flights_have_nulls(self):
        cancelled = [event for events in self.events.values() for event in events if event["departure_delay"] is None]
        self.assertGreaterEqual(len(cancelled), 8_255)
        self.assertTrue(all(event["arrival_delay"] is event["air_time"] is None for event in cancelled))

    def test_there_are_eight_kinds_of_bad_events_each_on_a_line_of_its_own(self):
        kinds = collections.Counter(bad["kind"] for bad in self.plan["bad"])
        self.assertEqual((len(kinds), sum(kinds.values())), (8, 20))
        self.assertTrue(all(b"\n" not in line for line in self.bad))
        sent = collections.Counter(self.lines["november"])
        self.assertEqual(sum(sent[line] for line in set(self.bad)), 20)

    def test_doing_it_again_gives_the_same(self):
        events = [convert.Event(row, flight) for row, flight in enumerate(convert.read_csv(convert.source()))]
        lines, facts = convert.plan(reversed(events))
        self.assertEqual({name: list(stream) for name, stream in lines.items()}, self.lines)
        self.assertEqual(facts, self.plan)


class Answers(unittest.TestCase):
    """The comparison, on answers made of the expectation itself."""

    @classmethod
    def setUpClass(cls):
        cls.expected = expected.Expected(expected.read(convert.source()))
        cls.expected.add(range(20_000))

    def answers(self, view):
        kind = expected.VIEWS[view]
        for (window, *values), cell in sorted(self.expected.cells[view].items()):
            time = datetime.datetime.fromtimestamp(window, datetime.timezone.utc).isoformat().replace("+00:00", "Z")
            measures = {name: self.answered(value) for name, value in cell.measures().items()}
            made = {"layer": "batch", "estimates": {}}
            if measures.get("delay_q", [None])[0] is not None:
                made["estimates"]["delay_q"] = {"error": 0.01, "confidence": 1.0}
            yield {"time": time, **dict(zip(kind.dimensions, values)), **measures, **made}

    @staticmethod
    def answered(value):
        if isinstance(value, expected.Near):
            return float(value)
        return value.exact if isinstance(value, expected.Distinct | expected.Quantiles) else value

    def test_event_times_agree_with_the_column_in_utc(self):
        for row, flight in zip(convert.read_csv(convert.source()), self.expected.flights):
            hour = datetime.datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))
            self.assertEqual(flight.scheduled, hour.timestamp() + 60 * int(row["minute"]))

    def test_known_totals(self):
        year = expected.Expected(self.expected.flights)
        year.add(range(len(year.flights)))
        departures, destinations = (year.totals[view].measures() for view in expected.VIEWS)
        self.assertEqual((departures["flights"], departures["departed"]), (336_776, 328_521))
        self.assertEqual(departures["longest_delay"], 1_301)
        # As R's documentation of the data has them.
        self.assertAlmostEqual(departures["delay"], 12.63907, 5)
        self.assertAlmostEqual(destinations["delay"], 6.895377, 6)
        self.assertEqual((destinations["earliest"], destinations["latest"]), (-86, 1_272))
        self.assertEqual(destinations["distance"], 350_217_607)

    def test_right_answers_agree(self):
        for view in expected.VIEWS:
            compared, differences = self.expected.compare(view, self.answers(view))
            self.assertGreater(compared, 10_000)
            self.assertEqual(differences, [])

    def test_each_mistake_is_found(self):
        for view in expected.VIEWS:
            for name in next(iter(self.expected.cells[view].values())).measures():
                answers = list(self.answers(view))
                wrong = next(answer for answer in answers if answer[name] not in (None, [None] * 3))
                if isinstance(wrong[name], list):
                    wrong[name][1] += abs(wrong[name][1]) * 0.0101 + 1e-6
                else:
                    wrong[name] *= 1 + 1e-12
                    wrong[name] += isinstance(wrong[name], int) or wrong[name] == 0
                self.assertEqual(len(self.expected.compare(view, answers)[1]), 1, name)
            answers = list(self.answers(view))
            self.assertEqual(len(self.expected.compare(view, answers[1:])[1]), 1)
            self.assertEqual(len(self.expected.compare(view, answers + answers[:1])[1]), 1)
            other = {**answers[0], "time": "2014-06-01T00:00:00Z"}
            self.assertEqual(len(self.expected.compare(view, [*answers, other])[1]), 1)

    def test_whole_numbers_may_be_text(self):
        self.assertTrue(expected.agrees(2**60 + 1, str(2**60 + 1), {}))
        self.assertFalse(expected.agrees(2**60 + 1, float(2**60 + 1), {}))
        self.assertFalse(expected.agrees(0, None, {}))
        self.assertTrue(expected.agrees(None, None, {}))

    def test_only_rows_above_the_marks_may_estimate_the_planes(self):
        planes = expected.Distinct(1_000)
        estimate = {"planes": {"error": 0.01, "confidence": 0.95}}
        for layer, estimates, answered, agrees in [
            ("batch", {}, 1_000, True),
            ("batch", {}, 1_001, False),
            ("batch", estimate, 1_000, False),
            ("merged", estimate, 985, True),
            ("merged", estimate, 975, False),
            ("speed", {}, 999, False),
        ]:
            row = {"layer": layer, "estimates": estimates}
            self.assertEqual(expected.agrees(planes, answered, row), agrees, (row, answered))

    def test_few_planes_are_estimated_exactly_but_for_a_handful(self):
        planes, row = expected.Distinct(999), {"layer": "speed", "estimates": {"planes": {"error": 0.1, "confidence": 0.95}}}
        agreeing = [answered for answered in range(900, 1_100) if expected.agrees(planes, answered, row)]
        self.assertEqual(agreeing, [998, 999])
        self.assertFalse(expected.agrees(expected.Distinct(1), 0, row))
        for less, found in [(expected.COLLISIONS, 0), (expected.COLLISIONS + 1, 1)]:
            answers = [{**answer, "layer": "speed"} for answer in self.answers("departures")]
            for answer in [answer for answer in answers if answer["planes"] > 1][:less]:
                answer["planes"] -= 1
                answer["estimates"]["planes"] = {"error": 0.0001, "confidence": 0.95}
            self.assertEqual(len(self.expected.compare("departures", answers)[1]), found, less)


if __name__ == "__main__":
    unittest.main()
