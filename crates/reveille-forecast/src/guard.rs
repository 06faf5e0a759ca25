//! Forecasters and models that are not trusted to return: each works on a thread of its own, a panic is a fault, and so is
//! being late.
//!
//! A thread cannot be ended from outside. One that is late goes on until it is done by itself, and counts as running until
//! then: at most [`RUNNING_MAX`] of a guard do, and further work is refused, so that a model that hangs costs a bounded
//! number of threads and is out from then on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use reveille_core::forecast::volume::{Fault, Fitted, Forecaster, Model, Quantiles, Series, Window};

/// Most threads of one guard, late ones included.
pub const RUNNING_MAX: usize = 2;

/// Another forecaster or model, within a deadline.
pub struct Guarded<F> {
    inner: Arc<F>,
    guard: Guard,
}

impl<F> Guarded<F> {
    /// `deadline`: of one forecast, of one fit, of one path.
    pub fn new(inner: F, deadline: Duration) -> Self {
        Self { inner: Arc::new(inner), guard: Guard { deadline, running: Arc::new(AtomicUsize::new(0)) } }
    }
}

impl<F: Forecaster + Send + Sync + 'static> Forecaster for Guarded<F> {
    fn forecast(&self, history: &Series, horizon: usize, levels: &[f64]) -> Result<Quantiles, Fault> {
        let (forecaster, history, levels) = (Arc::clone(&self.inner), history.clone(), levels.to_vec());
        self.guard.run(move || forecaster.forecast(&history, horizon, &levels))
    }
}

impl<M: Model + 'static> Model for Guarded<M> {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        let (model, first, values) = (Arc::clone(&self.inner), window.first, window.values.to_vec());
        let fitted = self.guard.run(move || model.fit(Window { first, values: &values }))?;
        Ok(Box::new(Guarded { inner: Arc::new(fitted), guard: self.guard.clone() }))
    }
}

impl Fitted for Guarded<Box<dyn Fitted>> {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let (fitted, first, values) = (Arc::clone(&self.inner), window.first, window.values.to_vec());
        self.guard.run(move || fitted.path(Window { first, values: &values }, horizon))
    }

    fn held_bytes(&self) -> usize {
        size_of_val(&**self.inner) + self.inner.held_bytes()
    }
}

/// What is let run for so long.
#[derive(Clone)]
struct Guard {
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

impl Guard {
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let failed = |why: &str| Fault::Failed { why: why.to_owned() };
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(&self.running));
        if before >= RUNNING_MAX {
            return Err(failed("earlier forecasts of it still run"));
        }
        let (send, receive) = sync_channel(1);
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(work));
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

    /// Panics when it is fitted on one value, and when it is to go on from two.
    struct BadModel;

    impl Model for BadModel {
        fn name(&self) -> String {
            "bad".to_owned()
        }

        fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
            assert!(window.values.len() > 1, "a bug of a model");
            Ok(Box::new(Self))
        }
    }

    impl Fitted for BadModel {
        fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
            assert!(window.values.len() > 2, "a bug of a model");
            Ok(vec![f64::from(u8::try_from(window.first).unwrap()); horizon])
        }
    }

    #[test]
    fn a_model_that_panics_has_no_path_and_one_that_does_not_has_the_same_as_without_a_guard() {
        let guarded = Guarded::new(BadModel, Duration::from_secs(60));
        let window = |values| Window { first: 7, values };
        assert_eq!(guarded.name(), "bad");
        assert!(matches!(guarded.fit(window(&[1.0])), Err(Fault::Failed { why }) if why == "it panicked"));
        let fitted = guarded.fit(window(&[1.0, 2.0])).unwrap();
        assert!(matches!(fitted.path(window(&[1.0, 2.0]), 2), Err(Fault::Failed { .. })));
        assert_eq!(fitted.path(window(&[1.0, 2.0, 3.0]), 2), Ok(vec![7.0; 2]));
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
