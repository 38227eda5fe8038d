//! Pictures of tables: curves over a count.

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::table::{Cell, Table};

const SIZE: (u32, u32) = (760, 420);

/// A table is drawn whose columns are counts.
pub fn is_drawn(table: &Table) -> bool {
    table.columns.len() > 1 && counts(table).is_some() && highest(table) > 0.0
}

fn counts(table: &Table) -> Option<Vec<f64>> {
    table.columns.iter().map(|column| column.count.map(|count| count as f64)).collect()
}

fn highest(table: &Table) -> f64 {
    let cells = table.rows.iter().flat_map(|row| &row.cells);
    cells.filter_map(median).fold(0.0, f64::max)
}

fn median(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Measured(series) => Some(series.median),
        Cell::NotRun(_) => None,
    }
}

/// The picture, SVG.
pub fn draw(table: &Table) -> Result<String> {
    let mut svg = String::new();
    draw_on(SVGBackend::with_string(&mut svg, SIZE), table)?;
    Ok(svg)
}

fn draw_on(backend: SVGBackend<'_>, table: &Table) -> Result<()> {
    let counts = counts(table).context("the columns of a picture are counts")?;
    let unit = table.columns.first().context("a picture has columns")?.unit;
    let (first, last) = (counts[0].max(0.5), counts[counts.len() - 1]);
    let area = backend.into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", table.id);
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&table.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(80)
        .build_cartesian_2d((first..last * 1.05).log_scale(), 0.0..highest(table) * 1.1)
        .map_err(|error| failed(&error))?;
    let label = |value: &f64| unit.text(*value);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(WHITE).y_label_formatter(&label).x_label_formatter(&|count| format!("{count:.0}"));
    mesh.draw().map_err(|error| failed(&error))?;
    for (at, row) in table.rows.iter().enumerate() {
        let colour = Palette99::pick(at).to_rgba();
        let point = |(count, cell): (&f64, &Cell)| Some((count.max(0.5), median(cell)?));
        let points: Vec<_> = counts.iter().zip(&row.cells).filter_map(point).collect();
        if points.is_empty() {
            continue;
        }
        let line = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
        let line = chart.draw_series(line).map_err(|error| failed(&error))?;
        line.label(&row.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::LowerLeft).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.draw().map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}
