"""Shows what runs today: checked definitions, and a real Kafka and ClickHouse that answer.

    python deploy/demo.py PATH/TO/highwater

Starts the local stack on free ports with the flights example, then talks to it with Kafka's and ClickHouse's own
Python clients. On a terminal it stays up until Ctrl-C; with no terminal it stops everything and exits 0.
"""

import ctypes
import json
import pathlib
import signal
import subprocess
import sys
import time

import clickhouse_connect
import confluent_kafka

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "deploy" / "examples" / "flights" / "highwater.toml"
DATABASE = "flights"
DATA = ROOT / "data" / "demo"
READY_WITHIN = 180  # seconds; a first start makes the cluster and the tables
ANSWER_WITHIN = 60  # seconds, for one client's call
EVENT = {
    "carrier": "UA",
    "flight": 1545,
    "scheduled_departure": "2013-01-01T10:15:00Z",
    "tail": "N14228",
    "origin": "EWR",
    "destination": "IAH",
    "distance": 1400,
    "departure_delay": 2,
    "arrival_delay": 11,
}


class Failed(Exception):
    """One sentence for the user."""


def say(text=""):
    print(text, flush=True)


def end_with_parent():
    """Runs in the child: has the kernel send it SIGTERM should this script be killed."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(highwater):
    """Starts `highwater up` in a session of its own, so that Ctrl-C reaches this script alone, and waits for it."""
    addresses = DATA / "addresses.json"
    before = addresses.stat().st_mtime_ns if addresses.exists() else 0
    command = [highwater, "up", "--fresh", "--config", CONFIG, "--data", DATA]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent)
    try:
        deadline = time.monotonic() + READY_WITHIN
        while not addresses.exists() or addresses.stat().st_mtime_ns == before:
            if up.poll() is not None:
                raise Failed(f"highwater up ended with status {up.returncode}: see above")
            if time.monotonic() > deadline:
                raise Failed(f"highwater up was not ready within {READY_WITHIN} s: see the logs in {DATA}")
            time.sleep(0.1)
        return up, json.loads(addresses.read_text())
    except BaseException:
        stop(up)
        raise


def stop(up):
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
    try:
        return up.wait(timeout=60)
    except subprocess.TimeoutExpired:
        up.kill()
        raise Failed("highwater up did not stop within 60 s and was killed") from None


def send_and_read_back(brokers):
    """One flight through Kafka: produced, then consumed from where it was written."""
    delivered = []
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "message.timeout.ms": ANSWER_WITHIN * 1000})
    payload = json.dumps(EVENT).encode()
    producer.produce("flights", payload, on_delivery=lambda error, message: delivered.append((error, message)))
    producer.flush(ANSWER_WITHIN)
    if not delivered or delivered[0][0] is not None:
        raise Failed(f"Kafka at {brokers} did not take the event: {delivered[0][0] if delivered else 'no answer'}")
    message = delivered[0][1]
    consumer = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": "demo", "enable.auto.commit": False})
    consumer.assign([confluent_kafka.TopicPartition("flights", message.partition(), message.offset())])
    read = consumer.poll(ANSWER_WITHIN)
    consumer.close()
    if read is None or read.error() or read.value() != payload:
        raise Failed(f"Kafka at {brokers} did not give the event back")
    return f"flights/{message.partition()}/{message.offset()}"


def query(url):
    """The version and the tables, through ClickHouse's own client."""
    client = clickhouse_connect.get_client(dsn=url)
    try:
        version = client.query("SELECT version()").result_rows[0][0]
        tables = client.query(f"SELECT name FROM system.tables WHERE database = '{DATABASE}' ORDER BY name").result_rows
        return version, [name for (name,) in tables]
    finally:
        client.close()


def main(highwater):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say("What the definitions in deploy/examples/flights say (highwater check):\n")
    if subprocess.run([highwater, "check", "--config", CONFIG]).returncode != 0:
        raise Failed("the example's definitions did not pass the check: see above")
    say("\nStarting Kafka and ClickHouse (highwater up) ...")
    began = time.monotonic()
    up, addresses = start(highwater)
    try:
        say(f"ready after {time.monotonic() - began:.1f} s")
        where = send_and_read_back(addresses["kafka"])
        say(f"Kafka answers:      one flight written to {where} and read back")
        version, tables = query(addresses["clickhouse"])
        say(f"ClickHouse answers: version {version}, {len(tables)} tables in database {DATABASE}")
        say()
        for name, address in addresses.items():
            say(f"  {name:12} {address}")
        say()
        if sys.stdout.isatty() and sys.stdin.isatty():
            say("Running until Ctrl-C. The layers that move events from one to the other come next.")
            while up.poll() is None:
                time.sleep(0.2)
            raise Failed(f"highwater up ended by itself with status {up.returncode}: see above")
    except KeyboardInterrupt:
        say("\nstopping")
    except BaseException:
        stop(up)
        raise
    status = stop(up)
    if status != 0:
        raise Failed(f"highwater up ended with status {status}")
    say("Stopped: nothing is left running.")


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]).resolve())
    except KeyboardInterrupt:
        sys.exit(130)
    except Failed as failed:
        print(f"demo: {failed}", file=sys.stderr)
        sys.exit(1)
