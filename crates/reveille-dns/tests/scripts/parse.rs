//! Reading a script; what `tests/dns/README.md` describes.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::str::FromStr;

use domain::base::iana::{Class, Rtype};
use domain::base::name::ToName;
use domain::base::rdata::ComposeRecordData;
use domain::zonefile::inplace::{Entry as Scanned, Zonefile};

use super::common::message::{self, Message, Opt, QR, Rr};

/// A script.
#[derive(Debug, Default)]
pub struct Script {
    /// Apex and text.
    pub zones: Vec<(String, String)>,
    /// Name, address, and in what state.
    pub services: Vec<(String, Ipv4Addr, String)>,
    pub entries: Vec<Entry>,
}

/// A question and the answer to it.
#[derive(Debug, Default)]
pub struct Entry {
    pub line: usize,
    pub title: String,
    pub packet: Vec<u8>,
    pub over_udp: bool,
    pub over_tcp: bool,
    /// `None` is silence.
    pub reply: Option<Message>,
    pub ede: Option<u16>,
    pub wakes: Option<String>,
    pub size: Option<usize>,
    pub together: bool,
    pub split: Vec<usize>,
}

/// Code and mnemonic.
const RCODES: [(u16, &str); 9] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (9, "NOTAUTH"),
    (16, "BADVERS"),
    (23, "BADCOOKIE"),
];
const FLAGS: [(u16, &str); 7] = [
    (message::AA, "AA"),
    (message::TC, "TC"),
    (message::RD, "RD"),
    (message::RA, "RA"),
    (message::Z, "Z"),
    (message::AD, "AD"),
    (message::CD, "CD"),
];

fn flag(word: &str) -> Option<u16> {
    FLAGS.iter().find(|(_, name)| *name == word).map(|(flag, _)| *flag)
}

/// What is read of an entry before it is put together.
#[derive(Default)]
struct Draft {
    entry: Entry,
    question: Option<(Vec<u8>, u16, u16)>,
    header: u16,
    raw: Option<Vec<u8>>,
    edns: Option<Opt>,
    /// The first word of REPLY, and its flags.
    reply: Option<(String, u16)>,
    no_question: bool,
    opt: Option<Option<Opt>>,
    sections: [Vec<Rr>; 3],
    section: usize,
}

impl Script {
    /// # Panics
    /// At the first line that cannot be read.
    pub fn parse(text: &str) -> Self {
        let mut script = Self::default();
        let mut draft: Option<Draft> = None;
        let mut lines = text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with(';') => {}
                ["ZONE", apex] => {
                    let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "END");
                    script
                        .zones
                        .push((apex.to_owned(), body.fold(String::new(), |text, line| text + line + "\n")));
                }
                ["SERVICE", name, address, state] => {
                    script.services.push((name.to_owned(), address.parse().unwrap(), state.to_owned()));
                }
                ["ENTRY", ..] => {
                    script.entries.extend(draft.take().map(Draft::finish));
                    let entry = Entry {
                        line: index + 1,
                        title: words[1..].join(" "),
                        over_udp: true,
                        over_tcp: true,
                        ..Entry::default()
                    };
                    draft = Some(Draft { entry, ..Draft::default() });
                }
                _ => {
                    let draft =
                        draft.as_mut().unwrap_or_else(|| panic!("line {}: `{line}` before ENTRY", index + 1));
                    draft
                        .take(&words, line)
                        .unwrap_or_else(|| panic!("line {}: `{line}` is not understood", index + 1));
                }
            }
        }
        script.entries.extend(draft.map(Draft::finish));
        script
    }
}

impl Draft {
    fn take(&mut self, words: &[&str], line: &str) -> Option<()> {
        match *words {
            ["QUERY", name, rtype, ref rest @ ..] => {
                let mut class = 1;
                for word in rest {
                    match (flag(word), word.split_once('=')) {
                        (Some(flag), _) => self.header |= flag,
                        (None, Some(("opcode", opcode))) => self.header |= opcode.parse::<u16>().ok()? << 11,
                        (None, Some(("over", "udp"))) => self.entry.over_tcp = false,
                        (None, Some(("over", "tcp"))) => self.entry.over_udp = false,
                        (None, _) => class = Class::from_str(word).ok()?.to_int(),
                    }
                }
                self.question = Some((wire(name)?, Rtype::from_str(rtype).ok()?.to_int(), class));
            }
            ["RAW", ref parts @ ..] => self.raw = Some(raw(parts)?),
            ["EDNS", ref settings @ ..] => self.edns = Some(opt(settings, 1_232)?),
            ["OPT", "none"] => self.opt = Some(None),
            ["OPT", ref settings @ ..] => self.opt = Some(Some(opt(settings, 1_232)?)),
            ["QUESTION", "none"] => self.no_question = true,
            ["QUESTION", name, rtype] => {
                self.question = Some((wire(name)?, Rtype::from_str(rtype).ok()?.to_int(), 1));
            }
            ["REPLY", code, ref flags @ ..] => {
                let flags = flags.iter().try_fold(QR, |all, word| Some(all | flag(word)?))?;
                self.reply = Some((code.to_owned(), flags));
            }
            ["EDE", code] => self.entry.ede = Some(code.parse().ok()?),
            ["WAKES", name] => self.entry.wakes = Some(name.to_owned()),
            ["SIZE", bytes] => self.entry.size = Some(bytes.parse().ok()?),
            ["TOGETHER"] => self.entry.together = true,
            ["SPLIT", ref ends @ ..] => {
                self.entry.split = ends.iter().map(|end| end.parse().ok()).collect::<Option<_>>()?;
            }
            ["ANSWER"] => self.section = 0,
            ["AUTHORITY"] => self.section = 1,
            ["ADDITIONAL"] => self.section = 2,
            _ => self.sections[self.section].push(record(line)?),
        }
        Some(())
    }

    fn finish(self) -> Entry {
        let Self { mut entry, question, header, raw, edns, reply, no_question, opt, sections, .. } = self;
        let what = format!("entry of line {}", entry.line);
        let (name, qtype, qclass) = question.clone().unwrap_or_default();
        entry.packet = raw.clone().unwrap_or_else(|| {
            let mut packet = vec![0x12, 0x34];
            packet.extend(header.to_be_bytes());
            packet.extend([0, 1, 0, 0, 0, 0, 0, edns.is_some().into()]);
            packet.extend(&name);
            packet.extend(qtype.to_be_bytes());
            packet.extend(qclass.to_be_bytes());
            packet.extend(edns.as_ref().map_or(Vec::new(), written));
            packet
        });
        let (code, flags) = reply.unwrap_or_else(|| panic!("{what} has no REPLY"));
        if code == "silence" {
            return entry;
        }
        let rcode =
            RCODES.iter().find(|(_, word)| *word == code).unwrap_or_else(|| panic!("{what}: {code}")).0;
        let echoed =
            edns.map(|edns| Opt { payload: 1_232, version: 0, flags: edns.flags & 0x8000, options: vec![] });
        let [answer, authority, additional] = sections;
        let mut message = Message {
            id: u16::from_be_bytes([entry.packet[0], entry.packet[1]]),
            opcode: entry.packet[2] >> 3 & 0xf,
            flags,
            rcode,
            questions: if no_question { vec![] } else { question.into_iter().collect() },
            answer,
            authority,
            additional,
            opt: opt.unwrap_or(echoed),
        };
        message.sort();
        entry.reply = Some(message);
        entry
    }
}

/// A name in wire format; `\DDD` and `\X` as in zone files.
fn wire(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut label = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => {
                if !label.is_empty() {
                    name.push(u8::try_from(label.len()).ok()?);
                    name.append(&mut label);
                }
            }
            b'\\' => {
                let next = bytes.next()?;
                if next.is_ascii_digit() {
                    let digits = [next, bytes.next()?, bytes.next()?];
                    label.push(std::str::from_utf8(&digits).ok()?.parse().ok()?);
                } else {
                    label.push(next);
                }
            }
            _ => label.push(byte),
        }
    }
    name.push(0);
    label.is_empty().then_some(name)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok().filter(|_| pair.len() == 2))
        .collect()
}

/// Digits and names.
fn raw(parts: &[&str]) -> Option<Vec<u8>> {
    let part = |part: &&str| match part.strip_prefix('<') {
        Some(name) => wire(name.strip_suffix('>')?),
        None => hex(part),
    };
    Some(parts.iter().map(part).collect::<Option<Vec<_>>>()?.concat())
}

fn opt(settings: &[&str], payload: u16) -> Option<Opt> {
    let mut opt = Opt { payload, version: 0, flags: 0, options: Vec::new() };
    for setting in settings {
        match setting.split_once('=') {
            None if *setting == "do" => opt.flags |= 0x8000,
            Some(("size", size)) => opt.payload = size.parse().ok()?,
            Some(("version", version)) => opt.version = version.parse().ok()?,
            Some(("z", bits)) => opt.flags |= bits.parse::<u16>().ok()?,
            Some(("option", option)) => {
                let (code, data) = option.split_once(':')?;
                opt.options.push((code.parse().ok()?, hex(data)?));
            }
            _ => return None,
        }
    }
    Some(opt)
}

fn written(opt: &Opt) -> Vec<u8> {
    let mut options = Vec::new();
    for (code, data) in &opt.options {
        options.extend(code.to_be_bytes());
        options.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        options.extend(data);
    }
    let mut record = vec![0, 0, 41];
    record.extend(opt.payload.to_be_bytes());
    record.extend([0, opt.version]);
    record.extend(opt.flags.to_be_bytes());
    record.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    record.extend(options);
    record
}

/// A record as in a zone file, with owner and TTL.
fn record(line: &str) -> Option<Rr> {
    let mut text = String::from(line.trim());
    writeln!(text).unwrap();
    let mut scanner = Zonefile::from(text.as_str());
    scanner.set_origin(domain::base::name::Name::root_bytes());
    scanner.set_default_class(Class::IN);
    let Ok(Some(Scanned::Record(record))) = scanner.next_entry() else { return None };
    let mut data = Vec::new();
    let Ok(()) = record.data().compose_rdata(&mut data);
    let mut rr = Rr {
        owner: record.owner().to_vec().as_slice().to_ascii_lowercase(),
        rtype: record.rtype().to_int(),
        class: record.class().to_int(),
        ttl: record.ttl().as_secs(),
        data,
    };
    rr.lower_names();
    Some(rr)
}
