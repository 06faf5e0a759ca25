//! The dnstap messages: one event each, borrowed from the bytes that it came in.
//!
//! The schema is `dnstap.proto` (<https://github.com/dnstap/dnstap.pb>). Read and written by hand: two messages of
//! numbers and byte strings take no code generator, and a reader of its own neither copies nor allocates, whatever a
//! sender says.

use std::net::IpAddr;

use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

use super::protobuf::{DecodeError, Field, Fields, Output, Value};

/// What happened, and as whom the sender saw it. Queries have odd numbers, and their responses the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageType {
    /// A resolver's query came to an authoritative server.
    AuthQuery,
    /// It answered.
    AuthResponse,
    /// A resolver asked an authoritative server.
    ResolverQuery,
    /// It was answered.
    ResolverResponse,
    /// A client's query came to a resolver.
    ClientQuery,
    /// It answered.
    ClientResponse,
    /// A server passed a query on to a resolver.
    ForwarderQuery,
    /// It was answered.
    ForwarderResponse,
    /// A stub resolver asked a resolver.
    StubQuery,
    /// It was answered.
    StubResponse,
    /// A tool asked a server.
    ToolQuery,
    /// It was answered.
    ToolResponse,
    /// A dynamic update came to an authoritative server.
    UpdateQuery,
    /// It answered.
    UpdateResponse,
}

impl MessageType {
    /// Every one, by number from 1 on.
    pub const ALL: [Self; 14] = [
        Self::AuthQuery,
        Self::AuthResponse,
        Self::ResolverQuery,
        Self::ResolverResponse,
        Self::ClientQuery,
        Self::ClientResponse,
        Self::ForwarderQuery,
        Self::ForwarderResponse,
        Self::StubQuery,
        Self::StubResponse,
        Self::ToolQuery,
        Self::ToolResponse,
        Self::UpdateQuery,
        Self::UpdateResponse,
    ];

    /// Its number in the schema.
    pub fn number(self) -> u64 {
        self as u64 + 1
    }

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    /// Whether it tells of an answer.
    pub fn is_response(self) -> bool {
        self.number().is_multiple_of(2)
    }

    /// The query that this is, or answers.
    pub fn query(self) -> Self {
        Self::from_number(self.number().saturating_sub(u64::from(self.is_response()))).unwrap_or(self)
    }

    /// It as one word, as settings have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::AuthQuery => "auth_query",
            Self::AuthResponse => "auth_response",
            Self::ResolverQuery => "resolver_query",
            Self::ResolverResponse => "resolver_response",
            Self::ClientQuery => "client_query",
            Self::ClientResponse => "client_response",
            Self::ForwarderQuery => "forwarder_query",
            Self::ForwarderResponse => "forwarder_response",
            Self::StubQuery => "stub_query",
            Self::StubResponse => "stub_response",
            Self::ToolQuery => "tool_query",
            Self::ToolResponse => "tool_response",
            Self::UpdateQuery => "update_query",
            Self::UpdateResponse => "update_response",
        }
    }
}

/// How a message was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketProtocol {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
    /// A stream inside TLS (RFC 7858).
    Dot,
    /// HTTP inside TLS (RFC 8484).
    Doh,
    /// DNSCrypt, datagrams.
    DnscryptUdp,
    /// DNSCrypt, a stream.
    DnscryptTcp,
    /// QUIC (RFC 9250).
    Doq,
}

impl SocketProtocol {
    const ALL: [Self; 7] =
        [Self::Udp, Self::Tcp, Self::Dot, Self::Doh, Self::DnscryptUdp, Self::DnscryptTcp, Self::Doq];

    fn number(self) -> u64 {
        self as u64 + 1
    }
}

/// A dnstap payload, as far as it is used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dnstap<'b> {
    /// Who says so; empty if that is not said.
    pub identity: &'b [u8],
    /// What the sender is; empty if that is not said.
    pub version: &'b [u8],
    /// The event.
    pub message: Message<'b>,
}

/// One event. What is not there was not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message<'b> {
    /// What happened; `None` for a type that is not known here.
    pub kind: Option<MessageType>,
    /// How the message was carried; `None` as well for ways that are not known here.
    pub protocol: Option<SocketProtocol>,
    /// Who asked.
    pub query_address: Option<IpAddr>,
    /// Who was asked.
    pub response_address: Option<IpAddr>,
    /// From which port it was asked.
    pub query_port: Option<u16>,
    /// At which port.
    pub response_port: Option<u16>,
    /// When it was asked.
    pub query_time: Option<Timestamp>,
    /// The query in wire format; empty if it is not there.
    pub query_message: &'b [u8],
    /// When it was answered.
    pub response_time: Option<Timestamp>,
    /// The response in wire format; empty if it is not there.
    pub response_message: &'b [u8],
}

/// Numbers of the fields of `Dnstap`.
mod outer {
    pub const IDENTITY: u32 = 1;
    pub const VERSION: u32 = 2;
    pub const MESSAGE: u32 = 14;
    pub const TYPE: u32 = 15;
    /// The one value of `TYPE`.
    pub const TYPE_MESSAGE: u64 = 1;
}

/// Numbers of the fields of `Message`.
mod inner {
    pub const TYPE: u32 = 1;
    pub const SOCKET_FAMILY: u32 = 2;
    pub const SOCKET_PROTOCOL: u32 = 3;
    pub const QUERY_ADDRESS: u32 = 4;
    pub const RESPONSE_ADDRESS: u32 = 5;
    pub const QUERY_PORT: u32 = 6;
    pub const RESPONSE_PORT: u32 = 7;
    pub const QUERY_TIME_SEC: u32 = 8;
    pub const QUERY_TIME_NSEC: u32 = 9;
    pub const QUERY_MESSAGE: u32 = 10;
    pub const RESPONSE_TIME_SEC: u32 = 12;
    pub const RESPONSE_TIME_NSEC: u32 = 13;
    pub const RESPONSE_MESSAGE: u32 = 14;
    pub const INET: u64 = 1;
    pub const INET6: u64 = 2;
}

/// Latest second that is taken for a time: the last one of the year 9999.
const SECOND_MAX: u64 = 253_402_300_799;

impl<'b> Dnstap<'b> {
    /// Reads a payload.
    ///
    /// # Errors
    /// It is malformed, lacks what the schema requires, or is no message.
    pub fn decode(payload: &'b [u8]) -> Result<Self, DecodeError> {
        let mut read = Self::default();
        let (mut kind, mut message) = (None, None);
        for field in Fields::new(payload, 0) {
            let field = field?;
            match field.number {
                outer::IDENTITY => read.identity = bytes(&field)?,
                outer::VERSION => read.version = bytes(&field)?,
                outer::MESSAGE => message = Some((bytes(&field)?, field.value_at)),
                outer::TYPE => kind = Some((number(&field)?, field.at)),
                _ => {}
            }
        }
        let end = |fault| DecodeError { at: payload.len(), fault };
        let (kind, at) = kind.ok_or(end("it ends without a type"))?;
        if kind != outer::TYPE_MESSAGE {
            return Err(DecodeError { at, fault: "its type is not MESSAGE" });
        }
        let (message, at) = message.ok_or(end("it ends without a message"))?;
        read.message = Message::decode(message, at)?;
        Ok(read)
    }

    /// Appends it in protocol buffers' encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let out = &mut Output(out);
        for (number, value) in [(outer::IDENTITY, self.identity), (outer::VERSION, self.version)] {
            if !value.is_empty() {
                out.bytes(number, value);
            }
        }
        out.inside(outer::MESSAGE, |out| self.message.put(out));
        out.varint(outer::TYPE, outer::TYPE_MESSAGE);
    }
}

impl<'b> Message<'b> {
    fn decode(bytes_of: &'b [u8], base: usize) -> Result<Self, DecodeError> {
        let mut read = Self::default();
        let mut has_type = false;
        let (mut query, mut response) = (Time::default(), Time::default());
        for field in Fields::new(bytes_of, base) {
            let field = field?;
            match field.number {
                inner::TYPE => (has_type, read.kind) = (true, MessageType::from_number(number(&field)?)),
                inner::SOCKET_PROTOCOL => {
                    let index = number(&field)?.checked_sub(1).and_then(|index| usize::try_from(index).ok());
                    read.protocol = index.and_then(|index| SocketProtocol::ALL.get(index).copied());
                }
                inner::QUERY_ADDRESS => read.query_address = address(&field)?,
                inner::RESPONSE_ADDRESS => read.response_address = address(&field)?,
                inner::QUERY_PORT => read.query_port = Some(port(&field)?),
                inner::RESPONSE_PORT => read.response_port = Some(port(&field)?),
                inner::QUERY_TIME_SEC => query.second = Some(second(&field)?),
                inner::QUERY_TIME_NSEC => query.nanosecond = fixed(&field)?,
                inner::QUERY_MESSAGE => read.query_message = bytes(&field)?,
                inner::RESPONSE_TIME_SEC => response.second = Some(second(&field)?),
                inner::RESPONSE_TIME_NSEC => response.nanosecond = fixed(&field)?,
                inner::RESPONSE_MESSAGE => read.response_message = bytes(&field)?,
                _ => {}
            }
        }
        if !has_type {
            return Err(DecodeError { at: base + bytes_of.len(), fault: "the message ends without a type" });
        }
        (read.query_time, read.response_time) = (query.timestamp(), response.timestamp());
        Ok(read)
    }

    fn put(&self, out: &mut Output<'_>) {
        let mut varint = |field, value: Option<u64>| {
            if let Some(value) = value {
                out.varint(field, value);
            }
        };
        varint(inner::TYPE, self.kind.map(MessageType::number));
        let family = self.query_address.or(self.response_address).map(|address| match address {
            IpAddr::V4(_) => inner::INET,
            IpAddr::V6(_) => inner::INET6,
        });
        varint(inner::SOCKET_FAMILY, family);
        varint(inner::SOCKET_PROTOCOL, self.protocol.map(SocketProtocol::number));
        for (field, address) in
            [(inner::QUERY_ADDRESS, self.query_address), (inner::RESPONSE_ADDRESS, self.response_address)]
        {
            match address {
                Some(IpAddr::V4(address)) => out.bytes(field, &address.octets()),
                Some(IpAddr::V6(address)) => out.bytes(field, &address.octets()),
                None => {}
            }
        }
        for (field, port) in
            [(inner::QUERY_PORT, self.query_port), (inner::RESPONSE_PORT, self.response_port)]
        {
            if let Some(port) = port {
                out.varint(field, port.into());
            }
        }
        for (time, fields, message) in [
            (
                self.query_time,
                (inner::QUERY_TIME_SEC, inner::QUERY_TIME_NSEC, inner::QUERY_MESSAGE),
                self.query_message,
            ),
            (
                self.response_time,
                (inner::RESPONSE_TIME_SEC, inner::RESPONSE_TIME_NSEC, inner::RESPONSE_MESSAGE),
                self.response_message,
            ),
        ] {
            if let Some(time) = time {
                let (second, ms) = (time.as_ms() / 1_000, time.as_ms() % 1_000);
                out.varint(fields.0, second);
                out.fixed32(fields.1, u32::try_from(ms * 1_000_000).unwrap_or(0));
            }
            if !message.is_empty() {
                out.bytes(fields.2, message);
            }
        }
    }
}

#[derive(Default)]
struct Time {
    second: Option<u64>,
    nanosecond: u32,
}

impl Time {
    fn timestamp(&self) -> Option<Timestamp> {
        let ms = u64::from(self.nanosecond / 1_000_000).min(999);
        Some(Timestamp::from_ms(self.second? * 1_000 + ms))
    }
}

fn number(field: &Field<'_>) -> Result<u64, DecodeError> {
    match field.value {
        Value::Varint(number) => Ok(number),
        Value::Fixed64 | Value::Bytes(_) | Value::Fixed32(_) => {
            Err(DecodeError { at: field.at, fault: "a number is encoded as something else" })
        }
    }
}

fn bytes<'b>(field: &Field<'b>) -> Result<&'b [u8], DecodeError> {
    match field.value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Varint(_) | Value::Fixed64 | Value::Fixed32(_) => {
            Err(DecodeError { at: field.at, fault: "bytes are encoded as something else" })
        }
    }
}

fn fixed(field: &Field<'_>) -> Result<u32, DecodeError> {
    match field.value {
        Value::Fixed32(number) => Ok(number),
        Value::Varint(_) | Value::Fixed64 | Value::Bytes(_) => {
            Err(DecodeError { at: field.at, fault: "nanoseconds are encoded as something else" })
        }
    }
}

/// `None` if it is empty, as some senders say nothing.
fn address(field: &Field<'_>) -> Result<Option<IpAddr>, DecodeError> {
    let bytes = bytes(field)?;
    match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        _ if bytes.is_empty() => Ok(None),
        (Ok(four), _) => Ok(Some(four.into())),
        (_, Ok(sixteen)) => Ok(Some(sixteen.into())),
        _ => Err(DecodeError { at: field.at, fault: "an address has neither 4 nor 16 bytes" }),
    }
}

fn port(field: &Field<'_>) -> Result<u16, DecodeError> {
    let beyond = DecodeError { at: field.at, fault: "a port is over 65535" };
    u16::try_from(number(field)?).map_err(|_| beyond)
}

fn second(field: &Field<'_>) -> Result<u64, DecodeError> {
    let beyond = DecodeError { at: field.at, fault: "a time is after the year 9999" };
    number(field).and_then(|second| if second <= SECOND_MAX { Ok(second) } else { Err(beyond) })
}

#[cfg(test)]
mod tests;
