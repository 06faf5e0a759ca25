//! The host's end of the refresher's port: a record out, nine bytes back. What both are is told in `image/refresh.S`.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::agent::random;

/// Fresh random bytes for a guest.
pub const SEED_BYTES: usize = 64;
const RECORD_BYTES: usize = 32 + SEED_BYTES;
const ANSWER_BYTES: usize = 9;
/// Answers to earlier records that are passed over.
const STALE_MAX: usize = 16;
/// A record that was taken later than this told a time that had passed: another one follows.
const LATE: Duration = Duration::from_millis(500);

/// Why a guest was not refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The port cannot be used.
    #[error("the refresher's socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// No answer in time.
    #[error("the guest did not take the time and its random bytes in time")]
    Silent,
    /// Not an answer.
    #[error("the guest's refresher answered with something else")]
    Odd,
}

/// What is not as it should be in the guest, and what it has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    clock: bool,
    pool: bool,
    /// There is a program to be run after a wake.
    pub after_wake: bool,
}

impl Faults {
    /// As the refresher says it.
    pub fn from_bits(bits: u8) -> Self {
        Self { clock: bits & 1 != 0, pool: bits & 2 != 0, after_wake: bits & 4 != 0 }
    }

    /// What did not succeed.
    pub fn told(self) -> Option<&'static str> {
        match (self.clock, self.pool) {
            (false, false) => None,
            (true, false) => Some("the guest's clock could not be set"),
            (false, true) => Some("the guest's random generator could not be seeded"),
            (true, true) => Some("neither the guest's clock nor its random generator could be set"),
        }
    }
}

/// A connection to a guest's refresher.
#[derive(Debug)]
pub struct Refresher(UnixStream);

impl Refresher {
    /// Connects to the host's end of the port.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self(UnixStream::connect(path).await?))
    }

    /// Gives the guest the time and fresh random bytes.
    ///
    /// # Errors
    /// It did not take them until `deadline`.
    pub async fn refresh(&mut self, deadline: Instant) -> Result<Faults, RefreshError> {
        loop {
            let sent = Instant::now();
            let exchanged = timeout_at(deadline, self.exchange()).await;
            let faults = exchanged.unwrap_or(Err(RefreshError::Silent))?;
            if sent.elapsed() < LATE {
                return Ok(faults);
            }
        }
    }

    async fn exchange(&mut self) -> Result<Faults, RefreshError> {
        let number = random::<8>()?;
        self.0.write_all(&record(number)?).await?;
        for _ in 0..STALE_MAX {
            let mut answer = [0; ANSWER_BYTES];
            self.0.read_exact(&mut answer).await?;
            let [own @ .., bits] = answer;
            if own == number {
                return Ok(Faults::from_bits(bits));
            }
        }
        Err(RefreshError::Odd)
    }
}

fn record(number: [u8; 8]) -> io::Result<Vec<u8>> {
    let seed = random::<SEED_BYTES>()?;
    let bytes = u32::try_from(SEED_BYTES).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut record = Vec::with_capacity(RECORD_BYTES);
    record.extend(number);
    record.extend(now.as_secs().to_le_bytes());
    record.extend(u64::from(now.subsec_nanos()).to_le_bytes());
    record.extend((8 * bytes).to_le_bytes());
    record.extend(bytes.to_le_bytes());
    record.extend(seed);
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_record_is_what_the_program_reads() {
        let record = record(*b"number!!").unwrap();
        assert_eq!(record.len(), 96);
        assert_eq!((&record[..8], &record[24..32]), (&b"number!!"[..], &[0, 2, 0, 0, 64, 0, 0, 0][..]));
        assert!(record[32..].iter().any(|byte| *byte != 0));
    }

    #[tokio::test]
    async fn only_the_answer_to_this_record_counts() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut refresher = Refresher(ours);
        theirs.write_all(b"12345678\x00").await.unwrap();
        let guest = tokio::spawn(async move {
            let mut record = [0; RECORD_BYTES];
            theirs.read_exact(&mut record).await.unwrap();
            theirs.write_all(&[&record[..8], &[5]].concat()).await.unwrap();
            theirs
        });
        let faults = refresher.refresh(soon()).await.unwrap();
        assert_eq!(faults, Faults { clock: true, pool: false, after_wake: true });
        let mut theirs = guest.await.unwrap();

        let nothing = refresher.refresh(Instant::now() + Duration::from_millis(20)).await;
        assert!(matches!(nothing, Err(RefreshError::Silent)));
        let flood = tokio::spawn(async move { while theirs.write_all(&[7; 4096]).await.is_ok() {} });
        assert!(matches!(refresher.refresh(soon()).await, Err(RefreshError::Odd)));
        drop(refresher);
        flood.await.unwrap();
    }
}
