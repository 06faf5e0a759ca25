//! The content coding of a request log: as it is, gzip (RFC 1952) or zstd (RFC 8878), unpacked piece by piece.
//!
//! What is sent may be made to unpack to far more than its sender ever had. So no more than [`STEP_BYTES`] of it are
//! unpacked at a time, and it is given up once it is too long ([`UNPACKED_BYTES_MAX`]) or packed more densely than a log can
//! be ([`RATIO_MAX`]).

use std::fmt;
use std::io::Write;

use flate2::write::MultiGzDecoder;
use zstd::stream::raw::{DParameter, Decoder, Operation};

/// Most bytes that a log may have unpacked.
pub const UNPACKED_BYTES_MAX: u64 = 8 << 30;
/// Most bytes that a byte of a packed log may stand for. Lines that differ in nothing but their time come to less than 50;
/// gzip can reach 1,030, zstd far more.
pub const RATIO_MAX: u64 = 256;
/// So many unpacked bytes are taken whatever they were packed to: what is as short as that does no harm.
pub const RATIO_FREE_BYTES: u64 = 8 << 20;
/// Unpacked at a time, in bytes.
const STEP_BYTES: usize = 64 << 10;
/// Taken of a gzip stream at a time, in bytes: 1,030 times as much may come of it.
const GZIP_STEP_BYTES: usize = 256;
/// The largest window of a zstd stream is 2 to the power of this: 8 MiB, as content codings have it (RFC 9659 §3).
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a log is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// gzip, of one member or several.
    Gzip,
    /// zstd, of one frame or several.
    Zstd,
}

/// What of `Content-Encoding` is understood, as an error says it.
pub const CODINGS: &str = "gzip, zstd or identity";

impl Coding {
    /// Reads a value of `Content-Encoding` (RFC 9110 §8.4.1); `None` if it is not one of [`CODINGS`].
    #[must_use]
    pub fn of_header(value: &[u8]) -> Option<Self> {
        let known = [
            ("identity", Self::Identity),
            ("gzip", Self::Gzip),
            ("x-gzip", Self::Gzip),
            ("zstd", Self::Zstd),
        ];
        let value = value.trim_ascii();
        known
            .into_iter()
            .find(|(word, _)| value.eq_ignore_ascii_case(word.as_bytes()))
            .map(|(_, coding)| coding)
    }

    /// By the first bytes of a file; no log begins like a packed one.
    #[must_use]
    pub fn of_content(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Identity,
        }
    }

    /// The value of `Content-Encoding`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why a log is not unpacked any further.
#[derive(Debug, thiserror::Error)]
pub enum CodingError {
    /// It is no stream of that coding, or ends within it.
    #[error("its {coding} stream is damaged {unpacked} bytes behind the begin of what it holds: {why}")]
    Damaged {
        /// Which coding.
        coding: Coding,
        /// Bytes that were unpacked before.
        unpacked: u64,
        /// What the decoder says.
        why: String,
    },
    /// More than [`UNPACKED_BYTES_MAX`].
    #[error("it unpacks to more than {UNPACKED_BYTES_MAX} bytes; send it in parts")]
    TooLong,
    /// More than [`RATIO_MAX`].
    #[error(
        "its {packed} bytes unpack to {unpacked} and more, over {RATIO_MAX} times as many; send it unpacked"
    )]
    TooDense {
        /// Bytes that came.
        packed: u64,
        /// Bytes that they unpacked to.
        unpacked: u64,
    },
}

/// Unpacks one log.
pub struct Unpacker {
    decoder: Form,
    coding: Coding,
    /// Bytes that were taken, and what they unpacked to.
    packed: u64,
    unpacked: u64,
    /// What came of the last step.
    plain: Vec<u8>,
}

enum Form {
    Identity,
    Gzip(MultiGzDecoder<Vec<u8>>),
    Zstd {
        decoder: Decoder<'static>,
        /// A frame has begun and is not over.
        is_within: bool,
        /// The last step filled what there was room for: there may be more without further input.
        is_full: bool,
        room: Box<[u8]>,
    },
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { coding, packed, unpacked, .. } = self;
        write!(f, "Unpacker({coding}, {packed} bytes to {unpacked})")
    }
}

impl Unpacker {
    /// Begins to unpack.
    ///
    /// # Errors
    /// zstd has no memory for it.
    pub fn new(coding: Coding) -> std::io::Result<Self> {
        let decoder = match coding {
            Coding::Identity => Form::Identity,
            Coding::Gzip => Form::Gzip(MultiGzDecoder::new(Vec::new())),
            Coding::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                let room = vec![0; STEP_BYTES].into_boxed_slice();
                Form::Zstd { decoder, is_within: false, is_full: false, room }
            }
        };
        Ok(Self { decoder, coding, packed: 0, unpacked: 0, plain: Vec::new() })
    }

    /// Takes some of `rest` and gives what it unpacks to, which may be nothing yet; `None` when all of `rest` is taken.
    ///
    /// # Errors
    /// It is damaged or too much. What was unpacked before stands.
    pub fn step(&mut self, rest: &mut &[u8]) -> Result<Option<&[u8]>, CodingError> {
        self.plain.clear();
        let before = rest.len();
        let done = match &mut self.decoder {
            Form::Identity if rest.is_empty() => return Ok(None),
            Form::Identity => {
                let (piece, more) = rest.split_at(rest.len().min(STEP_BYTES));
                self.plain.extend_from_slice(piece);
                *rest = more;
                Ok(())
            }
            Form::Gzip(_) if rest.is_empty() => return Ok(None),
            Form::Gzip(decoder) => {
                let (piece, more) = rest.split_at(rest.len().min(GZIP_STEP_BYTES));
                *rest = more;
                // Without the flush the last bytes would wait for more to come, and a fault be told of too early a line.
                let done = decoder.write_all(piece).and_then(|()| decoder.flush());
                std::mem::swap(&mut self.plain, decoder.get_mut());
                done
            }
            Form::Zstd { is_full: false, .. } if rest.is_empty() => return Ok(None),
            Form::Zstd { decoder, is_within, is_full, room } => {
                decoder.run_on_buffers(rest, room).map(|status| {
                    *is_within = status.remaining > 0;
                    *is_full = status.bytes_written == STEP_BYTES;
                    self.plain.extend_from_slice(room.get(..status.bytes_written).unwrap_or_default());
                    *rest = rest.get(status.bytes_read..).unwrap_or_default();
                })
            }
        };
        self.packed += (before - rest.len()) as u64;
        done.map_err(|error| self.damaged(&error))?;
        self.judge()?;
        Ok(Some(&self.plain))
    }

    /// The log is over: gives what is left of it.
    ///
    /// # Errors
    /// Its stream is not over, or its checksum is wrong.
    pub fn finish(mut self) -> Result<Vec<u8>, CodingError> {
        self.plain.clear();
        let is_over = match &mut self.decoder {
            Form::Gzip(decoder) if self.packed > 0 => {
                let done = decoder.try_finish();
                std::mem::swap(&mut self.plain, decoder.get_mut());
                done
            }
            Form::Zstd { is_within: true, .. } => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Form::Identity | Form::Gzip(_) | Form::Zstd { is_within: false, .. } => Ok(()),
        };
        is_over.map_err(|error| self.damaged(&error))?;
        self.judge()?;
        Ok(self.plain)
    }

    fn judge(&mut self) -> Result<(), CodingError> {
        self.unpacked += self.plain.len() as u64;
        let Self { packed, unpacked, .. } = *self;
        match self.decoder {
            Form::Identity => Ok(()),
            Form::Gzip(_) | Form::Zstd { .. } if unpacked > UNPACKED_BYTES_MAX => Err(CodingError::TooLong),
            Form::Gzip(_) | Form::Zstd { .. }
                if unpacked > RATIO_FREE_BYTES.max(packed.saturating_mul(RATIO_MAX)) =>
            {
                Err(CodingError::TooDense { packed, unpacked })
            }
            Form::Gzip(_) | Form::Zstd { .. } => Ok(()),
        }
    }

    fn damaged(&self, error: &std::io::Error) -> CodingError {
        CodingError::Damaged { coding: self.coding, unpacked: self.unpacked, why: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// With a checksum, as the program `zstd` writes it.
    fn zstd(plain: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes of it in pieces of so many bytes, the largest step, and how it ends.
    fn unpack(
        coding: Coding,
        packed: &[u8],
        piece_bytes: usize,
    ) -> (Vec<u8>, usize, Result<(), CodingError>) {
        let mut unpacker = Unpacker::new(coding).unwrap();
        let (mut plain, mut largest) = (Vec::new(), 0);
        for mut piece in packed.chunks(piece_bytes) {
            loop {
                match unpacker.step(&mut piece) {
                    Ok(Some(step)) => {
                        plain.extend_from_slice(step);
                        largest = largest.max(step.len());
                    }
                    Ok(None) => break,
                    Err(error) => return (plain, largest, Err(error)),
                }
            }
        }
        match unpacker.finish() {
            Ok(last) => {
                plain.extend(last);
                (plain, largest, Ok(()))
            }
            Err(error) => (plain, largest, Err(error)),
        }
    }

    /// Text that packs as logs do.
    fn text(lines: u32) -> Vec<u8> {
        (0..lines)
            .flat_map(|n| format!("line {n} {:x}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }

    #[test]
    fn what_was_packed_comes_out_however_it_is_cut() {
        let plain = text(20_000);
        for (coding, packed) in [
            (Coding::Identity, plain.clone()),
            (Coding::Gzip, gzip(&plain)),
            (Coding::Zstd, zstd(&plain)),
            // As `cat` puts packed files behind each other.
            (Coding::Gzip, [gzip(&plain[..50_000]), gzip(&plain[50_000..])].concat()),
            (Coding::Zstd, [zstd(&plain[..50_000]), zstd(&plain[50_000..])].concat()),
        ] {
            assert_eq!(Coding::of_content(&packed), coding);
            for piece_bytes in [1, 1_000, usize::MAX] {
                let (unpacked, _, end) = unpack(coding, &packed, piece_bytes);
                assert!(unpacked == plain && end.is_ok(), "{coding} in {piece_bytes}: {end:?}");
            }
        }
        for coding in [Coding::Identity, Coding::Gzip, Coding::Zstd] {
            assert!(unpack(coding, b"", 1).2.is_ok());
            assert_eq!(Coding::of_header(coding.word().to_uppercase().as_bytes()), Some(coding));
        }
        assert_eq!(Coding::of_header(b"gzip, gzip"), None);
    }

    #[test]
    fn a_stream_that_is_cut_or_damaged_is_told_and_what_came_before_stands() {
        let plain = text(20_000);
        for (coding, packed) in [(Coding::Gzip, gzip(&plain)), (Coding::Zstd, zstd(&plain))] {
            for cut in [packed.len() - 1, packed.len() / 2, 20] {
                let (unpacked, _, end) = unpack(coding, &packed[..cut], 500);
                assert!(matches!(end, Err(CodingError::Damaged { .. })), "{coding} {cut}: {end:?}");
                assert!(plain.starts_with(&unpacked));
            }
            let half = unpack(coding, &packed[..packed.len() / 2], 500).0.len();
            assert!(half > plain.len() / 4, "{coding}: {half} of {}", plain.len());
            let mut odd = packed.clone();
            odd[packed.len() / 2] ^= 0x55;
            odd[packed.len() / 2 + 1] ^= 0x55;
            let (_, _, end) = unpack(coding, &odd, 500);
            assert!(matches!(end, Err(CodingError::Damaged { .. })), "{coding}: {end:?}");
            let behind = [&packed[..], b"{\"time\":"].concat();
            assert!(matches!(unpack(coding, &behind, 500).2, Err(CodingError::Damaged { .. })), "{coding}");
            assert!(matches!(unpack(coding, &plain, 500).2, Err(CodingError::Damaged { unpacked: 0, .. })));
        }
    }

    #[test]
    fn a_bomb_is_given_up_early_and_never_unpacked_as_a_whole() {
        let zeros = vec![0; 64 << 20];
        for (coding, packed) in [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd(&zeros))] {
            let (unpacked, largest, end) = unpack(coding, &packed, usize::MAX);
            assert!(matches!(end, Err(CodingError::TooDense { .. })), "{coding}: {end:?}");
            assert!(unpacked.len() as u64 <= RATIO_FREE_BYTES, "{coding}: {}", unpacked.len());
            assert!(largest <= GZIP_STEP_BYTES * 1_100, "{coding}: {largest}");
        }
        // A window of 2 GiB asks for as much memory.
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&text(10)).unwrap();
        let (_, _, end) = unpack(Coding::Zstd, &encoder.finish().unwrap(), 100);
        assert!(matches!(end, Err(CodingError::Damaged { .. })), "{end:?}");
        // A short one does no harm.
        assert!(unpack(Coding::Gzip, &gzip(&vec![b'\n'; 1 << 20]), 100).2.is_ok());
    }
}
