//! The COOKIE option as it stands in a packet (RFC 7873 §4). Whether it proves anything is judged by the gate.

/// Option code (RFC 7873 §4).
pub const OPTION_COOKIE: u16 = 10;
/// Length of the option in an answer of this server: a client cookie, and a server cookie of RFC 9018 §4.
pub const COOKIE_BYTES: usize = CLIENT_BYTES + 16;

/// Length of a client cookie.
const CLIENT_BYTES: usize = 8;
/// Least and most bytes of a server cookie, whoever made it.
const SERVER_BYTES: std::ops::RangeInclusive<usize> = 8..=32;

/// What a client made up for itself and this server.
pub type ClientCookie = [u8; CLIENT_BYTES];

/// The cookies of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    client: ClientCookie,
    server: ServerPart,
}

/// What a client sent as the server's cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerPart {
    /// Nothing: it has none yet.
    None,
    /// Of the length that RFC 9018 gives.
    Sixteen([u8; 16]),
    /// Of another length: allowed, but not of this server's making.
    Foreign,
}

impl Cookie {
    /// Reads the option's data; `None` if its length is not allowed (RFC 7873 §5.2.2: FORMERR).
    #[inline]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (&client, server) = data.split_first_chunk::<CLIENT_BYTES>()?;
        let server = match <&[u8; 16]>::try_from(server) {
            Ok(&server) => ServerPart::Sixteen(server),
            Err(_) if server.is_empty() => ServerPart::None,
            Err(_) if SERVER_BYTES.contains(&server.len()) => ServerPart::Foreign,
            Err(_) => return None,
        };
        Some(Self { client, server })
    }

    /// The client's part.
    pub const fn client(&self) -> &ClientCookie {
        &self.client
    }

    /// The server's part.
    pub const fn server(&self) -> &ServerPart {
        &self.server
    }
}

#[cfg(test)]
mod tests {
    use super::super::Query;
    use super::*;

    #[test]
    fn of_several_the_first_counts_and_a_malformed_one_is_an_error() {
        let parse = |options: &[u8]| {
            let length = u8::try_from(options.len()).unwrap();
            let question =
                [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, length];
            let query = Query::parse(&[&question[..], options].concat());
            query.ok().map(|query| query.edns.unwrap().cookie.map(|cookie| *cookie.client()))
        };
        assert_eq!(parse(&[]), Some(None));
        let (one, two) = ([0, 10, 0, 8, 1, 1, 1, 1, 1, 1, 1, 1], [0, 10, 0, 8, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(parse(&[one, two].concat()), Some(Some([1; 8])));
        assert!(parse(&[0, 10, 0, 2, 1, 1]).is_none());
        assert!(parse(&[0, 10, 0, 0]).is_none());
    }

    #[test]
    fn lengths_are_as_the_rfc_allows() {
        for length in 0..=64 {
            let parsed = Cookie::parse(&vec![7; length]);
            assert_eq!(parsed.is_some(), length == 8 || (16..=40).contains(&length), "{length}");
            let server = parsed.map(|cookie| *cookie.server());
            match length {
                8 => assert_eq!(server, Some(ServerPart::None)),
                24 => assert_eq!(server, Some(ServerPart::Sixteen([7; 16]))),
                16..=40 => assert_eq!(server, Some(ServerPart::Foreign)),
                _ => {}
            }
        }
    }
}
