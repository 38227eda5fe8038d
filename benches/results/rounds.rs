//! Rounds: A B C, B C A, …, so that whatever the machine does meanwhile it does to all of them, and a drift within a round
//! isn't always the same one's.

use anyhow::Result;

use super::series::Series;

/// A row's series, one a column; or why there are none.
pub type Outcome = std::result::Result<Vec<Series>, String>;

/// Calls `measure` for each of `count` contenders once to warm up and then `rounds` times in turn, each round beginning
/// with the next one. It gives a number for each column. Who fails once is asked no more.
pub fn interleaved(count: usize, rounds: usize, mut measure: impl FnMut(usize) -> Result<Vec<f64>>) -> Vec<Outcome> {
    let mut samples: Vec<std::result::Result<Vec<Vec<f64>>, String>> = vec![Ok(Vec::new()); count];
    for round in 0..=rounds {
        for turn in 0..count {
            let at = (round + turn) % count;
            let Ok(so_far) = &mut samples[at] else { continue };
            match measure(at) {
                Ok(_) if round == 0 => {} // warm-up
                Ok(numbers) => so_far.push(numbers),
                Err(error) => samples[at] = Err(format!("{error:#}")),
            }
        }
    }
    samples.into_iter().map(|samples| samples.and_then(|rounds| by_column(&rounds))).collect()
}

/// The samples of several runs of the same measurement; a row that one of them hasn't has none.
pub fn pooled(runs: Vec<Vec<Outcome>>) -> Vec<Outcome> {
    let two = |(one, other): (Outcome, Outcome)| {
        let (one, other) = (one?, other?);
        let columns = one.into_iter().zip(other).map(|(one, other)| Series::of([one.samples, other.samples].concat()));
        columns.collect::<Option<Vec<Series>>>().ok_or_else(|| "no round".to_owned())
    };
    runs.into_iter().reduce(|sum, run| sum.into_iter().zip(run).map(two).collect()).unwrap_or_default()
}

fn by_column(rounds: &[Vec<f64>]) -> Outcome {
    let columns = rounds.iter().map(Vec::len).min().unwrap_or(0);
    let column = |at| Series::of(rounds.iter().map(|round| round[at]).collect());
    let series: Option<Vec<Series>> = (0..columns).map(column).collect();
    series.filter(|series| !series.is_empty()).ok_or_else(|| "no round".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_turn_with_a_warm_up_that_does_not_count() {
        let mut order = Vec::new();
        let outcomes = interleaved(2, 2, |at| {
            order.push(at);
            Ok(vec![order.len() as f64])
        });
        assert_eq!(order, [0, 1, 1, 0, 0, 1]);
        assert_eq!(outcomes[0].as_ref().unwrap()[0].samples, [4.0, 5.0]);
        assert_eq!(outcomes[1].as_ref().unwrap()[0].samples, [3.0, 6.0]);
    }

    #[test]
    fn runs_are_pooled_where_all_have_samples() {
        let run = |value: f64| vec![Ok(vec![Series::of(vec![value]).unwrap()]), Err("not here".to_owned())];
        let pooled = pooled(vec![run(1.0), run(2.0), run(3.0)]);
        assert_eq!(pooled[0].as_ref().unwrap()[0].samples, [1.0, 2.0, 3.0]);
        assert_eq!(pooled[1], Err("not here".into()));
    }

    #[test]
    fn who_fails_is_asked_no_more_and_says_why() {
        let mut calls = 0;
        let outcomes = interleaved(2, 3, |at| {
            anyhow::ensure!(at == 0, "no such path");
            calls += 1;
            Ok(vec![1.0, 2.0])
        });
        assert_eq!(calls, 4);
        assert_eq!(outcomes[0].as_ref().unwrap().len(), 2);
        assert_eq!(outcomes[1], Err("no such path".into()));
    }
}
