//! What every measurement needs: rounds, statistics, tables, and what they are written to.

mod cpu;
mod goals;
mod machine;
mod plot;
mod report;
mod rounds;
mod series;
mod table;

pub use cpu::Cpu;
pub use goals::{ADD, KEPT, PASSED, PTP, TRACKED};
pub use report::{Chapter, Report};
pub use rounds::{Outcome, interleaved};
pub use table::{Column, Table, Unit};
