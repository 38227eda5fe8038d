//! `docs/benchmarks.md`, its pictures, and the raw numbers in `target/`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::goals::{Goal, goals};
use super::machine::Machine;
use super::plot;
use super::series::{Series, Spread};
use super::summary::summary;
use super::table::{Cell, Row, Table, Tables, Unit};

/// Tables under one heading.
#[derive(Clone, Debug, Serialize)]
pub struct Chapter {
    pub title: String,
    pub text: String,
    pub tables: Vec<Table>,
}

/// All of it.
#[derive(Serialize)]
pub struct Report {
    pub machine: Machine,
    pub quick: bool,
    pub rounds: usize,
    pub seconds: f64,
    pub goals: Vec<Goal>,
    pub chapters: Vec<Chapter>,
}

impl Report {
    pub fn new(command: String, (quick, rounds): (bool, usize)) -> Self {
        let machine = Machine::look(command);
        Self { machine, quick, rounds, seconds: 0.0, goals: Vec::new(), chapters: Vec::new() }
    }

    /// Writes what there is so far to the directory `docs`.
    pub fn write(&mut self, docs: &Path, seconds: f64) -> Result<()> {
        self.seconds = seconds;
        let tables: Vec<&Table> = self.chapters.iter().flat_map(|chapter| &chapter.tables).collect();
        self.goals = goals(&tables);
        let write = |path: &Path, text: String| -> Result<()> {
            fs::create_dir_all(path.parent().context("a directory")?)?;
            #[allow(clippy::disallowed_methods)] // read when the bench is done
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        for (name, picture) in self.pictures()? {
            write(&docs.join(name), picture)?;
        }
        write(Path::new(RAW), serde_json::to_string_pretty(self)? + "\n")?;
        write(&docs.join("benchmarks.md"), self.markdown(docs)?)
    }

    fn pictures(&self) -> Result<Vec<(String, String)>> {
        let tables = self.chapters.iter().flat_map(|chapter| &chapter.tables);
        tables
            .filter_map(|table| Some((picture_name(table)?, table)))
            .map(|(name, table)| Ok((name, plot::draw(table)?)))
            .collect()
    }

    fn markdown(&self, docs: &Path) -> Result<String> {
        let mut text = String::from("# Benchmarks\n\n");
        let tables: Vec<&Table> = self.chapters.iter().flat_map(|chapter| &chapter.tables).collect();
        for sentence in summary(Tables(&tables)) {
            writeln!(text, "- {sentence}")?;
        }
        text.push('\n');
        self.write_head(&mut text, docs)?;
        text.push_str("\n## Goals\n\n| goal | measured | |\n|---|---|---|\n");
        for goal in &self.goals {
            writeln!(text, "| {} | {} | {} |", goal.text, goal.measured, goal.verdict.text())?;
        }
        for chapter in &self.chapters {
            writeln!(text, "\n## {}", chapter.title)?;
            if !chapter.text.is_empty() {
                write!(text, "\n{}\n", chapter.text)?;
            }
            for table in &chapter.tables {
                write_table(&mut text, table)?;
            }
        }
        Ok(text)
    }

    fn write_head(&self, text: &mut String, docs: &Path) -> Result<()> {
        let Machine { date, command, processor, processors, memory, kernel, system, versions } = &self.machine;
        let minutes = self.seconds / 60.0;
        writeln!(
            text,
            "Written by `{command}` on {date}, in {minutes:.0} minutes. Nothing here is typed by hand; the raw"
        )?;
        writeln!(text, "numbers, every round of them, are in `{RAW}` after a run.\n")?;
        writeln!(text, "{processors} × {processor}, {memory}, {kernel}, {system}.\n")?;
        let versions: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(text, "{}.\n", versions.join(" · "))?;
        writeln!(
            text,
            "Client, node and pods are network namespaces of this one machine; client and servers are threads of the bench, \
             one each,\nor one together where CPU time is measured. Contenders are measured in turn, {} rounds after one to warm up \
             (more of CPU\ntime). A cell is the median (lower – upper quartile); × is the median of the rounds' ratios to the \
             pod's own address\n[lower – upper quartile].",
            self.rounds
        )?;
        if self.quick {
            writeln!(text, "\n**A quick run**: short and few rounds, to see that everything works. Don't quote it.")?;
        }
        if docs.join(READING).exists() {
            writeln!(text, "\nWhat to make of it: [{READING}]({READING}).")?;
        }
        Ok(())
    }
}

/// The numbers as they were measured: too many for git.
const RAW: &str = "target/benchmarks.json";

/// Written by people, about these numbers.
const READING: &str = "reading-the-benchmarks.md";

/// The picture of a table that has one.
fn picture_name(table: &Table) -> Option<String> {
    plot::is_drawn(table).then(|| PathBuf::from(format!("benchmarks-{}.svg", table.id)).display().to_string())
}

fn write_table(text: &mut String, table: &Table) -> Result<()> {
    write!(text, "\n### {}\n\n{}\n\n", table.title, table.text)?;
    let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
    writeln!(text, "| | {} |", names.join(" | "))?;
    writeln!(text, "|---|{}", "---|".repeat(names.len()))?;
    let mut reasons = Vec::new();
    for Row { name, cells } in &table.rows {
        let cells = cells.iter().zip(&table.columns).map(|(cell, column)| match cell {
            Cell::Measured(series) => measured(series, column.unit),
            Cell::NotRun(reason) => {
                let at = reasons.iter().position(|known| known == reason).unwrap_or_else(|| {
                    reasons.push(reason.clone());
                    reasons.len() - 1
                });
                format!("– [{}]", at + 1)
            }
        });
        writeln!(text, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
    }
    if !reasons.is_empty() {
        text.push('\n');
    }
    for (at, reason) in reasons.iter().enumerate() {
        writeln!(text, "[{}] {}  ", at + 1, reason.trim().replace('\n', " "))?;
    }
    if let Some(picture) = picture_name(table) {
        write!(text, "\n![{}]({picture})\n", table.title)?;
    }
    Ok(())
}

/// `1,234 (1,200 – 1,300) × 0.98 [0.96 – 0.99]`
fn measured(series: &Series, unit: Unit) -> String {
    let Spread { median, lower, upper } = series.spread;
    let spread = format!(" ({} – {})", unit.text(lower), unit.text(upper));
    let spread = if series.samples.len() > 1 { spread } else { String::new() };
    let ratio = series.ratio.map(|Spread { median, lower, upper }| match series.samples.len() {
        1 => format!(" × {median:.2}"),
        _ => format!(" × {median:.2} [{lower:.2} – {upper:.2}]"),
    });
    format!("{}{spread}{}", unit.text(median), ratio.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_quartiles_and_a_ratio() {
        let base = Series::of(vec![100.0, 200.0, 300.0]).unwrap();
        let own = Series::of(vec![110.0, 220.0, 330.0]).unwrap().beside(&base);
        assert_eq!(measured(&own, Unit::PerSecond), "220 (165 – 275) × 1.10 [1.10 – 1.10]");
        assert_eq!(measured(&Series::of(vec![3.0]).unwrap(), Unit::Count), "3");
    }

    #[test]
    fn the_page_begins_with_six_sentences() {
        let report = Report::new("./install.sh bench".into(), (false, 5));
        let text = report.markdown(Path::new("/nonexistent")).unwrap();
        let first: Vec<&str> = text.lines().skip(2).take(7).collect();
        assert!(first[..6].iter().all(|line| line.starts_with("- **")) && first[6].is_empty(), "{text}");
    }
}
