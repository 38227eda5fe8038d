//! Tables: what a measurement gives, and all that reports, plots and goals read.

use serde::Serialize;

use super::rounds::Outcome;
use super::series::Series;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    PerSecond,
    PerMinute,
    BytesPerSecond,
    Bytes,
    Seconds,
    Count,
}

/// Which of two numbers is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Unit {
    /// `None`: neither.
    pub fn better(self) -> Option<Better> {
        match self {
            Self::PerSecond | Self::PerMinute | Self::BytesPerSecond => Some(Better::Higher),
            Self::Seconds | Self::Bytes => Some(Better::Lower),
            Self::Count => None,
        }
    }

    /// A number as people read it.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::PerSecond | Self::Count | Self::PerMinute => grouped(value),
            Self::BytesPerSecond => format!("{:.2} GB/s", value / 1e9),
            Self::Bytes if value >= 1e6 => format!("{:.1} MB", value / 1e6),
            Self::Bytes => format!("{:.0} kB", value / 1e3),
            Self::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Self::Seconds if value >= 1e-3 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{:.1} µs", value * 1e6),
        }
    }
}

/// `12,345`; one digit behind the point below 100.
fn grouped(value: f64) -> String {
    if value.abs() < 100.0 {
        let text = format!("{value:.1}");
        return text.strip_suffix(".0").map_or(text.clone(), str::to_owned);
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[derive(Clone, Debug, Serialize)]
pub struct Column {
    pub name: String,
    pub unit: Unit,
    /// Of how many of something this column tells, where the columns differ by that: a picture's axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// It says how something was measured, and is in no picture.
    #[serde(skip)]
    pub aside: bool,
}

impl Column {
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, count: None, aside: false }
    }

    /// A column for `count` of them: `1,000 services`.
    pub fn of(count: usize, what: &str, unit: Unit) -> Self {
        Self { name: format!("{} {what}", grouped(count as f64)), unit, count: Some(count), aside: false }
    }

    /// As one that says how something was measured.
    pub fn aside(mut self) -> Self {
        self.aside = true;
        self
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    Measured(Series),
    /// It can't be, or could not be, and why.
    NotRun(String),
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub cells: Vec<Cell>,
}

/// Rows are contenders or settings, columns are quantities.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// By which goals and plots find it.
    pub id: String,
    pub title: String,
    /// What was done, in a few sentences.
    pub text: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

impl Table {
    pub fn new(id: &str, title: &str, text: &str) -> Self {
        Self { id: id.into(), title: title.into(), text: text.into(), columns: Vec::new(), rows: Vec::new() }
    }

    /// Adds columns that were measured for the rows of these names.
    pub fn add(&mut self, columns: &[Column], outcomes: Vec<(String, Outcome)>) {
        let before = self.columns.len();
        self.columns.extend_from_slice(columns);
        for (name, outcome) in outcomes {
            let known = self.rows.iter().position(|row| row.name == name);
            let row = known.unwrap_or_else(|| {
                self.rows.push(Row { name, cells: vec![Cell::NotRun("not measured here".into()); before] });
                self.rows.len() - 1
            });
            let cells = &mut self.rows[row].cells;
            match outcome {
                Ok(series) => cells.extend(series.into_iter().map(Cell::Measured)),
                Err(reason) => cells.extend(columns.iter().map(|_| Cell::NotRun(reason.clone()))),
            }
        }
        let width = self.columns.len();
        for row in &mut self.rows {
            row.cells.resize_with(width, || Cell::NotRun("not measured here".into()));
        }
    }

    /// One number in a row of its own, for tables of settings.
    pub fn note(&mut self, row: &str, cells: Vec<Result<Vec<f64>, String>>) {
        let cell = |cell| match cell {
            Ok(samples) => Series::of(samples).map_or_else(|| Cell::NotRun("no sample".into()), Cell::Measured),
            Err(reason) => Cell::NotRun(reason),
        };
        self.rows.push(Row { name: row.into(), cells: cells.into_iter().map(cell).collect() });
    }

    /// Completes each other row with its ratios to the row `base`.
    pub fn beside(mut self, base: &str) -> Self {
        let Some(base) = self.rows.iter().find(|row| row.name == base).cloned() else { return self };
        for row in self.rows.iter_mut().filter(|row| row.name != base.name) {
            for (cell, base) in row.cells.iter_mut().zip(&base.cells) {
                if let (Cell::Measured(own), Cell::Measured(base)) = (&mut *cell, base) {
                    *cell = Cell::Measured(own.clone().beside(base));
                }
            }
        }
        self
    }

    /// The numbers at a row and a column.
    pub fn at(&self, row: &str, column: &str) -> Option<&Series> {
        let column = self.columns.iter().position(|known| known.name == column)?;
        match self.rows.iter().find(|known| known.name == row)?.cells.get(column)? {
            Cell::Measured(series) => Some(series),
            Cell::NotRun(_) => None,
        }
    }
}

/// All tables of a run.
#[derive(Clone, Copy)]
pub struct Tables<'a>(pub &'a [&'a Table]);

impl<'a> Tables<'a> {
    pub fn find(self, id: &str) -> Option<&'a Table> {
        self.0.iter().copied().find(|table| table.id == id)
    }

    pub fn at(self, table: &str, row: &str, column: &str) -> Option<&'a Series> {
        self.find(table)?.at(row, column)
    }

    /// A row's number over another one's: the median of the rounds' ratios.
    pub fn ratio(self, table: &str, column: &str, (row, other): (&str, &str)) -> Option<f64> {
        let (own, other) = (self.at(table, row, column)?, self.at(table, other, column)?);
        Some(own.clone().beside(other).ratio?.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::series::Spread;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(Unit::PerSecond.text(1_234_567.4), "1,234,567");
        assert_eq!(Unit::Count.text(3.0), "3");
        assert_eq!(Unit::Count.text(99.94), "99.9");
        assert_eq!(Unit::Seconds.text(0.0123), "12.30 ms");
        assert_eq!(Unit::Seconds.text(0.000_012_3), "12.3 µs");
        assert_eq!(Unit::Bytes.text(6_200_000.0), "6.2 MB");
    }

    #[test]
    fn what_was_not_measured_is_no_gap() {
        let one = |value| Ok(vec![Series::of(vec![value]).unwrap()]);
        let mut table = Table::new("t", "", "");
        let column = |name: &str| [Column::new(name, Unit::Count)];
        table.add(&column("a"), vec![("direct".into(), one(2.0)), ("x".into(), Err("no such program".into()))]);
        table.add(&column("b"), vec![("direct".into(), one(4.0)), ("y".into(), one(2.0))]);
        let table = table.beside("direct");
        assert!(table.rows.iter().all(|row| row.cells.len() == 2));
        assert_eq!(table.at("y", "b").unwrap().ratio, Spread::of(&[0.5]));
        assert!(table.at("x", "a").is_none() && table.at("y", "a").is_none());
    }
}
