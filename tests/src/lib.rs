//! What the tests share: servers of their own, on their own ports and folders, that end with the test.

pub mod alone;
pub mod clickhouse;
pub mod disk;
pub mod engine;
pub mod flights;
pub mod platform;
pub mod proxy;
pub mod python;
pub mod s3;
pub mod stack;
pub mod table;
pub mod workers;
