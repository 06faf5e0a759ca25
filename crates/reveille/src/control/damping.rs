//! When a running instance counts as lost.
//!
//! A lost instance is ended, and with it what its guest has in memory; so one silent moment on a busy host must
//! not count. Certain signs (the guest refuses connections, the process stands still) count after two looks in
//! a row, which fit into two heartbeats because the second follows the first at once. Silence of a process that
//! goes on using CPU is given much longer: it may be starved rather than hung.

/// Certain signs in a row that make an instance lost.
const CERTAIN_MAX: u32 = 2;
/// Silent looks in a row, while the process makes progress, that make an instance lost.
const SILENT_MAX: u32 = 20;

/// What one look at an instance has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answers.
    Fine,
    /// It certainly does not: refused, or silent without using any CPU.
    Dead,
    /// No answer, but the process uses CPU, or would if the host let it.
    Silent,
}

/// What follows from the looks so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Up,
    /// Something is wrong; look again at once.
    Suspect,
    /// It is lost.
    Down,
}

/// The looks in a row that were not fine.
#[derive(Debug, Default)]
pub struct Damping {
    dead: u32,
    silent: u32,
}

impl Damping {
    /// Takes in one look.
    pub fn look(&mut self, sign: Sign) -> Verdict {
        match sign {
            Sign::Fine => *self = Self::default(),
            Sign::Dead => self.dead += 1,
            Sign::Silent => {
                self.silent += 1;
                self.dead = 0;
            }
        }
        if self.dead >= CERTAIN_MAX || self.dead + self.silent >= SILENT_MAX {
            Verdict::Down
        } else if self.dead + self.silent > 0 {
            Verdict::Suspect
        } else {
            Verdict::Up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_look_is_never_enough_and_two_certain_ones_are() {
        let mut damping = Damping::default();
        assert_eq!(damping.look(Sign::Dead), Verdict::Suspect);
        assert_eq!(damping.look(Sign::Fine), Verdict::Up);
        assert_eq!(damping.look(Sign::Dead), Verdict::Suspect);
        assert_eq!(damping.look(Sign::Dead), Verdict::Down);
    }

    #[test]
    fn a_starved_process_has_much_longer_but_not_for_ever() {
        let mut damping = Damping::default();
        for _ in 1..SILENT_MAX {
            assert_eq!(damping.look(Sign::Silent), Verdict::Suspect);
        }
        assert_eq!(damping.look(Sign::Silent), Verdict::Down);
    }
}
