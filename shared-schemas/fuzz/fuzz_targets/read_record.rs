//! Any bytes as a record: `cargo +nightly fuzz run read_record` in `shared-schemas`.
//!
//! What is checked stands in `src/decode/tests/anything.rs`; `make test` runs the same as a property test.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared_schemas as schemas;

#[path = "../../src/decode/tests/anything.rs"]
mod anything;

fuzz_target!(|data: &[u8]| anything::check(data));
