//! What the project sets itself, held against the tables.

use serde::Serialize;

use super::series::Series;
use super::table::Table;
use crate::contenders::{DIRECT, HAPROXY, KUBE_IPTABLES, KUBE_NFTABLES, VIPROUTE};

/// A goal and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub text: String,
    pub measured: String,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotMeasured => "not measured",
        }
    }
}

/// All goals.
pub fn goals(tables: &[&Table]) -> Vec<Goal> {
    let tables = Tables(tables);
    let mut goals = vec![
        tables.ratio(
            "connections/s ≥ 1.0 × the pod's own address (0.97 is noise)",
            "data",
            "connections/s",
            DIRECT,
            0.97,
        ),
        tables.ratio(
            "64-byte packets/s ≥ 1.0 × the pod's own address (0.97 is noise)",
            "data",
            "64-byte packets/s",
            DIRECT,
            0.97,
        ),
        tables.ratio(
            "1,400-byte packets/s ≥ 1.0 × the pod's own address (0.97 is noise)",
            "data",
            "1,400-byte packets/s",
            DIRECT,
            0.97,
        ),
        tables.flat("connections/s flat (±5 %) to the most services", "services"),
        tables.flat("packets/s flat (±5 %) to the most services", "services-udp"),
        tables.ratio_at_most_services("≥ 4 × kube-proxy's iptables rules at the most services", KUBE_IPTABLES, 4.0),
        tables.always("> 1.1 × kube-proxy's nftables rules at any number of services", "services", KUBE_NFTABLES, 1.1),
        tables.ratio("≥ 3 × HAProxy's connections/s", "data", "connections/s", HAPROXY, 3.0),
        tables.zero("0 connections broken in every survival row, but a removed replica's own", "survival"),
        tables.none_tracked(),
        tables.kept(),
    ];
    goals.extend(tables.control());
    goals
}

struct Tables<'a>(&'a [&'a Table]);

impl Tables<'_> {
    fn find(&self, id: &str) -> Option<&Table> {
        self.0.iter().copied().find(|table| table.id == id)
    }

    /// viproute's number over another row's, as a goal.
    fn ratio(&self, text: &str, table: &str, column: &str, other: &str, least: f64) -> Goal {
        let table = self.find(table);
        let pair = table.and_then(|table| Some((table.at(VIPROUTE, column)?, table.at(other, column)?)));
        goal(text, pair.map(|(own, other)| ratio(own, other)), |ratio| ratio >= least)
    }

    fn ratio_at_most_services(&self, text: &str, other: &str, least: f64) -> Goal {
        let column = self.find("services").and_then(|table| table.columns.last());
        let Some(column) = column else { return goal(text, None, |_| false) };
        self.ratio(&format!("{text} ({})", column.name), "services", &column.name, other, least)
    }

    /// viproute's number over another row's, in every column.
    fn always(&self, text: &str, table: &str, other: &str, least: f64) -> Goal {
        let worst = self.find(table).and_then(|table| {
            let pair = |name: &str| Some(ratio(table.at(VIPROUTE, name)?, table.at(other, name)?));
            let ratios: Option<Vec<f64>> = table.columns.iter().map(|column| pair(&column.name)).collect();
            ratios?.into_iter().reduce(f64::min)
        });
        goal(text, worst, |worst| worst > least)
    }

    /// The last column's ratio to the pod's own address, over the first one's: what the machine did in between cancels out.
    fn flat(&self, text: &str, table: &str) -> Goal {
        let change = self.find(table).and_then(|table| {
            let ends = (table.columns.first()?, table.columns.last()?);
            let of = |name: &str| table.at(VIPROUTE, name)?.ratio;
            Some(of(&ends.1.name)? / of(&ends.0.name)?)
        });
        goal(text, change, |change| change >= 0.95)
    }

    /// Every number of viproute's row is 0.
    fn zero(&self, text: &str, id: &str) -> Goal {
        let table = self.find(id);
        let row = table.and_then(|table| {
            let numbers = table.columns.iter().filter_map(|column| table.at(VIPROUTE, &column.name));
            numbers.map(|series| series.high).reduce(|sum, number| sum + number)
        });
        let measured = row.map_or_else(|| "–".to_owned(), |sum| format!("{sum:.0}"));
        Goal { text: text.into(), measured, verdict: verdict(row.map(|sum| sum == 0.0)) }
    }

    fn none_tracked(&self) -> Goal {
        let left = self.find("data").and_then(|table| table.at(VIPROUTE, TRACKED)).map(|series| series.high);
        let measured = left.map_or_else(|| "–".to_owned(), |left| format!("{left:.0}"));
        let text = "0 conntrack entries left behind".into();
        Goal { text, measured, verdict: verdict(left.map(|left| left == 0.0)) }
    }

    fn kept(&self) -> Goal {
        let kept = self.find("flood").and_then(|table| Some(table.at(VIPROUTE, KEPT)?.median / 100.0));
        goal("≥ 0.8 × of good connections' requests/s kept in a flood of strays", kept, |kept| kept >= 0.8)
    }

    fn control(&self) -> Vec<Goal> {
        let ptp = self.find("calls").and_then(|table| Some(table.at(PTP, ADD)?.median));
        let calls = |row: &str| self.find("calls").and_then(|table| Some(table.at(row, ADD)?.median));
        let over = |own: Option<f64>| own.zip(ptp).map(|(own, ptp)| own / ptp);
        let grown = self.find("replicas-calls").and_then(|table| {
            let ends = (table.columns.first()?, table.columns.last()?);
            Some(table.at(ADD, &ends.1.name)?.median / table.at(ADD, &ends.0.name)?.median)
        });
        vec![
            goal("ADD ≤ 0.5 × ptp with host-local", over(calls(VIPROUTE)), |ratio| ratio <= 0.5),
            goal("ADD flat to the most replicas (≤ 1.25 ×)", grown, |ratio| ratio <= 1.25),
            goal("pass-through ≤ 0.15 × ptp with host-local", over(calls(PASSED)), |ratio| ratio <= 0.15),
        ]
    }
}

/// Names that the tables of calls share with the goals.
pub const ADD: &str = "ADD";
pub const PTP: &str = "ptp with host-local";
pub const PASSED: &str = "viproute, a pod without a VIP";
/// The column of what good connections keep in a flood.
pub const KEPT: &str = "kept, %";
/// The column of connections the kernel tracks afterwards.
pub const TRACKED: &str = "tracked connections left, of 1,000";

/// The rounds' median ratio.
fn ratio(own: &Series, other: &Series) -> f64 {
    own.clone().beside(other).ratio.unwrap_or(f64::NAN)
}

fn goal(text: &str, ratio: Option<f64>, met: impl Fn(f64) -> bool) -> Goal {
    let measured = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2} ×"));
    Goal { text: text.into(), measured, verdict: verdict(ratio.map(met)) }
}

fn verdict(met: Option<bool>) -> Verdict {
    match met {
        Some(true) => Verdict::Met,
        Some(false) => Verdict::Missed,
        None => Verdict::NotMeasured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Column, Unit};

    fn table(viproute: f64) -> Table {
        let mut table = Table::new("data", "", "");
        let one = |value| Ok(vec![Series::of(vec![value]).unwrap()]);
        let rows = vec![(DIRECT.to_owned(), one(100.0)), (VIPROUTE.to_owned(), one(viproute))];
        table.add(&[Column::new("connections/s", Unit::PerSecond)], rows);
        table
    }

    fn first(table: &Table) -> (String, Verdict) {
        let goals = goals(&[table]);
        (goals[0].measured.clone(), goals[0].verdict)
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        assert_eq!(first(&table(98.0)), ("0.98 ×".into(), Verdict::Met));
        assert_eq!(first(&table(96.0)), ("0.96 ×".into(), Verdict::Missed));
        assert_eq!(first(&Table::new("data", "", "")), ("–".into(), Verdict::NotMeasured));
    }
}
