//! What a row says, and what of a client is in it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use reveille_core::forecast::profile::Request;
use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::encode::{Encode, EncodeError};
use crate::place::Kind;

/// Bits of an IPv4 and of an IPv6 address that name a network: the smallest ones that are routed by themselves.
const NETWORK_BITS: (u8, u8) = (24, 48);
const DAY_MS: u64 = 86_400_000;

/// A row of a file of one kind.
pub trait Row: Send + Sync + Sized + 'static {
    /// Of which kind.
    const KIND: Kind;

    /// The time that it tells of.
    fn at(&self) -> Timestamp;

    /// About how many bytes of memory it takes.
    fn bytes(&self) -> usize;

    /// These rows as a file.
    ///
    /// # Errors
    /// They cannot be written, which is a fault of this program.
    fn encode(with: &dyn Encode, rows: &[Self]) -> Result<Vec<u8>, EncodeError>;
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRow {
    /// When it came.
    pub at: Timestamp,
    /// The service that it was for, or else the name that was asked.
    pub name: Arc<str>,
    /// Its type, as `AAAA` or `TYPE65280`.
    pub qtype: Arc<str>,
    /// Who asked, as far as it may be told: mostly a resolver.
    pub client: Option<Client>,
    /// Who says so.
    pub source: Source,
    /// Response code, if it is known.
    pub rcode: Option<u16>,
}

/// A request, as its log tells it.
pub type RequestRow = Request;

/// Who tells of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This server, which was asked.
    Own,
    /// Another one, by dnstap.
    Dnstap,
}

impl Source {
    /// As it is in a file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Dnstap => "dnstap",
        }
    }
}

/// What of clients is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clients {
    /// Nothing.
    None,
    /// Their networks, as a /24 or a /48.
    Network,
    /// A hash that is the same for a day of one run of the daemon.
    Hash,
}

/// A client as it is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A network by its first address.
    Network(IpAddr),
    /// A keyed hash.
    Hash(u64),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(first @ IpAddr::V4(_)) => write!(f, "{first}/{}", NETWORK_BITS.0),
            Self::Network(first @ IpAddr::V6(_)) => write!(f, "{first}/{}", NETWORK_BITS.1),
            Self::Hash(hash) => write!(f, "{hash:016x}"),
        }
    }
}

/// Makes of addresses what may be recorded of them. Cloned, it makes the same of the same.
#[derive(Debug, Clone)]
pub struct Marker {
    clients: Clients,
    /// A secret of this process that is nowhere written.
    hash: RandomState,
}

impl Marker {
    /// With a new key.
    #[must_use]
    pub fn new(clients: Clients) -> Self {
        Self { clients, hash: RandomState::new() }
    }

    /// What is recorded of a client that asked at `at`; `None` also of the unspecified address, which is nobody's.
    #[must_use]
    pub fn mark(&self, address: IpAddr, at: Timestamp) -> Option<Client> {
        let address = address.to_canonical();
        if address.is_unspecified() {
            return None;
        }
        match self.clients {
            Clients::None => None,
            Clients::Network => Some(Client::Network(network(address))),
            Clients::Hash => Some(Client::Hash(self.hash.hash_one((at.as_ms() / DAY_MS, address)))),
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & (u32::MAX << (32 - NETWORK_BITS.0))).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << (128 - NETWORK_BITS.1))).into()),
    }
}

impl Row for QueryRow {
    const KIND: Kind = Kind::Query;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn bytes(&self) -> usize {
        // As if its name were its own, which that of a service is not.
        size_of::<Self>() + self.name.len()
    }

    fn encode(with: &dyn Encode, rows: &[Self]) -> Result<Vec<u8>, EncodeError> {
        with.queries(rows)
    }
}

impl Row for RequestRow {
    const KIND: Kind = Kind::Request;

    fn at(&self) -> Timestamp {
        self.at
    }

    fn bytes(&self) -> usize {
        let texts = [&self.group, &self.runtime].into_iter().flatten().chain([&self.user, &self.service]);
        let tags = self.tags.iter().map(|tag| size_of_val(tag) + tag.len());
        size_of::<Self>() + texts.map(|text| text.len()).chain(tags).sum::<usize>()
    }

    fn encode(with: &dyn Encode, rows: &[Self]) -> Result<Vec<u8>, EncodeError> {
        with.requests(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_client_no_more_is_told_than_the_setting_says() {
        let noon = Timestamp::from_ms(DAY_MS * 20_780 + DAY_MS / 2);
        let text = |marker: &Marker, address: &str, at| {
            marker.mark(address.parse().unwrap(), at).map(|client| client.to_string())
        };
        let networks = Marker::new(Clients::Network);
        assert_eq!(text(&networks, "192.0.2.77", noon).unwrap(), "192.0.2.0/24");
        assert_eq!(text(&networks, "::ffff:192.0.2.77", noon).unwrap(), "192.0.2.0/24");
        assert_eq!(text(&networks, "2001:db8:1:2::3", noon).unwrap(), "2001:db8:1::/48");
        assert_eq!(text(&networks, "::", noon), None);
        assert_eq!(text(&Marker::new(Clients::None), "192.0.2.77", noon), None);

        // The same for a day and for all who record; another for another client, day or run.
        let hashes = Marker::new(Clients::Hash);
        let one = text(&hashes, "192.0.2.77", noon).unwrap();
        assert_eq!(text(&hashes.clone(), "::ffff:192.0.2.77", noon.plus_ms(1)).unwrap(), one);
        assert_ne!(text(&hashes, "192.0.2.78", noon).unwrap(), one);
        assert_ne!(text(&hashes, "192.0.2.77", noon.plus_ms(DAY_MS)).unwrap(), one);
        assert_ne!(text(&Marker::new(Clients::Hash), "192.0.2.77", noon).unwrap(), one);
        assert_eq!(one.len(), 16);
    }
}
