//! Zone files (RFC 1035 §5): read with the `domain` crate's scanner, each fault with its line.
//!
//! The scanner stops at its first error and does not say where a good record stood. So the file is cut into
//! entries here, and each entry is scanned by itself with the state (origin, TTL, last owner) put in front of it.
//! Times may be written with units (`1h30m`), which the scanner does not know.

mod entry;

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use domain::base::iana::Class;
use domain::base::name::{Name, ToName};
use domain::base::rdata::ComposeRecordData;
use domain::zonefile::inplace::{Entry as Scanned, ScannedRecord, Zonefile};
use reveille_core::answer::{Record, Zone};
use reveille_core::model::DomainName;

use crate::named_file::{self, FileFault};
use entry::{Entry, seconds, with_plain_words};

/// Largest zone file, in bytes.
pub const ZONE_FILE_BYTES_MAX: u64 = 64 << 20;
/// Most records of a zone file.
pub const ZONE_RECORDS_MAX: usize = 1_000_000;
/// Most faults that are reported at a time.
pub const ZONE_FAULTS_MAX: usize = 50;
/// Largest TTL (RFC 2181 §8).
const TTL_S_MAX: u32 = i32::MAX.unsigned_abs();
/// TTL of records before any is given.
const TTL_S_DEFAULT: u32 = 3_600;

/// One thing that is wrong with a zone file, shown as `file:line: what`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneFileFault {
    /// The file.
    pub file: String,
    /// The line, counted from 1, on which the faulty entry begins; `None` if the file as a whole is meant.
    pub line: Option<usize>,
    /// One sentence.
    pub what: String,
}

impl fmt::Display for ZoneFileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl std::error::Error for ZoneFileFault {}

/// Reads the zone `apex` from a file.
///
/// # Errors
/// Every fault, up to [`ZONE_FAULTS_MAX`].
pub fn load(path: &Path, apex: &DomainName) -> Result<Zone, Vec<ZoneFileFault>> {
    let file = path.display().to_string();
    match named_file::read_text(path, ZONE_FILE_BYTES_MAX) {
        Ok(text) => parse(&file, &text, apex),
        Err(error) => {
            let (line, what) = match error.fault {
                FileFault::NotText { line } => (Some(line), "is no UTF-8; save the file as UTF-8".to_owned()),
                fault @ (FileFault::Unreadable(_) | FileFault::Kind(_) | FileFault::TooLarge { .. }) => {
                    (None, fault.to_string())
                }
            };
            Err(vec![ZoneFileFault { file, line, what }])
        }
    }
}

/// Reads the zone `apex` from the text of a file; `file` is how faults name it.
///
/// # Errors
/// Every fault, up to [`ZONE_FAULTS_MAX`].
pub fn parse(file: &str, text: &str, apex: &DomainName) -> Result<Zone, Vec<ZoneFileFault>> {
    let fault = |line, what: String| ZoneFileFault { file: file.to_owned(), line, what };
    if text.len() as u64 > ZONE_FILE_BYTES_MAX {
        return Err(vec![fault(None, format!("is larger than {} MiB", ZONE_FILE_BYTES_MAX >> 20))]);
    }
    if text.starts_with('\u{feff}') {
        let what = "begins with a byte order mark (the bytes EF BB BF); save the file as UTF-8 without one";
        return Err(vec![fault(Some(1), what.to_owned())]);
    }
    let mut reader = Reader::new(apex);
    let mut faults = Vec::new();
    for entry in entry::split(text) {
        if faults.len() >= ZONE_FAULTS_MAX {
            return Err(faults);
        }
        if reader.records.len() >= ZONE_RECORDS_MAX {
            faults.push(fault(Some(entry.line), format!("has more than {ZONE_RECORDS_MAX} records")));
            return Err(faults);
        }
        if let Err(what) = reader.take(&entry) {
            faults.push(fault(Some(entry.line), what));
        }
    }
    let checked = Zone::new(apex.clone(), &reader.records);
    match checked {
        Ok(zone) if faults.is_empty() => Ok(zone),
        Ok(_) => Err(faults),
        Err(found) => {
            // What is missing may only be missing because an entry could not be read.
            let whole_file_too = faults.is_empty();
            let found = found.into_iter().filter(|found| found.record.is_some() || whole_file_too);
            faults.extend(found.map(|found| {
                let line = found.record.and_then(|index| reader.lines.get(index).copied());
                fault(line, found.kind.to_string())
            }));
            faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
            faults.truncate(ZONE_FAULTS_MAX);
            Err(faults)
        }
    }
}

/// The state that one entry hands on to the next.
struct Reader {
    origin: Name<Bytes>,
    /// Of `$TTL`, or else of the last record with one.
    ttl_s: u32,
    ttl_is_fixed: bool,
    last_owner: Option<DomainName>,
    records: Vec<Record>,
    /// The line of each record.
    lines: Vec<usize>,
}

impl Reader {
    fn new(apex: &DomainName) -> Self {
        let origin = Name::from_octets(Bytes::copy_from_slice(apex.as_wire()));
        Self {
            // A `DomainName` is a name.
            origin: origin.unwrap_or_else(|_| Name::root_bytes()),
            ttl_s: TTL_S_DEFAULT,
            ttl_is_fixed: false,
            last_owner: None,
            records: Vec::new(),
            lines: Vec::new(),
        }
    }

    fn take(&mut self, entry: &Entry<'_>) -> Result<(), String> {
        if let Some(open) = entry.open {
            return Err(open.to_owned());
        }
        if let Some(given) = entry.directive("$TTL") {
            self.ttl_s =
                seconds(given).ok_or_else(|| format!("`{given}` is no TTL; write seconds, or such as 1h"))?;
            self.ttl_is_fixed = true;
            return Ok(());
        }
        if entry.directive("$INCLUDE").is_some() {
            return Err("$INCLUDE is not followed; put the records into this file".to_owned());
        }
        let mut scanner = Zonefile::from(self.with_state(entry)?.as_str());
        scanner.set_origin(self.origin.clone());
        scanner.set_default_class(Class::IN);
        let scanned = scanner.next_entry().map_err(|error| explained(&error.to_string()))?;
        self.origin = scanner.origin().unwrap_or_else(|_| self.origin.clone());
        match scanned {
            Some(Scanned::Record(record)) => self.keep(&record, entry.line),
            Some(Scanned::Include { .. }) | None => Ok(()),
        }
    }

    /// The entry as the scanner needs it to stand alone.
    fn with_state(&self, entry: &Entry<'_>) -> Result<String, String> {
        let origin = DomainName::from_wire(self.origin.as_slice()).map_err(|error| error.to_string())?;
        let body = with_plain_words(entry, &escaped(&origin));
        let owner = match (entry.is_indented(), &self.last_owner) {
            (false, _) => String::new(),
            (true, Some(owner)) => escaped(owner),
            (true, None) => {
                return Err("the first record has no owner; begin the line with a name or @".to_owned());
            }
        };
        Ok(format!("$TTL {}\n{owner}{body}\n", self.ttl_s))
    }

    fn keep(&mut self, record: &ScannedRecord, line: usize) -> Result<(), String> {
        let owner =
            DomainName::from_wire(record.owner().to_vec().as_slice()).map_err(|error| error.to_string())?;
        self.last_owner = Some(owner.clone());
        let ttl = record.ttl().as_secs();
        if ttl > TTL_S_MAX {
            return Err(format!("the TTL {ttl} is larger than {TTL_S_MAX} seconds"));
        }
        if !self.ttl_is_fixed {
            self.ttl_s = ttl;
        }
        let mut data = Vec::new();
        let Ok(()) = record.data().compose_rdata(&mut data);
        if u16::try_from(data.len()).is_err() {
            return Err("the record's data is longer than 65535 bytes".to_owned());
        }
        self.records.push(Record { owner, rtype: record.rtype().to_int(), ttl, data });
        self.lines.push(line);
        Ok(())
    }
}

/// The scanner's message without its place, which counts from the entry and is given as the file's line instead,
/// and with advice where the message alone would leave one puzzled.
fn explained(message: &str) -> String {
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let text = match message.splitn(3, ':').collect::<Vec<_>>()[..] {
        [line, column, text] if is_number(line) && is_number(column) => text.trim(),
        _ => message,
    };
    let advice = match text {
        "expected rtype" => {
            "; write owner, TTL, class and type in this order, such as `www 300 IN A 192.0.2.1`"
        }
        "unknown record type with concrete data" => {
            "; its text form is not known here, but `\\# length hex` is taken for any type (RFC 3597)"
        }
        _ => "",
    };
    format!("{text}{advice}")
}

/// The name with a final dot, every byte that could mean something to a scanner as `\DDD`.
fn escaped(name: &DomainName) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for label in name.labels() {
        for &byte in label {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*') {
                text.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(text, "\\{byte:03}");
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".to_owned() } else { text }
}
