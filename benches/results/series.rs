//! One quantity, measured several times.

use serde::Serialize;

/// The samples of one quantity, in the order of the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    pub samples: Vec<f64>,
    #[serde(flatten)]
    pub spread: Spread,
    /// To the pod's own address: of the rounds' ratios, since what a noisy moment does to one it does to its neighbour as
    /// well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Spread>,
}

/// Half of all samples lie between the quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub lower: f64,
    pub upper: f64,
}

impl Series {
    /// `None` without a sample.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        Some(Self { spread: Spread::of(&samples)?, samples, ratio: None })
    }

    /// With the ratio to `base`, round by round.
    pub fn beside(mut self, base: &Self) -> Self {
        let ratios: Vec<f64> = self.samples.iter().zip(&base.samples).map(|(own, base)| own / base).collect();
        self.ratio = Spread::of(&ratios).filter(|ratio| ratio.median.is_finite());
        self
    }

    pub fn median(&self) -> f64 {
        self.spread.median
    }

    /// All samples together.
    pub fn sum(&self) -> f64 {
        self.samples.iter().sum()
    }
}

impl Spread {
    /// `None` without a sample.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        (!sorted.is_empty()).then(|| Self { median: at(0.5), lower: at(0.25), upper: at(0.75) })
    }
}

/// Of a sorted list that isn't empty, between its neighbours where it falls between them.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[f64]) -> Series {
        Series::of(samples.to_vec()).unwrap()
    }

    #[test]
    fn median_and_quartiles() {
        let odd = series(&[5.0, 3.0, 1.0, 2.0, 4.0]);
        assert_eq!(odd.spread, Spread { median: 3.0, lower: 2.0, upper: 4.0 });
        assert_eq!(odd.samples, [5.0, 3.0, 1.0, 2.0, 4.0], "in the order of the rounds");
        assert_eq!(series(&[4.0, 1.0, 2.0, 3.0]).spread, Spread { median: 2.5, lower: 1.75, upper: 3.25 });
        assert_eq!(series(&[7.0]).spread, Spread { median: 7.0, lower: 7.0, upper: 7.0 });
        assert_eq!(Series::of(Vec::new()), None);
    }

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        // The machine became half as fast in the second round; the ratio hasn't noticed.
        let base = series(&[100.0, 50.0, 100.0]);
        let ratio = series(&[90.0, 45.0, 91.0]).beside(&base).ratio.unwrap();
        assert_eq!((ratio.median, ratio.lower), (0.9, 0.9));
        assert_eq!(series(&[1.0]).beside(&series(&[0.0])).ratio, None);
    }
}
