# Runs SQL over Parquet files in another engine, alone in this process, and says how long it took and what came out.
# The task comes as JSON on stdin: engine, statements (each gives one line: cells, and what their counts add up to), and for
# ClickHouse its library.
import ctypes
import json
import sys
import time


def duckdb(task):
    import duckdb

    connection = duckdb.connect()
    # It would go to stdout, among the figures.
    connection.execute("SET enable_progress_bar = false")
    return lambda statement: [int(value) for value in connection.execute(statement).fetchone()]


def clickhouse(task):
    library = ctypes.CDLL(task["library"])
    library.chdb_connect.restype = ctypes.POINTER(ctypes.c_void_p)
    library.chdb_connect.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    library.chdb_query.restype = ctypes.c_void_p
    library.chdb_query.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    library.chdb_result_buffer.restype = ctypes.c_void_p
    library.chdb_result_buffer.argtypes = [ctypes.c_void_p]
    library.chdb_result_length.restype = ctypes.c_size_t
    library.chdb_result_length.argtypes = [ctypes.c_void_p]
    library.chdb_result_error.restype = ctypes.c_char_p
    library.chdb_result_error.argtypes = [ctypes.c_void_p]
    arguments = (ctypes.c_char_p * 1)(b"clickhouse")
    connection = library.chdb_connect(1, arguments)
    if not connection:
        sys.exit("libchdb does not start")

    def run(statement):
        result = library.chdb_query(connection[0], statement.encode(), b"TabSeparated")
        error = library.chdb_result_error(result)
        if error:
            sys.exit(error.decode(errors="replace"))
        text = ctypes.string_at(library.chdb_result_buffer(result), library.chdb_result_length(result))
        return [int(value) for value in text.split()]

    return run


def highest_memory():
    # Not getrusage: its highest is that of the process that started this one, too.
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


task = json.load(sys.stdin)
run = {"duckdb": duckdb, "clickhouse": clickhouse}[task["engine"]](task)
began = time.monotonic()
answers = [run(statement) for statement in task["statements"]]
print(
    json.dumps(
        {
            "seconds": time.monotonic() - began,
            "cells": sum(cells for cells, _ in answers),
            "counted": sum(counted for _, counted in answers),
            "peak": highest_memory(),
        }
    )
)
