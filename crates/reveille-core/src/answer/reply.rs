//! The answer to a question, before it is written into a message.

use std::borrow::Cow;
use std::sync::Arc;

use super::signing::Denial;
use super::view::ServiceView;
use super::zone::Zone;

/// Response code (RFC 1035 §4.1.1, RFC 6891 §6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rcode {
    /// 0: answered, perhaps with nothing.
    NoError,
    /// 1: the message could not be read.
    FormErr,
    /// 2: known, but not answered now.
    ServFail,
    /// 3: no such name.
    NxDomain,
    /// 4: a kind of question that is not answered here.
    NotImp,
    /// 5: not for this asker, or not here.
    Refused,
    /// 6: a name exists that should not (RFC 2136 §2.2, as the next ones).
    YxDomain,
    /// 7: an RRset exists that should not.
    YxRrset,
    /// 8: an RRset does not exist that should.
    NxRrset,
    /// 9: not authoritative for the zone, or not authenticated (RFC 8945 §5.2).
    NotAuth,
    /// 10: a name is not in the zone.
    NotZone,
    /// 16: a version of EDNS that is not spoken here.
    BadVers,
    /// 23: a server cookie is missing or not valid (RFC 7873 §8).
    BadCookie,
}

impl Rcode {
    /// Every code that is sent.
    pub const ALL: [Self; 13] = [
        Self::NoError,
        Self::FormErr,
        Self::ServFail,
        Self::NxDomain,
        Self::NotImp,
        Self::Refused,
        Self::YxDomain,
        Self::YxRrset,
        Self::NxRrset,
        Self::NotAuth,
        Self::NotZone,
        Self::BadVers,
        Self::BadCookie,
    ];

    /// The twelve-bit number.
    pub const fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::YxDomain => 6,
            Self::YxRrset => 7,
            Self::NxRrset => 8,
            Self::NotAuth => 9,
            Self::NotZone => 10,
            Self::BadVers => 16,
            Self::BadCookie => 23,
        }
    }

    /// The mnemonic, as dig prints it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::YxDomain => "YXDOMAIN",
            Self::YxRrset => "YXRRSET",
            Self::NxRrset => "NXRRSET",
            Self::NotAuth => "NOTAUTH",
            Self::NotZone => "NOTZONE",
            Self::BadVers => "BADVERS",
            Self::BadCookie => "BADCOOKIE",
        }
    }
}

/// An extended error (RFC 8914).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ede<'v> {
    /// INFO-CODE.
    pub code: u16,
    /// EXTRA-TEXT: one sentence for a person.
    pub text: Cow<'v, str>,
}

impl Ede<'_> {
    /// Other: only the text says what it is.
    pub const OTHER: u16 = 0;
    /// Not Ready.
    pub const NOT_READY: u16 = 14;
    /// Prohibited.
    pub const PROHIBITED: u16 = 18;
    /// Not Authoritative.
    pub const NOT_AUTHORITATIVE: u16 = 20;
    /// Not Supported.
    pub const NOT_SUPPORTED: u16 = 21;
    /// Invalid Query Type (RFC 9824).
    pub const INVALID_QUERY_TYPE: u16 = 30;
}

/// Whose records they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'v> {
    /// The name of the question, written as it was asked.
    Question,
    /// A name in wire format, uncompressed.
    Name(&'v [u8]),
}

/// The data of the records of one RRset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data<'v> {
    /// As they stand in the zone, one slice for each record, uncompressed.
    Zone(&'v [Box<[u8]>]),
    /// The address of a service.
    Address([u8; 4]),
    /// The IPv6 address of a service.
    Address6([u8; 16]),
    /// Made for this answer: one record.
    Made(Vec<u8>),
    /// Shared with other answers, one slice for each record, uncompressed.
    Shared(Arc<[Box<[u8]>]>),
}

/// One RRset of a reply, class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records<'v> {
    /// Whose.
    pub owner: Owner<'v>,
    /// Type.
    pub rtype: u16,
    /// Seconds.
    pub ttl: u32,
    /// Data.
    pub data: Data<'v>,
}

impl Records<'_> {
    /// The data of each record.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let data = match &self.data {
                Data::Zone(set) => set.get(next).map(|data| &**data),
                Data::Address(address) => (next == 0).then_some(&address[..]),
                Data::Address6(address) => (next == 0).then_some(&address[..]),
                Data::Made(data) => (next == 0).then_some(&data[..]),
                Data::Shared(set) => set.get(next).map(|data| &**data),
            };
            next += 1;
            data
        })
    }
}

/// The RRsets of a section. Nearly always at most one, which is then kept without allocating.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section<'v> {
    first: Option<Records<'v>>,
    rest: Vec<Records<'v>>,
}

impl<'v> Section<'v> {
    /// Adds an RRset at the end.
    pub fn push(&mut self, records: Records<'v>) {
        if self.first.is_none() {
            self.first = Some(records);
        } else {
            self.rest.push(records);
        }
    }

    /// The RRsets in order.
    pub fn iter(&self) -> impl Iterator<Item = &Records<'v>> {
        self.first.iter().chain(&self.rest)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// What a question is answered with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<'v> {
    /// Response code.
    pub rcode: Rcode,
    /// AA.
    pub authoritative: bool,
    /// Answer section.
    pub answer: Section<'v>,
    /// Authority section.
    pub authority: Section<'v>,
    /// Additional section, without OPT.
    pub additional: Section<'v>,
    /// The additional section is glue: what does not fit is a truncation (RFC 9471).
    pub glue: bool,
    /// Extended error.
    pub ede: Option<Ede<'v>>,
    /// Nothing is written of the records; the asker is to come back over a stream (TC).
    pub truncate: bool,
    /// CO is repeated: the denial may be compact and the code NXDOMAIN all the same (RFC 9824 §5).
    pub compact: bool,
    /// The zone that it is from; `None` for errors.
    pub zone: Option<&'v Zone>,
    /// Where it ends without the records that were asked for.
    pub denial: Option<Denial<'v>>,
    /// A name on the way is in no zone and stands in no list of services: it does not exist, or a wildcard stands
    /// for it. There are endless such names.
    pub of_endless_names: bool,
    /// The service that answers, be it at the question's name, at the end of aliases or for a wildcard.
    pub service: Option<&'v ServiceView>,
    /// The question asks for this service, which does not run: somebody should wake it.
    pub wake: Option<&'v ServiceView>,
    /// The answer should wait up to this many milliseconds for the service in `wake` (policy `hold`).
    pub hold_ms_max: Option<u64>,
}

impl<'v> Reply<'v> {
    /// An authoritative answer with nothing in it yet.
    pub fn empty() -> Self {
        Self {
            rcode: Rcode::NoError,
            authoritative: true,
            answer: Section::default(),
            authority: Section::default(),
            additional: Section::default(),
            glue: false,
            ede: None,
            truncate: false,
            compact: false,
            zone: None,
            denial: None,
            of_endless_names: false,
            service: None,
            wake: None,
            hold_ms_max: None,
        }
    }

    /// An error without records.
    pub fn error(rcode: Rcode, code: u16, text: impl Into<Cow<'v, str>>) -> Self {
        let ede = Some(Ede { code, text: text.into() });
        Self { rcode, authoritative: false, ede, ..Self::empty() }
    }
}
