//! Measuring Highwater on this machine, with the aims that stand in `docs/performance.md`.
//!
//! - [`figure`]: a figure and its aim
//! - [`events`]: the events that are measured with
//! - [`stages`]: what each stage does alone on one core

pub(crate) mod events;
pub(crate) mod figure;
pub(crate) mod stages;

pub(crate) use figure::Figure;
