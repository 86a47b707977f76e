//! Every test that needs more than one crate or a real server, in one binary.

mod embedded_clickhouse;
