//! The agent's side of the wire, taken apart: a JSON object per line, and a byte that begins anew.
//!
//! Everything here comes from the guest, which may be broken or hostile: what is kept of it is limited, and nothing
//! that it says decides how much.

use serde_json::Value;

/// Longest answer that is read; a list of network interfaces has some KiB.
pub const LINE_BYTES_MAX: usize = 256 << 10;
/// Bytes of earlier answers that are passed over in search of the one that is waited for.
pub const SKIPPED_BYTES_MAX: usize = 1 << 20;
/// What begins a session, in both directions: no JSON has it (QEMU's `docs/interop/qemu-ga`, `guest-sync-delimited`).
pub const DELIMITER: u8 = 0xff;
/// Characters of an odd answer that are quoted.
const QUOTE_CHARS_MAX: usize = 80;

/// What came is not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireFault {
    /// More than an answer may have.
    #[error("an answer of more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// More than may be passed over.
    #[error("more than {SKIPPED_BYTES_MAX} bytes that nobody asked for")]
    Flood,
    /// Not a JSON object.
    #[error("something else than JSON: {0}")]
    NotJson(String),
}

/// What was received and not yet looked at.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Whether a delimiter is waited for.
    seeking: bool,
    skipped: usize,
}

impl Inbox {
    /// Passes over everything up to the next delimiter: it answers what an earlier session asked.
    pub fn seek(&mut self) {
        self.seeking = true;
        self.skipped = 0;
    }

    /// Takes bytes in.
    ///
    /// # Errors
    /// There are more of them than make sense.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WireFault> {
        self.bytes.extend_from_slice(bytes);
        if self.seeking {
            let found = self.bytes.iter().position(|byte| *byte == DELIMITER);
            let before = found.unwrap_or(self.bytes.len());
            self.skipped += before;
            self.bytes.drain(..found.map_or(before, |at| at + 1));
            self.seeking = found.is_none();
            if self.skipped > SKIPPED_BYTES_MAX {
                return Err(WireFault::Flood);
            }
        }
        if self.bytes.len() > LINE_BYTES_MAX
            && !self.bytes.iter().take(LINE_BYTES_MAX).any(|byte| *byte == b'\n')
        {
            return Err(WireFault::TooLong);
        }
        Ok(())
    }

    /// The next whole answer, if it has come.
    pub fn next(&mut self) -> Option<Result<Value, WireFault>> {
        while !self.seeking {
            let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            // An agent that was asked to begin anew before may still say so; what stands before it is of no use.
            let line = line.rsplit(|byte| *byte == DELIMITER).next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            return Some(match serde_json::from_slice(line) {
                Ok(value @ Value::Object(_)) => Ok(value),
                Ok(_) | Err(_) => Err(WireFault::NotJson(quote(line))),
            });
        }
        None
    }
}

/// Something of a guest's that may be shown: short, and without control characters.
pub fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(QUOTE_CHARS_MAX * 4)).unwrap_or_default());
    text.chars().filter(|character| !character.is_control()).take(QUOTE_CHARS_MAX).collect()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as base64 (RFC 4648 §4), as the agent wants a program's input.
pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().skip(1).zip(group) {
            *to = *from;
        }
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let six = usize::try_from(word >> (18 - 6 * place) & 0x3f).unwrap_or(0);
            let letter = if place <= group.len() { BASE64.get(six).copied().unwrap_or(b'A') } else { b'=' };
            text.push(char::from(letter));
        }
    }
    text
}

/// Base64 as bytes; `None` for anything else.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut word = 0_u32;
        for letter in group {
            let six = BASE64.iter().position(|known| known == letter)?;
            word = word << 6 | u32::try_from(six).ok()?;
        }
        word <<= 6 * (4 - group.len());
        let whole = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bytes.extend(word.to_be_bytes().into_iter().skip(1).take(whole));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(inbox: &mut Inbox) -> Vec<Value> {
        std::iter::from_fn(|| inbox.next()).map(Result::unwrap).collect()
    }

    #[test]
    fn what_an_earlier_session_was_answered_is_passed_over() {
        let stream = b"t\": 1}\n{\"return\": 2}\n\xff{\"return\": 3}\n{\"return\": 4}\n";
        // However it is cut.
        for cut in 0..stream.len() {
            let mut inbox = Inbox::default();
            inbox.seek();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                inbox.push(part).unwrap();
                seen.extend(all(&mut inbox));
            }
            assert_eq!(seen, [json!({"return": 3}), json!({"return": 4})], "cut at {cut}");
        }
    }

    #[test]
    fn a_flood_is_neither_kept_nor_followed_for_ever() {
        let mut inbox = Inbox::default();
        let part = [b'x'; 4096];
        let long = std::iter::repeat_with(|| inbox.push(&part)).position(|pushed| pushed.is_err());
        assert_eq!(long, Some(LINE_BYTES_MAX / 4096));

        let mut inbox = Inbox::default();
        inbox.seek();
        let flood = std::iter::repeat_with(|| inbox.push(&part)).position(|pushed| pushed.is_err());
        assert_eq!(flood, Some(SKIPPED_BYTES_MAX / 4096));
        assert!(inbox.bytes.is_empty());
    }

    #[test]
    fn nonsense_is_told_and_what_follows_it_is_read() {
        let mut inbox = Inbox::default();
        inbox.push(b"[1]\n\x1b[31mno\n\n{\"return\": {}}\n").unwrap();
        assert_eq!(inbox.next(), Some(Err(WireFault::NotJson("[1]".to_owned()))));
        assert_eq!(inbox.next(), Some(Err(WireFault::NotJson("[31mno".to_owned()))));
        assert_eq!(inbox.next(), Some(Ok(json!({"return": {}}))));
        assert_eq!(inbox.next(), None);
        // Nested deeper than anybody needs.
        inbox.push(&[vec![b'{'; 1 << 16], b"\n".to_vec()].concat()).unwrap();
        assert!(matches!(inbox.next(), Some(Err(WireFault::NotJson(_)))));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(to_base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_base64(&to_base64(&all)).unwrap(), all);
        assert_eq!(from_base64("Zm9v!"), None);
        assert_eq!(from_base64("Z"), None);
    }
}
