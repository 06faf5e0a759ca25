//! A trace as the forecaster saw it: for each gap the hazard at each look, from what was known at that look.
//!
//! Arrivals and looks are taken in the order of time, as the control loop would; the forecast does not depend on
//! prices, so that one tape serves every price.

use std::collections::BTreeSet;

use reveille_core::forecast::gaps::{Arrival, Gaps, Name, Piece};
use reveille_core::model::Timestamp;

use crate::ReplayError;
use crate::trace::Trace;

/// So many looks at most are remembered of all gaps together, at 12 bytes each, and 24 while the gap lasts. A gap of ten
/// minutes takes 40, one of a month 2,200.
pub const LOOKS_MAX: usize = 100_000_000;

/// One look that a gap lasted to: its piece, cut off where the gap ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// How long of it the gap took, in ms.
    pub lasted_ms: u32,
    /// How long it would have been, in ms.
    pub length_ms: u32,
    /// The hazard: arrivals per hour.
    pub per_hour: f32,
}

/// One gap between two arrivals of a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// Which name.
    pub name: usize,
    /// How long, in ms.
    pub ms: u64,
    /// Its looks, in the order of idle time; the last is the one in which the arrival came.
    pub looks: Vec<Look>,
}

/// Everything that policies are replayed on.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    /// All gaps that ended, in the order of their ends.
    pub gaps: Vec<Gap>,
    /// What the forecaster held for all names together at the end, in bytes.
    pub shared_bytes: usize,
}

impl Tape {
    /// Runs the forecaster over a trace. `progress` is told the requests done.
    ///
    /// # Errors
    /// [`ReplayError::TooLong`].
    pub fn record(trace: &Trace, mut progress: impl FnMut(usize)) -> Result<Self, ReplayError> {
        let mut recorder = Recorder {
            gaps: Gaps::default(),
            names: vec![Name::default(); trace.names.len()],
            open: vec![Vec::new(); trace.names.len()],
            due: BTreeSet::new(),
            looks: 0,
            tape: Self::default(),
        };
        for (done, request) in trace.requests.iter().enumerate() {
            recorder.look_until(request.at_ms);
            recorder.arrived(
                request.name,
                Arrival {
                    at: Timestamp::from_ms(request.at_ms),
                    client: request.client,
                    busy_ms: request.busy_ms,
                    group: None,
                },
            );
            if recorder.looks > LOOKS_MAX {
                return Err(ReplayError::TooLong);
            }
            if done % 1_024 == 0 {
                progress(done);
            }
        }
        recorder.tape.shared_bytes = recorder.gaps.size_bytes();
        Ok(recorder.tape)
    }
}

struct Recorder {
    gaps: Gaps,
    names: Vec<Name>,
    open: Vec<Vec<Piece>>,
    /// When which name is looked at next, at which piece.
    due: BTreeSet<(u64, usize, usize)>,
    /// Taken so far.
    looks: usize,
    tape: Tape,
}

impl Recorder {
    /// All looks before this time. One at the very time of an arrival comes after it.
    fn look_until(&mut self, now_ms: u64) {
        while let Some(&next @ (at_ms, name, index)) = self.due.first()
            && at_ms < now_ms
        {
            self.due.remove(&next);
            self.look(at_ms, name, index);
        }
    }

    fn look(&mut self, at_ms: u64, name: usize, index: usize) {
        self.gaps.silent(&mut self.names[name], Timestamp::from_ms(at_ms));
        if let Some(piece) = self.gaps.hazard(&self.names[name], index) {
            self.open[name].push(piece);
            self.looks += 1;
            let length_ms = piece.until_ms - piece.from_ms;
            self.due.insert((at_ms.saturating_add(length_ms), name, index + 1));
        }
    }

    fn arrived(&mut self, name: usize, arrival: Arrival) {
        let at_ms = arrival.at.as_ms();
        if let Some(ms) = self.names[name].idle_ms(arrival.at) {
            let pieces = std::mem::take(&mut self.open[name]);
            if let Some(last) = pieces.last() {
                self.due.remove(&(at_ms - ms + last.until_ms, name, pieces.len()));
            }
            let looks = pieces.iter().map(|piece| Look {
                lasted_ms: small(ms.min(piece.until_ms) - piece.from_ms),
                length_ms: small(piece.until_ms - piece.from_ms),
                per_hour: rounded(piece.per_hour),
            });
            self.tape.gaps.push(Gap { name, ms, looks: looks.collect() });
        }
        self.gaps.arrived(&mut self.names[name], arrival);
        // The first look is at once: an arrival at the same moment finds what was decided then.
        self.look(at_ms, name, 0);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a rate needs no more digits")]
fn rounded(per_hour: f64) -> f32 {
    per_hour as f32
}

fn small(ms: u64) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}
