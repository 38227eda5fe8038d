//! What every measurement needs: rounds, statistics, tables, and what they are written to.

mod goals;
mod machine;
mod plot;
mod report;
mod rounds;
mod series;
mod summary;
mod table;

pub use goals::{ADD, DRAIN_COLUMNS, KEPT, PASSED, PTP, TRACKED, update_columns};
pub use report::{Chapter, Report};
pub use rounds::{Outcome, interleaved, pooled};
pub use table::{Column, Table, Unit};
