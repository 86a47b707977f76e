"""What users of clickhouse-connect do, against the server on the port given."""

import datetime
import sys

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError

client = clickhouse_connect.get_client(
    host="127.0.0.1", port=int(sys.argv[1]), username="ann", password="secret"
)
assert client.command("SELECT 1") == 1
assert client.ping()
client.command("CREATE DATABASE db")
client.command(
    "CREATE TABLE db.t (id UInt64, name String, at DateTime64(3), tags Array(LowCardinality(String)),"
    " value Nullable(Float64)) ENGINE = MergeTree ORDER BY id"
)
moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678000)
rows = [
    [i, f"it's \\ {i}", moment, ["a", f"b{i % 3}"], None if i % 2 else i / 7]
    for i in range(5000)
]
for compress in (True, "lz4", "zstd", "gzip", False):
    with clickhouse_connect.get_client(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        username="ann",
        password="secret",
        database="db",
        compress=compress,
    ) as other:
        other.command("TRUNCATE TABLE t")
        summary = other.insert("t", rows, column_names=["id", "name", "at", "tags", "value"])
        assert summary.written_rows == 5000, summary
        result = other.query("SELECT * FROM t ORDER BY id")
        assert [list(row) for row in result.result_rows] == rows, compress

# parameters, settings, streams
answer = client.query(
    "SELECT {x:String}, {n:Array(UInt8)}, getSetting('max_threads')",
    parameters={"x": "a'b\\c", "n": [1, 2]},
    settings={"max_threads": 3},
)
assert answer.result_rows == [("a'b\\c", [1, 2], 3)], answer.result_rows
with client.query_row_block_stream("SELECT number FROM numbers(500000)") as stream:
    assert sum(len(block) for block in stream) == 500000
assert client.raw_query("SELECT 1 AS a FORMAT JSONEachRow") == b'{"a":1}\n'

# a session is the client's: temporary tables live on
client.command("CREATE TEMPORARY TABLE mine (x UInt8)")
client.command("INSERT INTO mine VALUES (1), (2)")
assert client.command("SELECT sum(x) FROM mine") == 3

try:
    client.query("SELECT * FROM db.nosuch")
except DatabaseError as error:
    assert "UNKNOWN_TABLE" in str(error), error
else:
    raise AssertionError("no error for an unknown table")
print("done")
