"""Drives Highwater as its users do: through its command line, its HTTP interface and Kafka."""

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import confluent_kafka

from show import Working

PAUSE = 0.05  # seconds between two looks at something that is waited for
READY_WITHIN = 180  # seconds; a first start makes the cluster and the tables
STOPPED_WITHIN = 60
COMMAND_WITHIN = 900  # for one command; the machine may be slow and busy
ANSWER_WITHIN = 60  # for one answer
CAUGHT_UP_WITHIN = 300  # for the speed layer and the archive, after the last event was sent
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """One sentence for the user."""


def end_with_parent():
    """Runs in the child: has the kernel send it SIGTERM should this script be killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Command:
    """A running `highwater COMMAND`, in a session of its own, so that Ctrl-C reaches the demo alone."""

    def __init__(self, arguments, environment, stdin=subprocess.DEVNULL):
        self.name = "highwater " + " ".join(str(argument) for argument in arguments[1:3] if argument[0] != "-")
        self.began = time.monotonic()
        self.took = None
        self.stdout, self.stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=stdin,
            stdout=self.stdout,
            stderr=self.stderr,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def running(self):
        """Whether it still runs. A command that failed, or goes on too long, is a failure of the demo."""
        if self.process.poll() is None:
            if time.monotonic() - self.began > COMMAND_WITHIN:
                raise Failed(f"{self.name} did not end within {COMMAND_WITHIN} s")
            return True
        if self.process.returncode != 0:
            raise Failed(f"{self.name} ended with status {self.process.returncode}: {self.said()}")
        if self.took is None:
            self.took = time.monotonic() - self.began
        return False

    def said(self):
        """The last line on stderr."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")

    def wait(self, what):
        """What it printed as JSON, when it has ended."""
        with Working(what) as working:
            while self.running():
                working.tick()
                time.sleep(PAUSE)
        self.stdout.seek(0)
        return json.load(self.stdout)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Highwater(contextlib.AbstractContextManager):
    """`highwater up` in a folder of its own, with the commands that use it.

    Entering the context starts it, `ready` waits for it, leaving the context ends it and every command.
    """

    def __init__(self, program, config, data):
        self.program, self.config, self.data = program, config, data
        self.log = data.with_suffix(".log")
        self.addresses = {}
        self.commands = []
        self.up = None

    def __enter__(self):
        self.data.parent.mkdir(parents=True, exist_ok=True)
        # It is there while all is ready: an old one would say so too early.
        (self.data / "addresses.json").unlink(missing_ok=True)
        command = [self.program, "up", "--fresh", "--config", self.config, "--data", self.data]
        with self.log.open("wb") as log:
            self.up = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        return self

    def ready(self):
        addresses = self.data / "addresses.json"
        with Working("starting Kafka, ClickHouse and the layers") as working:
            while not addresses.exists():
                self.check()
                if working.elapsed > READY_WITHIN:
                    raise Failed(f"highwater up was not ready within {READY_WITHIN} s: see {self.log}")
                working.tick()
                time.sleep(PAUSE)
        self.addresses = json.loads(addresses.read_text())
        if "api" not in self.addresses:
            raise Failed(f"highwater up did not say where its API is: see {addresses}")

    def __exit__(self, kind, *_):
        # A failure of its own must not hide the one that is on its way out.
        try:
            self.stop()
        except Failed:
            if kind is None or kind is KeyboardInterrupt:
                raise

    def check(self):
        """Fails if `highwater up` has ended by itself."""
        if self.up.poll() is not None:
            lines = [line for line in self.log.read_text(errors="replace").split("\n") if line.strip()]
            last = lines[-1].strip() if lines else "it said nothing"
            raise Failed(f"highwater up ended with status {self.up.returncode}: {last}")

    def stop(self):
        """Ends every command, then all that `up` started."""
        for command in self.commands:
            command.end()
        asked = self.up.poll() is None
        if asked:
            self.up.send_signal(signal.SIGTERM)
        try:
            status = self.up.wait(timeout=STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.up.kill()
            self.up.wait()
            raise Failed(f"highwater up did not stop within {STOPPED_WITHIN} s and was killed: see {self.log}") from None
        if asked and status != 0:
            raise Failed(f"highwater up ended with status {status}: see {self.log}")

    def command(self, *arguments, stdin=subprocess.DEVNULL):
        """Starts a command that prints JSON."""
        environment = {**os.environ, "HIGHWATER_DATA": str(self.data)}
        line = [str(self.program), *map(str, arguments), "--config", str(self.config), "--output", "json"]
        command = Command(line, environment, stdin)
        self.commands.append(command)
        return command

    def query(self, view, **parameters):
        """The API's answer to a query."""
        return self.get(f"/api/v1/views/{view}/query?{urllib.parse.urlencode(parameters)}")

    def total(self, view, layers="merged"):
        """All measures of a view over all time, in one row; and how fresh they are. Empty where there is no event."""
        answer = self.query(view, **{"from": "1970-01-01T00:00:00Z", "to": "2299-01-01T00:00:00Z", "layers": layers})
        return (answer["data"][0] if answer["data"] else {}), answer

    def get(self, path):
        self.check()
        request = urllib.request.Request(self.addresses["api"] + path, headers={"Accept": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WITHIN) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            try:
                problem = json.load(error)
                said = problem.get("detail") or problem.get("title")
            except ValueError:
                said = error.reason
            raise Failed(f"GET {path} was answered with {error.code}: {said}") from None
        except OSError as error:
            self.check()
            raise Failed(f"GET {path} was not answered: {error}") from None

    def dead_letters(self, topic, expected):
        """The dead letters by reason, each source record once, when there are at least as many as expected."""
        settings = {"bootstrap.servers": self.addresses["kafka"], "group.id": "demo", "enable.auto.commit": False}
        consumer = confluent_kafka.Consumer(settings)
        try:
            name = f"{topic}.dead-letters"
            metadata = consumer.list_topics(name, timeout=ANSWER_WITHIN).topics[name]
            if metadata.error is not None:
                raise Failed(f"the topic {name} cannot be read: {metadata.error}")
            beginning = confluent_kafka.OFFSET_BEGINNING
            consumer.assign([confluent_kafka.TopicPartition(name, number, beginning) for number in metadata.partitions])
            reasons = {}
            with Working("waiting for the dead letters") as working:
                while working.elapsed < CAUGHT_UP_WITHIN:
                    self.check()
                    enough = len(reasons) >= expected
                    # Once there are enough, a moment longer, for one that should not be.
                    message = consumer.poll(1 if enough else PAUSE)
                    if message is None and enough:
                        break
                    if message is not None and message.error() is None:
                        headers = {key: value.decode() for key, value in message.headers() or []}
                        reasons[headers["highwater-source"]] = headers["highwater-reason"]
                    working.tick(f"{len(reasons)} of {expected}")
            return collections.Counter(reasons.values())
        finally:
            consumer.close()

    def memory(self):
        """Resident memory of each process in bytes, now and at its highest, by name."""
        parents, names = {}, {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name, rest = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
                parents[int(folder.name)], names[int(folder.name)] = int(rest.split()[1]), name
        usage = []
        for pid, name in names.items():
            if pid == self.up.pid or parents[pid] == self.up.pid:
                with contextlib.suppress(OSError):
                    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").open())
                    now, highest = (int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
                    usage.append((pid != self.up.pid, name, now, highest))
        return [entry[1:] for entry in sorted(usage)]
