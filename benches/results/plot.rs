//! Pictures of tables: curves over a count, or ratios to the pod's own address as bars.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::table::{Cell, Row, Table};

const SIZE: (u32, u32) = (860, 420);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a table is drawn as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The columns differ by a count.
    Curves,
    /// Rows have ratios.
    Bars,
}

fn form(table: &Table) -> Option<Form> {
    if table.columns.len() > 1 && counts(table).is_some() && highest(table, median) > 0.0 {
        return Some(Form::Curves);
    }
    (highest(table, ratio) > 0.0 && counts(table).is_none()).then_some(Form::Bars)
}

/// Whether a table has a picture.
pub fn is_drawn(table: &Table) -> bool {
    form(table).is_some()
}

fn counts(table: &Table) -> Option<Vec<f64>> {
    table.columns.iter().map(|column| column.count.map(|count| (count as f64).max(0.5))).collect()
}

fn highest(table: &Table, of: fn(&Cell) -> Option<f64>) -> f64 {
    table.rows.iter().flat_map(|row| &row.cells).filter_map(of).fold(0.0, f64::max)
}

fn median(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Measured(series) => Some(series.median),
        Cell::NotRun(_) => None,
    }
}

fn ratio(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Measured(series) => series.ratio,
        Cell::NotRun(_) => None,
    }
}

/// The picture, SVG.
pub fn draw(table: &Table) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = area.fill(&WHITE).map_err(|error| anyhow!("{error}")).and_then(|()| match form(table) {
        Some(Form::Bars) => bars(&area, table),
        _ => curves(&area, table),
    });
    drawn.and_then(|()| area.present().map_err(|error| anyhow!("{error}"))).context(format!("draw {}", table.id))?;
    drop(area);
    Ok(svg)
}

fn curves(area: &Area<'_>, table: &Table) -> Result<()> {
    let counts = counts(table).context("the columns of a picture are counts")?;
    let unit = table.columns.first().context("a picture has columns")?.unit;
    let across = (counts[0]..counts[counts.len() - 1] * 1.05).log_scale();
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("{error}");
    let mut builder = ChartBuilder::on(area);
    builder.caption(&table.title, ("sans-serif", 18)).margin(12).x_label_area_size(32).y_label_area_size(90);
    let mut chart = builder.build_cartesian_2d(across, 0.0..highest(table, median) * 1.1).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    let (label, count) = (|value: &f64| unit.text(*value), |count: &f64| format!("{count:.0}"));
    mesh.light_line_style(WHITE).y_label_formatter(&label).x_label_formatter(&count).draw().map_err(failed)?;
    for (at, row) in table.rows.iter().enumerate() {
        let points: Vec<_> = counts.iter().zip(&row.cells).filter_map(|(x, cell)| Some((*x, median(cell)?))).collect();
        if points.is_empty() {
            continue;
        }
        let style = colour(at).stroke_width(2);
        let line = chart.draw_series(LineSeries::new(points, style).point_size(3)).map_err(failed)?;
        line.label(&row.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::LowerLeft).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.draw().map_err(failed)
}

/// A group of bars a column, a bar a row.
fn bars(area: &Area<'_>, table: &Table) -> Result<()> {
    let rows: Vec<&Row> = table.rows.iter().filter(|row| row.cells.iter().any(|cell| ratio(cell).is_some())).collect();
    let of = |column: usize| rows.iter().map(move |row| row.cells.get(column).and_then(ratio));
    let columns: Vec<usize> = (0..table.columns.len()).filter(|at| of(*at).any(|ratio| ratio.is_some())).collect();
    let top = highest(table, ratio).max(1.0) * 1.1;
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("{error}");
    let mut builder = ChartBuilder::on(area);
    let title = format!("{}: × the pod's own address", table.title);
    builder.caption(title, ("sans-serif", 18)).margin(12).x_label_area_size(8).y_label_area_size(50);
    // Room for the columns' names below, and for the legend on the right.
    let across = 0.0..columns.len() as f64 * 1.35;
    let mut chart = builder.build_cartesian_2d(across, -top * 0.08..top).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(0).light_line_style(WHITE).y_label_formatter(&|ratio| format!("{ratio:.1}"));
    mesh.draw().map_err(failed)?;
    let width = 0.85 / rows.len() as f64;
    for (at, row) in rows.iter().enumerate() {
        let bar = |(place, column): (usize, &usize)| {
            let left = place as f64 + at as f64 * width;
            let corners = [(left, 0.0), (left + width, ratio(row.cells.get(*column)?)?)];
            Some(Rectangle::new(corners, colour(at).filled()))
        };
        let series = chart.draw_series(columns.iter().enumerate().filter_map(bar)).map_err(failed)?;
        let style = colour(at).filled();
        series.label(&row.name).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], style));
    }
    let name = |(place, column): (usize, &usize)| {
        let text = table.columns[*column].name.clone();
        Text::new(text, (place as f64, -top * 0.02), ("sans-serif", 11))
    };
    chart.draw_series(columns.iter().enumerate().map(name)).map_err(failed)?;
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
    legend.draw().map_err(failed)
}

fn colour(at: usize) -> RGBAColor {
    Palette99::pick(at).to_rgba()
}
