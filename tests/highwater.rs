//! Every test that needs more than one crate or a real server, in one binary.

#[cfg(test)]
mod accounting;
#[cfg(test)]
mod archive_upkeep;
#[cfg(test)]
mod archiver;
#[cfg(test)]
mod batch_command;
#[cfg(test)]
mod batch_runs;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod changed_view;
#[cfg(test)]
mod check;
#[cfg(test)]
mod damaged_files;
#[cfg(test)]
mod datasets;
#[cfg(test)]
mod demo;
mod disaster;
#[cfg(test)]
mod disk_full;
#[cfg(test)]
mod embedded_clickhouse;
#[cfg(test)]
mod end_to_end;
#[cfg(test)]
mod engine_handoff;
#[cfg(test)]
mod engine_refusals;
#[cfg(test)]
mod engine_states;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod kafka_log;
#[cfg(test)]
mod law;
#[cfg(test)]
mod local_stack;
#[cfg(test)]
mod object_store;
#[cfg(test)]
mod poison;
#[cfg(test)]
mod privacy;
#[cfg(test)]
mod produce;
#[cfg(test)]
mod readers;
mod replay;
#[cfg(test)]
mod schema_change;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod several_workers;
#[cfg(test)]
mod sketches;
#[cfg(test)]
mod speed_redo;
#[cfg(test)]
mod speed_refused;
mod sql;
#[cfg(test)]
mod statements;
#[cfg(test)]
mod status;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod views;
