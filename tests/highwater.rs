//! Every test that needs more than one crate or a real server, in one binary.

#[cfg(test)]
mod tidy;
