//! One quantity, measured several times.

use serde::Serialize;

/// The samples of one quantity, in the order of the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    pub samples: Vec<f64>,
    pub median: f64,
    /// The smallest and the largest sample.
    pub low: f64,
    pub high: f64,
    /// To the pod's own address: the median of the rounds' ratios, since what a noisy moment does to one it does to its
    /// neighbour as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Series {
    /// `None` without a sample.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        let sorted = sorted(&samples);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: middle(&sorted), low, high, samples, ratio: None })
    }

    /// With the ratio to `base`, round by round.
    pub fn beside(mut self, base: &Self) -> Self {
        let ratios: Vec<f64> = self.samples.iter().zip(&base.samples).map(|(own, base)| own / base).collect();
        self.ratio = Some(middle(&sorted(&ratios))).filter(|ratio| ratio.is_finite());
        self
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The median of a sorted list; NaN of none.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[f64]) -> Series {
        Series::of(samples.to_vec()).unwrap()
    }

    #[test]
    fn median_and_spread() {
        let odd = series(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.low, odd.median, odd.high), (1.0, 2.0, 3.0));
        assert_eq!(odd.samples, [3.0, 1.0, 2.0], "in the order of the rounds");
        assert_eq!(series(&[4.0, 1.0, 2.0, 3.0]).median.to_string(), "2.5");
        assert_eq!(Series::of(Vec::new()), None);
    }

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        // The machine became half as fast in the second round; the ratio hasn't noticed.
        let base = series(&[100.0, 50.0, 100.0]);
        assert_eq!(series(&[90.0, 45.0, 91.0]).beside(&base).ratio, Some(0.9));
        assert_eq!(series(&[1.0]).beside(&series(&[0.0])).ratio, None);
    }
}
