//! Heavy models, fitted beside who asks for forecasts: a worker chooses among all models, boosted trees included, for one
//! series after the other, and rests between two so long that it takes no more of a processor than it is given. With few
//! names each gets its choice within hours; with many, most stay with what the core chose.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use reveille_core::forecast::volume::{
    Chosen, Fault, Model, Seasons, Series, Transform, block_of, blocks, candidates, choose_among, seasons_of,
};

use crate::boosted::Boosted;
use crate::guard::Guarded;

/// Series that wait for the worker; of more, the core's choice stays.
pub const WAITING_MAX: usize = 64;
/// After so long a fit has failed. On a thousand hours it takes some 10 ms.
const FIT_MAX: Duration = Duration::from_secs(20);
/// Longest rest between two series.
const REST_MAX: Duration = Duration::from_secs(600);

/// Boosted trees for a series with these seasons, within a deadline.
#[must_use]
pub fn boosted(seasons: Seasons) -> Arc<dyn Model> {
    let (by, seasons) = block_of(seasons);
    blocks(by, Guarded::new(Boosted { seasons, transform: Transform::Sqrt }, FIT_MAX))
}

/// Chooses among the core's models and boosted trees: with the trees only where they alone did better than every other model
/// in the back-test, since beside better ones they do harm more often than not.
///
/// # Errors
/// As [`choose_among`].
pub fn choose(history: &Series, horizon: usize) -> Result<Chosen, Fault> {
    let seasons = seasons_of(history);
    let light = candidates(seasons);
    let trees = boosted(seasons);
    let name = trees.name();
    let mut all = light.clone();
    all.push(trees);
    let chosen = choose_among(&all, seasons, history, horizon)?;
    if chosen.members().first().is_some_and(|best| best.name() == name) {
        return Ok(chosen);
    }
    if chosen.members().iter().any(|member| member.name() == name) {
        return choose_among(&light, seasons, history, horizon);
    }
    Ok(chosen)
}

/// A series whose models are to be chosen.
struct Wanted<K> {
    key: K,
    history: Series,
    horizon: usize,
}

/// The worker, as whoever asks it sees it. It ends with the first choice after this was dropped.
pub struct Worker<K> {
    wanted: SyncSender<Wanted<K>>,
    chosen: Receiver<(K, Chosen)>,
}

impl<K: Send + 'static> Worker<K> {
    /// One that takes so much of a processor, in per cent from 1 to 100.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(cpu_percent: u8) -> std::io::Result<Self> {
        Self::with(cpu_percent, choose)
    }

    fn with(
        cpu_percent: u8,
        choose: impl Fn(&Series, usize) -> Result<Chosen, Fault> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wanted, take) = sync_channel::<Wanted<K>>(WAITING_MAX);
        let (give, chosen) = channel();
        let work = move || work(&take, &give, choose, cpu_percent);
        std::thread::Builder::new().name("heavy-models".to_owned()).spawn(work)?;
        Ok(Self { wanted, chosen })
    }

    /// Asks for a choice; false if [`WAITING_MAX`] wait already, and it is refused.
    #[must_use]
    pub fn ask(&self, key: K, history: Series, horizon: usize) -> bool {
        self.wanted.try_send(Wanted { key, history, horizon }).is_ok()
    }

    /// What was chosen since the last call. A series that no model could be chosen for is not among it.
    pub fn take(&self) -> Vec<(K, Chosen)> {
        self.chosen.try_iter().collect()
    }
}

/// Until nobody asks any more.
fn work<K>(
    take: &Receiver<Wanted<K>>,
    give: &Sender<(K, Chosen)>,
    choose: impl Fn(&Series, usize) -> Result<Chosen, Fault>,
    cpu_percent: u8,
) {
    while let Ok(Wanted { key, history, horizon }) = take.recv() {
        let began = Instant::now();
        // Where there is none, the core's own choice has said why.
        if let Ok(chosen) = choose(&history, horizon)
            && give.send((key, chosen)).is_err()
        {
            return;
        }
        // By the clock and not by processor time: on a busy host it takes less still.
        std::thread::sleep(rest(began.elapsed(), cpu_percent));
    }
}

/// How long to rest after a choice that took so long.
fn rest(took: Duration, cpu_percent: u8) -> Duration {
    let share = u32::from(cpu_percent.clamp(1, 100));
    (took * (100 - share) / share).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(hours: usize, value: impl Fn(usize) -> f64) -> Series {
        Series::new(0, 3_600, (0..hours).map(value).collect()).unwrap()
    }

    /// Each hour of a day follows from the same hour of the day before, by a parabola: no straight line says that.
    fn bent(at: usize) -> f64 {
        let first = 0.1 + (at % 24) as f64 / 31.0;
        5.0 + 100.0 * (0..at / 24).fold(first, |share, _| 3.9 * share * (1.0 - share))
    }

    #[test]
    fn trees_are_chosen_where_they_do_best_alone_and_nowhere_else() {
        let names = |history: &Series| -> Vec<String> {
            choose(history, 24).unwrap().members().iter().map(|member| member.name()).collect()
        };
        let with = names(&series(24 * 7 * 8, bent));
        assert!(with[0].starts_with("boosted"), "{with:?}");
        let without =
            names(&series(24 * 7 * 8, |at| 10.0 + (at as f64 * std::f64::consts::TAU / 24.0).sin()));
        assert!(without.iter().all(|name| !name.starts_with("boosted")), "{without:?}");
        let short = names(&series(24 * 5, bent));
        assert!(short.iter().all(|name| !name.starts_with("boosted")), "{short:?}");
    }

    #[test]
    fn what_is_asked_of_the_worker_comes_back_and_what_cannot_wait_is_refused() {
        let (open, gate) = sync_channel::<()>(0);
        let choose = move |history: &Series, horizon| {
            gate.recv().unwrap();
            if history.values().len() < 10 { Err(Fault::NoModel) } else { choose(history, horizon) }
        };
        let worker = Worker::with(100, choose).unwrap();
        let ask = |key: usize| worker.ask(key, series(if key == 0 { 5 } else { 100 }, |at| at as f64), 4);
        assert!(ask(0));
        // The worker is at that one: what is asked from now on waits.
        open.send(()).unwrap();
        let refused = (1..WAITING_MAX + 10).filter(|key| !ask(*key)).count();
        assert!((8..=9).contains(&refused), "{refused}");
        (1..WAITING_MAX + 10 - refused).for_each(|_| open.send(()).unwrap());
        let mut keys = Vec::new();
        while keys.len() + refused < WAITING_MAX + 9 {
            keys.extend(worker.chosen.recv_timeout(Duration::from_secs(60)).map(|(key, _)| key));
        }
        assert_eq!(
            keys[..5],
            [1, 2, 3, 4, 5],
            "in the order in which they were asked for, but for the one without a model"
        );
        assert!(worker.take().is_empty());
    }

    #[test]
    fn the_worker_rests_as_long_as_its_share_says() {
        let second = Duration::from_secs(1);
        assert_eq!(rest(second, 100), Duration::ZERO);
        assert_eq!(rest(second, 10), 9 * second);
        assert_eq!(rest(second, 0), 99 * second, "at least one per cent");
        assert_eq!(rest(60 * second, 1), REST_MAX);
    }
}
