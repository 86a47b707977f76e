"""Asks other programs what a Delta table holds: DuckDB, Delta Lake's own package, and ClickHouse's engine.

    readers.py TABLE LIBCHDB

Prints one JSON object: of each reader the same figures, as texts. No tables are made and nothing is fetched.
"""

import ctypes
import glob
import json
import os
import sys
import tempfile

import duckdb
import duckdb_extension_delta
from deltalake import DeltaTable, QueryBuilder

FIGURES = {
    "events": "count(*)",
    "n": 'sum("n")',
    "fare": 'cast(sum("fare") AS varchar)',
    "fares": 'count("fare")',
    "paid": 'sum(CASE WHEN "paid" THEN 1 ELSE 0 END)',
    "unpaid": 'sum(CASE WHEN "paid" THEN 0 WHEN "paid" IS NULL THEN 0 ELSE 1 END)',
    "first_day": 'cast(min("day") AS varchar)',
    "last_day": 'cast(max("day") AS varchar)',
    "cities": 'count("city")',
    "tokyo": "sum(CASE WHEN \"city\" = '東京' THEN 1 ELSE 0 END)",
    "distance": 'cast(sum("distance") * 4 AS bigint)',
    "first": 'min("_offset")',
    "last": 'max("_offset")',
    "partitions": 'sum("_partition")',
    "extra": 'count("_extra")',
    "date": 'cast(max("_date") AS varchar)',
    "seconds": "cast(sum(date_part('epoch', \"at\")) AS bigint)",
    "topics": 'count(DISTINCT "_topic")',
}

# Where ClickHouse says it in other words.
CLICKHOUSE = {
    "fare": "toDecimalString(sum(fare), 2)",
    "first_day": "toString(min(day))",
    "last_day": "toString(max(day))",
    "distance": "toInt64(sum(distance) * 4)",
    "date": "toString(max(_date))",
    "seconds": "sum(toUnixTimestamp(at))",
}


def select(source, figures):
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in figures.items())
    return f"SELECT {columns} FROM {source}"


def of_duckdb(table):
    folder = os.path.dirname(duckdb_extension_delta.__file__)
    (extension,) = glob.glob(f"{folder}/extensions/*/delta.duckdb_extension")
    offline = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(config=offline) as connection:
        connection.execute(f"LOAD '{extension}'")
        return connection.execute(select(f"delta_scan('{table}')", FIGURES)).fetchone()


def of_deltalake(table):
    query = QueryBuilder().register("t", DeltaTable(table)).execute(select("t", FIGURES))
    batch = query.read_all()
    return [batch.column(name).to_pylist()[0] for name in batch.column_names]


def of_clickhouse(table, library):
    engine = ctypes.CDLL(library)
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    engine.chdb_connect.restype = ctypes.POINTER(pointer)
    engine.chdb_connect.argtypes = [ctypes.c_int, ctypes.POINTER(text)]
    engine.chdb_query_n.restype = pointer
    engine.chdb_query_n.argtypes = [pointer, text, size, text, size]
    engine.chdb_result_buffer.restype, engine.chdb_result_buffer.argtypes = pointer, [pointer]
    engine.chdb_result_length.restype, engine.chdb_result_length.argtypes = size, [pointer]
    engine.chdb_result_error.restype, engine.chdb_result_error.argtypes = text, [pointer]
    engine.chdb_destroy_query_result.argtypes = [pointer]
    engine.chdb_close_conn.argtypes = [ctypes.POINTER(pointer)]
    # It reads files below the working folder only.
    os.chdir("/")
    with tempfile.TemporaryDirectory() as folder:
        arguments = [b"clickhouse", f"--path={folder}".encode()]
        connection = engine.chdb_connect(len(arguments), (text * len(arguments))(*arguments))
        figures = {name: CLICKHOUSE.get(name, sql) for name, sql in FIGURES.items()}
        # Here a figure's name goes before the column of that name otherwise.
        settings = "SETTINGS prefer_column_name_to_alias = 1"
        source = f"deltaLakeLocal('{table}')"
        sql = f"{select(source, figures)} {settings}".encode()
        result = engine.chdb_query_n(connection[0], sql, len(sql), b"JSONCompactEachRow", 18)
        error = engine.chdb_result_error(result)
        if error:
            sys.exit(error.decode())
        length = engine.chdb_result_length(result)
        answer = ctypes.string_at(engine.chdb_result_buffer(result), length)
        # An open connection would keep the program from ending.
        engine.chdb_destroy_query_result(result)
        engine.chdb_close_conn(connection)
        return json.loads(answer)


def main():
    table, library = sys.argv[1:]
    answers = {
        "duckdb": of_duckdb(table),
        "deltalake": of_deltalake(table),
        "clickhouse": of_clickhouse(table, library),
    }
    named = {
        reader: {name: str(value) for name, value in zip(FIGURES, answer)} for reader, answer in answers.items()
    }
    print(json.dumps(named))


main()
