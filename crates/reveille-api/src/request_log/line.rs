//! One line of a request log, checked as it is read.

use std::fmt;

use reveille_core::forecast::profile::Request;
use reveille_core::model::Timestamp;
use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

use super::{AHEAD_MS_MAX, FAULT_BYTES_MAX, FIELD_BYTES_MAX, Fault};
use crate::time::Time;

/// Longest name of a user, group, service or runtime, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 64;
/// Most tags of a request.
pub const TAGS_MAX: usize = 16;
/// Longest execution and processor time, in seconds: 31 years.
pub const SECONDS_MAX: f64 = 1e9;
/// Most memory, and most that is read and written, in bytes: 1 PB.
pub const BYTES_MAX: u64 = 1_000_000_000_000_000;

/// A line as it is written. What is not known is refused: a field with a typing error would be missed silently.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    time: Moment,
    user: Text<NAME_BYTES_MAX>,
    #[serde(default)]
    group: Option<Text<NAME_BYTES_MAX>>,
    service: Text<NAME_BYTES_MAX>,
    #[serde(default)]
    runtime: Option<Text<NAME_BYTES_MAX>>,
    seconds: Seconds,
    #[serde(default)]
    cpu_seconds: Option<Seconds>,
    #[serde(default)]
    memory_bytes: Option<Bytes>,
    #[serde(default)]
    io_bytes: Option<Bytes>,
    #[serde(default)]
    tags: Option<Tags>,
}

/// Reads a line. A fault has no number yet.
pub(super) fn read(line: &[u8], latest: Timestamp) -> Result<Request, Fault> {
    // An array with the values in their order would be taken as well.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(fault(
            None,
            None,
            "no JSON object; expected one line that begins with `{` and ends with `}`",
        ));
    }
    let line = serde_json::from_slice::<Line>(line).map_err(|_| explain(line))?;
    let Moment(at) = line.time;
    if at > latest {
        let what = format!(
            "{} is later than now; expected a time that is at most {} s ahead of this host's clock",
            Time(at),
            AHEAD_MS_MAX / 1_000
        );
        return Err(fault(None, Some("time".to_owned()), &what));
    }
    Ok(Request {
        at,
        user: line.user.0,
        group: line.group.map(|text| text.0),
        service: line.service.0,
        runtime: line.runtime.map(|text| text.0),
        seconds: line.seconds.0,
        cpu_seconds: line.cpu_seconds.map(|seconds| seconds.0),
        memory_bytes: line.memory_bytes.map(|bytes| bytes.0),
        io_bytes: line.io_bytes.map(|bytes| bytes.0),
        tags: line.tags.map(|tags| tags.0.into()).unwrap_or_default(),
    })
}

/// Reads a line once more, with a track of where it is, which takes longer.
fn explain(line: &[u8]) -> Fault {
    let mut json = serde_json::Deserializer::from_slice(line);
    let (field, error) = match serde_path_to_error::deserialize::<_, Line>(&mut json) {
        Err(error) => {
            let path = error.path().to_string();
            // The line itself, and a place that cannot be named.
            let field = (path != "." && !path.contains('?')).then_some(path);
            (field, error.into_inner())
        }
        Ok(_) => match json.end() {
            Err(error) => (None, error),
            // It cannot be right now and wrong before.
            Ok(()) => return fault(None, None, "it cannot be read"),
        },
    };
    let column = u64::try_from(error.column()).ok().filter(|&column| column > 0);
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    let what = if error.is_data() { what.to_owned() } else { format!("no JSON: {what}") };
    fault(column, field, &what)
}

fn fault(column: Option<u64>, field: Option<String>, what: &str) -> Fault {
    let field = field.map(|field| shown(&field, FIELD_BYTES_MAX));
    Fault { line: 0, column, field, what: shown(what, FAULT_BYTES_MAX) }
}

/// As much of what a sender wrote as is kept, fit for a terminal.
fn shown(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    let kept = text.get(..end).unwrap_or_default().chars();
    kept.map(|sign| if sign.is_control() { '?' } else { sign }).collect()
}

/// A text of 1 to `MAX` bytes that a terminal may be shown.
struct Text<const MAX: usize>(Box<str>);

struct TextVisitor<const MAX: usize>;

impl<const MAX: usize> Visitor<'_> for TextVisitor<MAX> {
    type Value = Text<MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text of 1 to {MAX} bytes without control characters")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<MAX>, E> {
        if text.is_empty() || text.len() > MAX {
            return Err(E::invalid_length(text.len(), &self));
        }
        if text.chars().any(char::is_control) {
            return Err(E::invalid_value(Unexpected::Other("a text with a control character"), &self));
        }
        Ok(Text(text.into()))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor)
    }
}

/// A time by RFC 3339, to the millisecond.
struct Moment(Timestamp);

struct MomentVisitor;

impl Visitor<'_> for MomentVisitor {
    type Value = Moment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a time since 1970 by RFC 3339, such as 2026-11-22T01:17:05.123Z or 2026-11-22T02:17:05+01:00"
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
        moment(text).map(Moment).ok_or_else(|| {
            let shown = text.get(..text.floor_char_boundary(TAG_BYTES_MAX)).unwrap_or_default();
            E::invalid_value(Unexpected::Str(shown), &self)
        })
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(MomentVisitor)
    }
}

/// RFC 3339 §5.6, but for leap seconds, which other clocks do not have.
fn moment(text: &str) -> Option<Timestamp> {
    let (day, rest) = (text.get(..10)?, text.get(10..)?.strip_prefix(['T', 't', ' '])?);
    let (clock, rest) = (rest.get(..8)?, rest.get(8..)?);
    let Time(at) = format!("{day}T{clock}.000Z").parse().ok()?;
    let (fraction_ms, offset) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(rest) => {
            let digits = rest.len() - rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let (fraction, offset) = rest.split_at(digits);
            let three: String = fraction.chars().chain("00".chars()).take(3).collect();
            ((1..=9).contains(&digits).then(|| three.parse::<u64>().ok())??, offset)
        }
    };
    let local_ms = at.as_ms() + fraction_ms;
    if matches!(offset, "Z" | "z") {
        return Some(Timestamp::from_ms(local_ms));
    }
    let sign = offset.get(..1)?;
    let number = |from: usize, most: u64| -> Option<u64> {
        let digits =
            offset.get(from..from + 2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok().filter(|number| *number <= most)
    };
    let ahead_ms = 60_000 * (60 * number(1, 23)? + number(4, 59)?);
    if offset.len() != 6 || offset.get(3..4)? != ":" {
        return None;
    }
    match sign {
        "+" => local_ms.checked_sub(ahead_ms),
        "-" => local_ms.checked_add(ahead_ms),
        _ => None,
    }
    .map(Timestamp::from_ms)
}

/// A duration.
struct Seconds(f64);

struct SecondsVisitor;

impl Visitor<'_> for SecondsVisitor {
    type Value = Seconds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number of seconds from 0 to {SECONDS_MAX}")
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Seconds, E> {
        if (0.0..=SECONDS_MAX).contains(&seconds) {
            Ok(Seconds(seconds))
        } else {
            Err(E::invalid_value(Unexpected::Float(seconds), &self))
        }
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
        self.visit_f64(seconds as f64)
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
        self.visit_f64(seconds as f64)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_f64(SecondsVisitor)
    }
}

/// A size.
struct Bytes(u64);

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number of bytes from 0 to {BYTES_MAX}")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
        if bytes <= BYTES_MAX {
            Ok(Bytes(bytes))
        } else {
            Err(E::invalid_value(Unexpected::Unsigned(bytes), &self))
        }
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
        Err(E::invalid_value(Unexpected::Signed(bytes), &self))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_u64(BytesVisitor)
    }
}

/// A few texts.
struct Tags(Vec<Box<str>>);

struct TagsVisitor;

impl<'de> Visitor<'de> for TagsVisitor {
    type Value = Tags;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {TAGS_MAX} texts")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Tags, A::Error> {
        let mut tags = Vec::new();
        while let Some(Text(tag)) = list.next_element::<Text<TAG_BYTES_MAX>>()? {
            if tags.len() == TAGS_MAX {
                return Err(de::Error::invalid_length(TAGS_MAX + 1, &self));
            }
            tags.push(tag);
        }
        Ok(Tags(tags))
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(TagsVisitor)
    }
}
