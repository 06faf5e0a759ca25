//! Queries as the arrivals that they stand for.

use reveille_api::types::ArrivalsEstimate;
use reveille_dns::observe::Correction;

/// Arrivals behind so many queries at least and at most.
pub fn of(correction: &Correction, (at_least, at_most): (u64, u64)) -> ArrivalsEstimate {
    let times = |queries: u64, per_query: f64| rounded(queries as f64 * per_query);
    let Correction { within_80, within_95, .. } = correction;
    ArrivalsEstimate {
        estimate: times(at_least.midpoint(at_most), correction.per_query),
        low_80: times(at_least, within_80.low),
        high_80: times(at_most, within_80.high),
        low_95: times(at_least, within_95.low),
        high_95: times(at_most, within_95.high),
        per_query_milli: rounded(1e3 * correction.per_query),
        window_queries: correction.queries,
        window_resolvers: correction.resolvers,
        window_s: correction.window_ms / 1_000,
        uncorrected_percent: rounded(100.0 * correction.uncorrected),
    }
}

/// The nearest count; none for what is negative or no number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is wanted"
)]
pub fn rounded(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use reveille_core::forecast::caching::Interval;
    use reveille_core::model::Timestamp;

    use super::*;

    #[test]
    fn an_interval_spans_what_is_not_sure_of_the_queries_and_of_what_they_stand_for() {
        let correction = Correction {
            until: Timestamp::from_ms(0),
            window_ms: 300_000,
            queries: 400,
            resolvers: 20,
            per_query: 3.0,
            within_80: Interval { low: 2.5, high: 3.5 },
            within_95: Interval { low: 2.0, high: 4.0 },
            uncorrected: 0.05,
        };
        let found = of(&correction, (10, 20));
        assert_eq!((found.estimate, found.low_80, found.high_80), (45, 25, 70));
        assert_eq!((found.low_95, found.high_95, found.per_query_milli), (20, 80, 3_000));
        assert_eq!((found.window_s, found.uncorrected_percent), (300, 5));
    }
}
