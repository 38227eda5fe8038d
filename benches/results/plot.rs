//! Pictures of tables: curves over a count, or ratios to the pod's own address as bars. Each contender has the same colour
//! everywhere; a thin line spans the quartiles.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::series::Spread;
use super::table::{Better, Cell, Column, Row, Table};
use crate::contenders::{
    DIRECT, ECMP, HAPROXY, KUBE_IPTABLES, KUBE_NFTABLES, NGINX_HTTP, NGINX_STREAM, VIPROUTE, WITHOUT_EXPRESS,
};

const SIZE: (u32, u32) = (980, 440);
/// The width of the picture that the legend has.
const LEGEND: u32 = 200;
/// What a line between quartiles is drawn with.
const SPREAD: RGBColor = RGBColor(60, 60, 60);
/// Distinguishable also for people who confuse red and green (Okabe and Ito).
const COLOURS: [(&str, RGBColor); 9] = [
    (DIRECT, RGBColor(110, 110, 110)),
    (VIPROUTE, RGBColor(0, 114, 178)),
    (WITHOUT_EXPRESS, RGBColor(86, 180, 233)),
    (KUBE_IPTABLES, RGBColor(230, 159, 0)),
    (KUBE_NFTABLES, RGBColor(213, 94, 0)),
    (HAPROXY, RGBColor(0, 158, 115)),
    (NGINX_STREAM, RGBColor(204, 121, 167)),
    (NGINX_HTTP, RGBColor(150, 75, 140)),
    (ECMP, RGBColor(120, 94, 50)),
];

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
    (!drawn(table).is_empty()).then_some(Form::Bars)
}

/// Whether a table has a picture.
pub fn is_drawn(table: &Table) -> bool {
    form(table).is_some()
}

fn counts(table: &Table) -> Option<Vec<f64>> {
    table.columns.iter().map(|column| column.count.map(|count| (count as f64).max(0.5))).collect()
}

/// The columns of bars: those with a ratio. Of them only those for which the same is better as for the first.
fn drawn(table: &Table) -> Vec<usize> {
    let has_ratio =
        |at: usize| table.rows.iter().any(|row| row.cells.get(at).is_some_and(|cell| ratio(cell).is_some()));
    let better = |column: &Column| column.unit.better().filter(|_| !column.aside);
    let columns = table.columns.iter().enumerate();
    let with: Vec<(usize, Better)> =
        columns.filter(|(at, _)| has_ratio(*at)).filter_map(|(at, column)| Some((at, better(column)?))).collect();
    let first = with.first().map(|(_, better)| *better);
    with.into_iter().filter(|(_, better)| Some(*better) == first).map(|(at, _)| at).collect()
}

fn highest(table: &Table, of: fn(&Cell) -> Option<Spread>) -> f64 {
    table.rows.iter().flat_map(|row| &row.cells).filter_map(of).map(|spread| spread.upper).fold(0.0, f64::max)
}

fn median(cell: &Cell) -> Option<Spread> {
    match cell {
        Cell::Measured(series) => Some(series.spread),
        Cell::NotRun(_) => None,
    }
}

fn ratio(cell: &Cell) -> Option<Spread> {
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
    let measured = |row: &&Row| row.cells.iter().any(|cell| median(cell).is_some());
    let rows: Vec<&Row> = table.rows.iter().filter(measured).collect();
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut builder = ChartBuilder::on(&left);
    builder.caption(&table.title, ("sans-serif", 18)).margin(12).x_label_area_size(32).y_label_area_size(90);
    let mut chart = builder.build_cartesian_2d(across, 0.0..highest(table, median) * 1.1).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    let (label, count) = (|value: &f64| unit.text(*value), |count: &f64| format!("{count:.0}"));
    mesh.light_line_style(WHITE).y_label_formatter(&label).x_label_formatter(&count).draw().map_err(failed)?;
    for (at, row) in rows.iter().enumerate() {
        let spreads = counts.iter().zip(&row.cells).filter_map(|(x, cell)| Some((*x, median(cell)?)));
        let (points, ranges): (Vec<_>, Vec<_>) = spreads
            .map(|(x, spread)| ((x, spread.median), PathElement::new([(x, spread.lower), (x, spread.upper)], SPREAD)))
            .unzip();
        let style = colour(&row.name, at).stroke_width(2);
        chart.draw_series(LineSeries::new(points, style).point_size(3)).map_err(failed)?;
        chart.draw_series(ranges).map_err(failed)?;
    }
    legend(&right, &rows)
}

/// A group of bars a column, a bar a row; what wasn't measured has none.
fn bars(area: &Area<'_>, table: &Table) -> Result<()> {
    let rows: Vec<&Row> = table.rows.iter().filter(|row| row.cells.iter().any(|cell| ratio(cell).is_some())).collect();
    let columns = drawn(table);
    let better = match columns.first().and_then(|at| table.columns[*at].unit.better()) {
        Some(Better::Lower) => "lower",
        _ => "higher",
    };
    let at = |row: &Row, column: usize| row.cells.get(column).and_then(ratio);
    let spreads = rows.iter().flat_map(|row| columns.iter().filter_map(|column| at(row, *column)));
    let (highest, upper) =
        spreads.fold((1.0, 1.0), |(median, upper), spread| (spread.median.max(median), spread.upper.max(upper)));
    // A noisy quartile must not make all bars small: what is above ends at the edge.
    let top = f64::min(upper * 1.08, highest * 1.5);
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("{error}");
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut builder = ChartBuilder::on(&left);
    let title = format!("{}: × the pod's own address, {better} is better", table.title);
    builder.caption(title, ("sans-serif", 16)).margin(12).x_label_area_size(8).y_label_area_size(40);
    let mut chart = builder.build_cartesian_2d(0.0..columns.len() as f64, -top * 0.08..top).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(0).light_line_style(WHITE).y_label_formatter(&|ratio| format!("{ratio:.1}"));
    mesh.draw().map_err(failed)?;
    let width = 0.88 / rows.len() as f64;
    for (number, row) in rows.iter().enumerate() {
        for (place, column) in columns.iter().enumerate() {
            let Some(spread) = at(row, *column) else { continue };
            let left = place as f64 + 0.04 + number as f64 * width;
            let corners = [(left, 0.0), (left + width * 0.92, spread.median)];
            let middle = left + width * 0.46;
            let range = PathElement::new([(middle, spread.lower), (middle, spread.upper.min(top))], SPREAD);
            chart.draw_series([Rectangle::new(corners, colour(&row.name, number).filled())]).map_err(failed)?;
            chart.draw_series([range]).map_err(failed)?;
        }
    }
    let own = PathElement::new([(0.0, 1.0), (columns.len() as f64, 1.0)], BLACK.stroke_width(1));
    chart.draw_series([own]).map_err(failed)?;
    let name = |(place, column): (usize, &usize)| {
        let text = table.columns[*column].name.clone();
        Text::new(text, (place as f64 + 0.04, -top * 0.02), ("sans-serif", 11))
    };
    chart.draw_series(columns.iter().enumerate().map(name)).map_err(failed)?;
    legend(&right, &rows)
}

fn legend(area: &Area<'_>, rows: &[&Row]) -> Result<()> {
    for (at, row) in rows.iter().enumerate() {
        let top = 60 + 20 * i32::try_from(at)?;
        let mark = Rectangle::new([(0, top), (12, top + 12)], colour(&row.name, at).filled());
        area.draw(&mark).map_err(|error| anyhow!("{error}"))?;
        area.draw(&Text::new(row.name.clone(), (18, top), ("sans-serif", 12))).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

/// A contender's own; by place where rows are something else.
fn colour(name: &str, at: usize) -> RGBAColor {
    let known = COLOURS.iter().find(|(known, _)| *known == name).map(|(_, colour)| colour.to_rgba());
    known.unwrap_or_else(|| Palette99::pick(at).to_rgba())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Unit;
    use crate::results::series::Series;

    fn table(columns: &[Column]) -> Table {
        let mut table = Table::new("t", "t", "");
        let row = |value: f64| Ok(columns.iter().map(|_| Series::of(vec![value; 3]).unwrap()).collect());
        let rows = [(DIRECT, row(1.0)), (VIPROUTE, row(1.1)), (HAPROXY, Err("not here".to_owned()))];
        table.add(columns, rows.into_iter().map(|(name, outcome)| (name.to_owned(), outcome)).collect());
        table.beside(DIRECT)
    }

    #[test]
    fn bars_have_one_unit_and_none_for_what_was_not_measured() {
        let columns = [
            Column::new("rate", Unit::PerSecond),
            Column::new("left", Unit::Count),
            Column::new("sent", Unit::PerSecond).aside(),
            Column::new("bulk", Unit::BytesPerSecond),
            Column::new("p99", Unit::Seconds),
        ];
        let table = table(&columns);
        assert_eq!(drawn(&table), [0, 3]);
        let svg = draw(&table).unwrap();
        assert!(svg.contains("higher is better") && svg.contains(VIPROUTE) && !svg.contains(HAPROXY), "{svg}");
    }

    #[test]
    fn a_contender_has_one_colour_wherever_it_stands() {
        assert_eq!(colour(VIPROUTE, 0), colour(VIPROUTE, 5));
        let mut colours: Vec<_> = COLOURS.iter().map(|(_, colour)| (colour.0, colour.1, colour.2)).collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), COLOURS.len());
    }
}
