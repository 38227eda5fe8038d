//! How long a test does at random whatever can be done.

use std::time::Duration;

/// `VIPROUTE_CHURN_SECONDS`, else this long.
pub fn churn(usual: Duration) -> Duration {
    let seconds = std::env::var("VIPROUTE_CHURN_SECONDS").ok();
    seconds
        .map_or(usual, |text| Duration::from_secs(text.parse().expect("VIPROUTE_CHURN_SECONDS is a number of seconds")))
}
