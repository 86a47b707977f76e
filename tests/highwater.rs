//! Every test that needs more than one crate or a real server, in one binary.

#[cfg(test)]
mod check;
#[cfg(test)]
mod local_stack;
#[cfg(test)]
mod tidy;
mod embedded_clickhouse;
