//! Answers as a client understands them, read by a parser that shares nothing with the server's.

use std::fmt::{self, Write};

pub const OPT: u16 = 41;
const CNAME: u16 = 5;
const HEADER_BYTES: usize = 12;

/// A message; the records of each section sorted, so that order does not matter.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    pub opcode: u8,
    /// QR, AA, TC, RD, RA, Z, AD, CD: as they stand in the header, opcode and rcode masked out.
    pub flags: u16,
    /// With the upper bits of an OPT.
    pub rcode: u16,
    /// Names as they were written.
    pub questions: Vec<(Vec<u8>, u16, u16)>,
    pub answer: Vec<Rr>,
    pub authority: Vec<Rr>,
    /// Without OPT.
    pub additional: Vec<Rr>,
    pub opt: Option<Opt>,
}

/// A record; names in it in lower case and uncompressed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rr {
    pub owner: Vec<u8>,
    pub rtype: u16,
    pub class: u16,
    pub ttl: u32,
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Opt {
    pub payload: u16,
    pub version: u8,
    pub flags: u16,
    /// Code and data, in order of code.
    pub options: Vec<(u16, Vec<u8>)>,
}

pub const QR: u16 = 0x8000;
pub const AA: u16 = 0x0400;
pub const TC: u16 = 0x0200;
pub const RD: u16 = 0x0100;
pub const RA: u16 = 0x0080;
pub const Z: u16 = 0x0040;
pub const AD: u16 = 0x0020;
pub const CD: u16 = 0x0010;

impl Message {
    /// Reads a message to its last byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut message = Self::in_order(bytes)?;
        message.sort();
        Ok(message)
    }

    /// Reads a message, leaving the records in the order in which they stand.
    pub fn in_order(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { bytes, at: 0 };
        let id = reader.u16()?;
        let word = reader.u16()?;
        let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        let mut questions = Vec::new();
        for _ in 0..counts[0] {
            questions.push((reader.name()?, reader.u16()?, reader.u16()?));
        }
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, &count) in sections.iter_mut().zip(&counts[1..]) {
            for _ in 0..count {
                section.push(reader.record()?);
            }
        }
        if reader.at != bytes.len() {
            return Err(format!("{} bytes behind the last record", bytes.len() - reader.at));
        }
        let [answer, authority, mut additional] = sections;
        let opts: Vec<Rr> = additional.extract_if(.., |rr| rr.rtype == OPT).collect();
        let opt = match &opts[..] {
            [] => None,
            [opt] => Some(opt.as_opt()?),
            _ => return Err("more than one OPT".into()),
        };
        let upper = opts.first().map_or(0, |opt| opt.ttl >> 24);
        Ok(Self {
            id,
            opcode: u8::try_from(word >> 11 & 0xf).unwrap(),
            flags: word & 0x87f0,
            rcode: u16::try_from(upper << 4).unwrap() | word & 0xf,
            questions,
            answer,
            authority,
            additional,
            opt,
        })
    }

    /// Whether the aliases come in the order in which they are followed, each before what it points to, and nothing
    /// else is in the answer section: there are clients that read it only once.
    pub fn is_a_chain(&self) -> bool {
        let Some((asked, ..)) = self.questions.first() else { return self.answer.is_empty() };
        let mut name = asked.to_ascii_lowercase();
        self.answer.iter().all(|rr| {
            let follows = rr.owner == name;
            if rr.rtype == CNAME {
                name.clone_from(&rr.data);
            }
            follows
        })
    }

    pub fn sort(&mut self) {
        self.answer.sort();
        self.authority.sort();
        self.additional.sort();
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub fn set(&mut self, flag: u16, on: bool) {
        self.flags = self.flags & !flag | if on { flag } else { 0 };
    }

    /// An answer without what it is about: rcode and flags alone.
    pub fn is_bare(&self) -> bool {
        self.answer.is_empty() && self.authority.is_empty() && self.additional.is_empty()
    }
}

impl Rr {
    /// Takes uncompressed data of a record with the names in it in lower case.
    pub fn lower_names(&mut self) {
        let bytes = self.data.clone();
        let mut reader = Reader { bytes: &bytes, at: 0 };
        if let Ok(data) = reader.data(self.rtype, bytes.len()) {
            self.data = data;
        }
    }

    fn as_opt(&self) -> Result<Opt, String> {
        if self.owner != [0] {
            return Err("an OPT that is not at the root".into());
        }
        let mut reader = Reader { bytes: &self.data, at: 0 };
        let mut options = Vec::new();
        while reader.at < self.data.len() {
            let code = reader.u16()?;
            let length = reader.u16()?;
            options.push((code, reader.take(length.into())?.to_vec()));
        }
        options.sort();
        let [_, version, high, low] = self.ttl.to_be_bytes();
        Ok(Opt { payload: self.class, version, flags: u16::from_be_bytes([high, low]), options })
    }
}

/// What the data of a type is made of, as far as names are in it.
enum Part {
    /// So many bytes.
    Bytes(usize),
    /// A string with its length before it.
    Text,
    /// A name, which a sender may compress (RFC 3597 §4).
    Name,
    /// A name that must not be compressed.
    PlainName,
}

fn parts(rtype: u16) -> &'static [Part] {
    use Part::{Bytes, Name, PlainName, Text};
    match rtype {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR
        2..=5 | 7..=9 | 12 => &[Name],
        // SOA, MINFO
        6 | 14 => &[Name, Name],
        // MX
        15 => &[Bytes(2), Name],
        // RP
        17 => &[PlainName, PlainName],
        // AFSDB, RT, KX
        18 | 21 | 36 => &[Bytes(2), PlainName],
        // SRV
        33 => &[Bytes(6), PlainName],
        // NAPTR
        35 => &[Bytes(4), Text, Text, Text, PlainName],
        // DNAME
        39 => &[PlainName],
        // SVCB, HTTPS
        64 | 65 => &[Bytes(2), PlainName],
        _ => &[],
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], String> {
        let taken = self.bytes.get(self.at..self.at + count);
        self.at += count;
        taken.ok_or_else(|| format!("ends before byte {}", self.at))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    /// A name, uncompressed, as it is written; pointers must point backwards.
    fn name(&mut self) -> Result<Vec<u8>, String> {
        let mut name = Vec::new();
        let mut end = None;
        let mut before = self.at;
        loop {
            let length = self.u8()?;
            match length {
                0 => break,
                1..64 => {
                    name.push(length);
                    name.extend(self.take(length.into())?);
                }
                192.. => {
                    let to = usize::from(length & 0x3f) << 8 | usize::from(self.u8()?);
                    end.get_or_insert(self.at);
                    if !(HEADER_BYTES..before).contains(&to) {
                        return Err(format!("a pointer at byte {} points to no earlier name", self.at - 2));
                    }
                    before = to;
                    self.at = to;
                }
                64..192 => return Err(format!("a label of the reserved type {length}")),
            }
        }
        name.push(0);
        if name.len() > 255 {
            return Err("a name of more than 255 bytes".into());
        }
        self.at = end.unwrap_or(self.at);
        Ok(name)
    }

    fn record(&mut self) -> Result<Rr, String> {
        let owner = self.name()?.to_ascii_lowercase();
        let (rtype, class, ttl) = (self.u16()?, self.u16()?, self.u32()?);
        let end = usize::from(self.u16()?) + self.at;
        let data = self.data(rtype, end)?;
        Ok(Rr { owner, rtype, class, ttl, data })
    }

    /// The data of a record, up to `end`, with the names in it uncompressed and in lower case.
    fn data(&mut self, rtype: u16, end: usize) -> Result<Vec<u8>, String> {
        let mut data = Vec::new();
        for part in parts(rtype) {
            match part {
                Part::Bytes(count) => data.extend(self.take(*count)?),
                Part::Text => {
                    let length = self.u8()?;
                    data.push(length);
                    data.extend(self.take(length.into())?);
                }
                Part::Name => data.extend(self.name()?.to_ascii_lowercase()),
                Part::PlainName => {
                    let start = self.at;
                    let name = self.name()?;
                    if name.len() != self.at - start {
                        return Err(format!("a compressed name in the data of type {rtype}"));
                    }
                    data.extend(name.to_ascii_lowercase());
                }
            }
        }
        let rest = end.checked_sub(self.at).ok_or("data that is longer than it says")?;
        data.extend(self.take(rest)?);
        Ok(data)
    }
}

/// A name as in a zone file.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first().filter(|&(&length, _)| length > 0) {
        let (label, after) = tail.split_at(usize::from(length).min(tail.len()));
        for &byte in label {
            match byte {
                b'.' | b'\\' => write!(text, "\\{}", char::from(byte)).unwrap(),
                b'!'..=b'~' => text.push(byte.into()),
                _ => write!(text, "\\{byte:03}").unwrap(),
            }
        }
        text.push('.');
        rest = after;
    }
    if text.is_empty() { ".".into() } else { text }
}

fn hex(data: &[u8]) -> String {
    let mut text: String = data.iter().take(48).map(|byte| format!("{byte:02x}")).collect();
    if data.len() > 48 {
        write!(text, "… {} bytes", data.len()).unwrap();
    }
    text
}

impl fmt::Debug for Rr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} class {} type {} ", shown(&self.owner), self.ttl, self.class, self.rtype)?;
        match parts(self.rtype) {
            [Part::Name | Part::PlainName] => write!(f, "{}", shown(&self.data)),
            _ => write!(f, "{}", hex(&self.data)),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "opcode {} rcode {} flags", self.opcode, self.rcode)?;
        let words =
            [(QR, "QR"), (AA, "AA"), (TC, "TC"), (RD, "RD"), (RA, "RA"), (Z, "Z"), (AD, "AD"), (CD, "CD")];
        for (_, word) in words.iter().filter(|(flag, _)| self.has(*flag)) {
            write!(f, " {word}")?;
        }
        writeln!(f)?;
        for (name, qtype, qclass) in &self.questions {
            writeln!(f, "    question {} class {qclass} type {qtype}", shown(name))?;
        }
        for (word, section) in
            [("answer", &self.answer), ("authority", &self.authority), ("additional", &self.additional)]
        {
            for record in section.iter().take(20) {
                writeln!(f, "    {word} {record:?}")?;
            }
            if section.len() > 20 {
                writeln!(f, "    {word} … {} records", section.len())?;
            }
        }
        if let Some(opt) = &self.opt {
            writeln!(f, "    OPT version {} payload {} flags {:#06x}", opt.version, opt.payload, opt.flags)?;
            for (code, data) in &opt.options {
                writeln!(f, "        option {code} {}", hex(data))?;
            }
        }
        Ok(())
    }
}
