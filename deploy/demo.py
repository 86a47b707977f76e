"""The demo: a year of real flights through Kafka, both layers and back, right at every moment.

    python deploy/demo.py PATH/TO/highwater

Starts everything on free ports, in `data/demo`, and sends the events that `deploy/examples/flights/convert.py` made. What
the answers must be comes from the CSV, through `deploy/examples/flights/expected.py`. On a terminal it stays up until
Ctrl-C; with no terminal it stops everything. Exits 0, or 1 if anything failed or any answer was not as expected.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from contextlib import suppress

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "deploy" / "examples" / "flights"
sys.path.insert(0, str(EXAMPLE))
sys.dont_write_bytecode = True

import convert  # noqa: E402
import expected  # noqa: E402
from highwater import CAUGHT_UP_WITHIN, PAUSE, Failed, Highwater  # noqa: E402
from show import Working, say, seconds, step, strong, table  # noqa: E402

CONFIG = (EXAMPLE / "highwater.toml").relative_to(ROOT)
DATA = pathlib.Path("data") / "demo"
# What stands for a view in the tables, and what it is called there. Behind the scenes all measures are compared.
HEADLINES = {"departures": ("flights", "flights"), "destinations": ("distance", "miles")}
# No answer is longer than the API allows: cells are asked for month by month.
MONTHS = [f"2013-{month:02}-01T00:00:00Z" for month in range(1, 13)] + ["2014-01-01T00:00:00Z", "2014-02-01T00:00:00Z"]
LONGEST_ANSWER = 50_000
EVENTS_A_SECOND = 8_000  # in step 5, so that December takes some seconds and the batch run comes in between
SHOWN = 5  # differences that are spelled out


class Demo:
    """The five steps, and what they found out."""

    def __init__(self, highwater, streams, flights):
        self.highwater, self.streams = highwater, streams
        self.plan = json.loads((streams / "plan.json").read_text())
        self.expected = expected.Expected(flights)
        self.sent = 0  # records in Kafka
        self.checks = [["after", "view", "measure", "expected", "merged", "difference", "values compared"]]
        self.differences = []
        self.times = [["step", "took", "events sent", "a second", "until counted", "a second"]]

    def lines(self, stream):
        return self.streams / f"{stream}.ndjson"

    def totals(self, layers="merged"):
        return {view: self.highwater.total(view, layers)[0] for view in expected.VIEWS}

    @staticmethod
    def passed(answer):
        """How many records the speed layer is through with, whatever became of them, and how many it knows to come."""
        speed = answer["freshness"]["speed"] or {"partitions": {}, "lag_events": None}
        return sum(partition["next"] for partition in speed["partitions"].values()), speed["lag_events"]

    def catch_up(self):
        """Waits until the speed layer has counted all that was sent."""
        with Working("waiting for the speed layer") as working:
            for view in expected.VIEWS:
                while True:
                    passed, lag = self.passed(self.highwater.total(view)[1])
                    if passed >= self.sent and lag == 0:
                        break
                    if working.elapsed > CAUGHT_UP_WITHIN:
                        raise Failed(f"the speed layer had {passed:,} of {self.sent:,} events after {CAUGHT_UP_WITHIN} s")
                    working.tick(f"{passed:,} of {self.sent:,} events")
                    time.sleep(PAUSE)

    def stream(self, number, name):
        """Sends a stream and waits until it is counted; how long the first event took to appear in a total."""
        count, before = self.plan["lines"][name], self.flights()
        began = time.monotonic()
        produce = self.highwater.command("produce", "flights", self.lines(name))
        first = None
        with Working("sending") as working:
            while produce.running() or first is None:
                flights = self.flights()
                if flights > before and first is None:
                    first = time.monotonic() - began
                if produce.took is not None and working.elapsed > CAUGHT_UP_WITHIN:
                    raise Failed(f"no event was counted within {CAUGHT_UP_WITHIN} s")
                working.tick(f"{flights - before:,} of {count:,} events are counted")
                time.sleep(PAUSE)
        self.acknowledged(produce, count)
        self.catch_up()
        took = time.monotonic() - began
        self.took(number, took, count, produce.took, took)
        return first

    def flights(self):
        return self.highwater.total("departures")[0].get("flights") or 0

    def acknowledged(self, produce, count):
        acknowledged = produce.wait("sending")["acknowledged"]
        if acknowledged != count:
            raise Failed(f"Kafka acknowledged {acknowledged:,} of {count:,} events")
        self.sent += count

    def took(self, number, took, events=None, sending=None, counting=None):
        rates = [""] * 4
        if events:
            rates = [f"{events:,}", f"{events / sending:,.0f}", seconds(counting), f"{events / counting:,.0f}"]
        self.times.append([str(number), seconds(took), *rates])

    def check(self, number):
        """Compares every measure of every cell, and of the totals, with what must come out."""
        for view, (headline, unit) in HEADLINES.items():
            kind = expected.VIEWS[view]
            total, _ = self.highwater.total(view)
            wanted = self.expected.totals[view].measures()
            all_cells = {"grain": kind.grain_name, "dimensions": ",".join(kind.dimensions), "limit": LONGEST_ANSWER}
            answers = []
            with Working(f"comparing {view}") as working:
                for first, end in zip(MONTHS, MONTHS[1:]):
                    answers += self.highwater.query(view, **{"from": first, "to": end, **all_cells})["data"]
                    working.tick(first[:7])
            compared, differences = self.expected.compare(view, answers)
            differences += [f"{view} in all: {text}" for text in self.expected.differing(wanted, total)]
            self.differences += [f"after step {number}: {text}" for text in differences]
            merged = expected.number(total.get(headline) or 0)
            verdict = f"{compared + len(wanted):,}, " + (f"{len(differences):,} differ" if differences else "all equal")
            numbers = [f"{number:,}" for number in (wanted[headline], merged, merged - wanted[headline])]
            self.checks.append([f"step {number}", view, unit, *numbers, verdict])

    def batch_run(self):
        return self.highwater.command("batch", "run", "--wait")

    @staticmethod
    def show_run(reports):
        for report in reports:
            marks = " ".join(f"{mark['to']:,}" for mark in sorted(report["marks"], key=lambda mark: mark["partition"]))
            done = f"publication {report['publication']}, {report['days']} days computed, marks at {marks}"
            if report["result"] != "published":
                done = f"{report['result'].replace('_', ' ')}: {report.get('why')}"
            say(f"   {report['view']:13}  {done}")

    def january_to_october(self):
        step(1, "January to October stream in")
        first = self.stream(1, "january-october")
        self.expected.add(self.plan["rows"]["january-october"])
        _, _, sent, rate, *_ = self.times[-1]
        say(f"   {sent} events sent, {rate} a second; the first were counted {seconds(first)} after the start.")
        departures, answer = self.highwater.total("departures")
        destinations, _ = self.highwater.total("destinations")
        delay, share = departures["delay"], 100 * departures["share_delayed"]
        delays = f"{delay:.1f} minutes late on average, {share:.1f} % by more than 15"
        say(f"   departures     {departures['flights']:,} flights, {delays}")
        say(f"   destinations   {int(destinations['distance']):,} miles, {destinations['hours']:,.0f} hours in the air")
        speed = answer["freshness"]["speed"]
        behind = seconds(speed["lag_seconds"] or 0)
        say(f"   This is the speed layer alone, {speed['lag_events']} events and {behind} behind.")
        self.check(1)

    def make_exact(self):
        step(2, "A batch run makes them exact")
        run = self.batch_run()
        self.show_run(run.wait("batch run"))
        say("   Below the marks, which are Kafka offsets by partition, the batch layer answers; from there on the speed layer.")
        self.took(2, run.took)
        self.check(2)

    def november(self):
        step(3, "November streams in, and with it what goes wrong")
        rows = self.plan["rows"]
        for count, what in [
            (len(rows["november"]), "flights of November"),
            (len(rows["late"]), "flights of October, held back until now: their days are published already"),
            (len(rows["repeats"]), "flights that were sent before: a producer tries again"),
            (len(self.plan["bad"]), f"events that are broken in {len({bad['kind'] for bad in self.plan['bad']})} ways"),
        ]:
            say(f"   {count:6,} {what}")
        self.stream(3, "november")
        self.expected.add(rows["november"] + rows["late"])

    def compare_layers(self):
        step(4, "What was sent, and what is counted")
        began = time.monotonic()
        layers = {name: self.totals(name) for name in ("batch", "speed", "merged")}
        rows = [["view", "measure", "sent", *layers]]
        for view, (headline, unit) in HEADLINES.items():
            counts = [expected.number(totals[view].get(headline) or 0) for totals in layers.values()]
            sent = self.expected.totals[view].measures()[headline]
            rows.append([view, unit, *(f"{count:,}" for count in (sent, *counts))])
            if counts[0] + counts[1] != counts[2]:
                self.differences.append(f"step 4: batch and speed of {view} are not what is merged")
        table(rows)
        wanted = {}
        for bad in self.plan["bad"]:
            wanted[bad["reason"]] = wanted.get(bad["reason"], 0) + 1
        letters = self.highwater.dead_letters("flights", len(self.plan["bad"]))
        reasons = ", ".join(f"{count} {reason}" for reason, count in letters.most_common())
        say(f"   {sum(letters.values())} dead letters: {reasons}")
        if letters != wanted:
            self.differences.append(f"step 4: the dead letters should be {wanted}")
        self.check(4)
        self.took(4, time.monotonic() - began)

    def december(self):
        step(5, "December streams in while a second batch run goes on")
        began = time.monotonic()
        rows, lines = self.plan["rows"]["december"], self.lines("december").read_bytes().splitlines(keepends=True)
        # What there may be at most of each headline, after so many lines.
        ceilings = {view: [self.expected.totals[view].measures()[name]] for view, (name, _) in HEADLINES.items()}
        for row in rows:
            self.expected.add([row])
            for view, (name, _) in HEADLINES.items():
                ceilings[view].append(self.expected.totals[view].measures()[name])
        produce = self.highwater.command("produce", "flights", "-", stdin=subprocess.PIPE)
        run = self.batch_run()
        written, asked, highest = 0, 0, {view: ceilings[view][0] for view in HEADLINES}
        streaming = time.monotonic()
        # A pipe that breaks has a reason, which `produce` tells when it is waited for.
        with suppress(BrokenPipeError), produce.process.stdin as pipe, Working("December and the batch run") as working:
            while (producing := produce.running()) | (computing := run.running()):
                due = min(len(lines), int((time.monotonic() - streaming) * EVENTS_A_SECOND))
                if due > written and producing:
                    # Before they are written: what is on its way may be counted already.
                    before, written = written, due
                    pipe.writelines(lines[before:due])
                    pipe.flush()
                if written == len(lines) and not pipe.closed:
                    pipe.close()
                for view, (name, _) in HEADLINES.items():
                    total = expected.number(self.highwater.total(view)[0].get(name) or 0)
                    if total < highest[view]:
                        raise Failed(f"{view}: the merged {name} fell from {highest[view]:,} to {total:,} during the batch run")
                    if total > ceilings[view][written]:
                        raise Failed(f"{view}: the merged {name} is {total:,}, and only {ceilings[view][written]:,} was sent")
                    highest[view] = total
                    asked += 1
                working.tick(f"{written:,} events sent" + (", the run goes on" if computing else ", the run is done"))
        self.acknowledged(produce, len(lines))
        self.catch_up()
        counted = time.monotonic() - streaming
        result = run.wait("batch run")
        say(f"   {len(lines):,} events sent in {seconds(produce.took)}, the batch run took {seconds(run.took)}")
        self.show_run(result)
        say(f"   Merged totals asked {asked:,} times meanwhile: they never fell, and were never above what was sent.")
        self.reconcile()
        self.check(5)
        self.took(5, time.monotonic() - began, len(lines), produce.took, counted)

    def reconcile(self):
        command = self.highwater.command("reconcile")
        for view in command.wait("reconciling"):
            verdict = "all equal"
            if view["different"]:
                verdict = f"{view['different']:,} differ, {view['unexplained']:,} unexplained"
            say(f"   {view['view']:13}  {view['compared']:,} values reconciled with the archive, {verdict}")

    def summary(self):
        say(f"\n{strong('Expected from the CSV, and answered')}")
        table(self.checks)
        for difference in self.differences[:SHOWN]:
            say(f"   {difference}")
        if len(self.differences) > SHOWN:
            say(f"   and {len(self.differences) - SHOWN:,} more")
        say(f"\n{strong('Time and memory')}")
        table(self.times)
        names = {"java": "Kafka", "highwater": "highwater (all layers)"}
        say()
        rows = [["process", "resident MB", "highest"]]
        for name, *sizes in self.highwater.memory():
            rows.append([names.get(name, "ClickHouse"), *(f"{size / 1e6:,.0f}" for size in sizes)])
        table(rows)

    def stay(self, program):
        """Until Ctrl-C."""
        api = self.highwater.addresses["api"]
        query = f"{api}/api/v1/views"
        say(f"\n{strong('Running until Ctrl-C')}")
        for name, address in self.highwater.addresses.items():
            for part, where in address.items() if isinstance(address, dict) else [("", address)]:
                say(f"   {f'{name} {part}':18} {where}")
        july = "from=2013-07-04T00:00:00Z&to=2013-07-05T00:00:00Z"
        year = "from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:00Z"
        say(f"   curl '{query}'")
        say(f"   curl '{query}/departures/query?{july}&dimensions=origin&measures=flights,delay,share_delayed'")
        say(f"   curl '{query}/destinations/query?{year}&dimensions=destination&measures=distance,hours&order=-distance&limit=5'")
        say(f"   HIGHWATER_DATA={DATA} {os.path.relpath(program)} status --config {CONFIG}")
        while True:
            self.highwater.check()
            time.sleep(PAUSE)


def main(program):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with Highwater(program, CONFIG, DATA) as highwater:
        with Working("reading the flights") as working:
            try:
                streams = convert.prepared(working.tick)
                flights = expected.read(convert.source(), working.tick)
            except convert.Missing as missing:
                raise Failed(str(missing)) from None
        highwater.ready()
        say(f"{len(flights):,} flights of 2013 from New York; every answer is compared with what their CSV says.")
        demo = Demo(highwater, streams, flights)
        demo.took("start", time.monotonic() - began)
        demo.january_to_october()
        demo.make_exact()
        demo.november()
        demo.compare_layers()
        demo.december()
        demo.summary()
        if demo.differences:
            raise Failed("an answer was not as expected: see above")
        say("\nEvery answer was right, at every moment.")
        if sys.stdout.isatty() and sys.stdin.isatty():
            try:
                demo.stay(program)
            except KeyboardInterrupt:
                say("\nstopping")
    say("Stopped: nothing is left running.")


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            sys.exit("usage: python deploy/demo.py PATH/TO/highwater")
        program = pathlib.Path(sys.argv[1]).resolve()
        os.chdir(ROOT)
        main(program)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Failed, OSError) as failed:
        sys.exit(f"demo: {failed}")
