//! A forecaster that is not trusted to return: it runs on a thread of its own, a panic is a fault, and so is being late.
//!
//! A thread cannot be ended from outside. One that is late goes on until it is done by itself, and counts as running until
//! then: at most [`RUNNING_MAX`] of a guard do, and further forecasts are refused, so that a model that hangs costs a
//! bounded number of threads and is out from then on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use reveille_core::forecast::volume::{Fault, Forecaster, Quantiles, Series};

/// Most threads of one guard, late ones included.
pub const RUNNING_MAX: usize = 2;

/// Another forecaster, within a deadline.
pub struct Guarded<F> {
    forecaster: Arc<F>,
    deadline: Duration,
    running: Arc<AtomicUsize>,
}

/// Counts a thread for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<F> Guarded<F> {
    /// `deadline`: of one forecast.
    pub fn new(forecaster: F, deadline: Duration) -> Self {
        Self { forecaster: Arc::new(forecaster), deadline, running: Arc::new(AtomicUsize::new(0)) }
    }
}

impl<F: Forecaster + Send + Sync + 'static> Forecaster for Guarded<F> {
    fn forecast(&self, history: &Series, horizon: usize, levels: &[f64]) -> Result<Quantiles, Fault> {
        let failed = |why: &str| Fault::Failed { why: why.to_owned() };
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(&self.running));
        if before >= RUNNING_MAX {
            return Err(failed("earlier forecasts of it still run"));
        }
        let (send, receive) = sync_channel(1);
        let (forecaster, history, levels) = (Arc::clone(&self.forecaster), history.clone(), levels.to_vec());
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(|| forecaster.forecast(&history, horizon, &levels)));
            drop(running);
            // Nobody may listen any more.
            let _ =
                send.send(result.unwrap_or_else(|_| Err(Fault::Failed { why: "it panicked".to_owned() })));
        };
        let thread = std::thread::Builder::new().name("forecast".to_owned()).spawn(work);
        thread.map_err(|fault| Fault::Failed { why: format!("no thread for it: {fault}") })?;
        match receive.recv_timeout(self.deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(failed("it was late")),
            Err(RecvTimeoutError::Disconnected) => Err(failed("its thread is gone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics for a horizon of 1, hangs for one of 2, and says that it cannot otherwise.
    struct Bad;

    impl Forecaster for Bad {
        fn forecast(&self, _: &Series, horizon: usize, _: &[f64]) -> Result<Quantiles, Fault> {
            match horizon {
                1 => panic!("a bug of a model"),
                2 => std::thread::sleep(Duration::from_secs(6)),
                _ => {}
            }
            Err(Fault::NoModel)
        }
    }

    fn why(result: Result<Quantiles, Fault>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_panic_costs_one_forecast_and_a_hang_all_until_it_is_over() {
        let guarded = Guarded::new(Bad, Duration::from_secs(2));
        let history = Series::new(0, 60, vec![1.0]).unwrap();
        let forecast = |horizon| guarded.forecast(&history, horizon, &[0.5]);
        for _ in 0..3 {
            assert_eq!(why(forecast(1)), "the model failed: it panicked");
        }
        assert_eq!(forecast(3), Err(Fault::NoModel));
        assert_eq!(why(forecast(2)), "the model failed: it was late");
        assert_eq!(why(forecast(2)), "the model failed: it was late");
        assert_eq!(why(forecast(3)), "the model failed: earlier forecasts of it still run");
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(forecast(3), Err(Fault::NoModel));
    }
}
