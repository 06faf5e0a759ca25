//! What is told of clients' addresses: in the fields of a dnstap message, and in client subnets (RFC 7871) inside the
//! DNS message that it carries.

use std::net::IpAddr;

use super::config::Addresses;
use crate::wire::OPTION_SUBNET;

/// Bits of an IPv4 and of an IPv6 address that name a network: the smallest ones that are routed by themselves.
const NETWORK_BITS: (u32, u32) = (24, 48);
/// Type of the record with EDNS options (RFC 6891 §6.1).
const OPT: u16 = 41;

impl Addresses {
    /// What is told of a client's address.
    pub(super) fn of_client(self, address: IpAddr) -> Option<IpAddr> {
        match self {
            Self::None => None,
            Self::Full => Some(address),
            Self::Network => Some(match address.to_canonical() {
                IpAddr::V4(address) => IpAddr::V4((address.to_bits() & !(u32::MAX >> NETWORK_BITS.0)).into()),
                IpAddr::V6(address) => {
                    IpAddr::V6((address.to_bits() & !(u128::MAX >> NETWORK_BITS.1)).into())
                }
            }),
        }
    }

    /// What is told of a client's port.
    pub(super) fn of_port(self, port: u16) -> Option<u16> {
        match self {
            Self::None | Self::Network => None,
            Self::Full => Some(port),
        }
    }

    /// Zeroes what is not told in a DNS message; false if it cannot be read so far that all of it would be found.
    pub(crate) fn mask_message(self, message: &mut [u8]) -> bool {
        match self {
            Self::Full => true,
            Self::Network => mask_subnets(message, NETWORK_BITS).is_some(),
            Self::None => mask_subnets(message, (0, 0)).is_some(),
        }
    }
}

/// Zeroes the bits of all client subnets behind the first ones, `bits` for each family. Their prefix lengths stay: what
/// lies behind the bits that are known is zero anyway.
fn mask_subnets(message: &mut [u8], bits: (u32, u32)) -> Option<()> {
    let counts: &[u8; 8] = message.get(4..12)?.try_into().ok()?;
    let [questions, records @ ..] = [0, 2, 4, 6].map(|at| u16::from_be_bytes([counts[at], counts[at + 1]]));
    let mut at = 12;
    for _ in 0..questions {
        at = behind_name(message, at)? + 4;
    }
    for _ in 0..records.into_iter().map(u32::from).sum() {
        at = behind_name(message, at)?;
        let rtype = number(message, at)?;
        let length = usize::from(number(message, at + 8)?);
        let data = at + 10;
        at = data + length;
        // Of a record that is cut, too.
        message.get(data..at)?;
        if rtype == OPT {
            mask_options(message.get_mut(data..at)?, bits)?;
        }
    }
    // What follows the last record cannot be told from anything.
    (at == message.len()).then_some(())
}

fn mask_options(mut options: &mut [u8], bits: (u32, u32)) -> Option<()> {
    while !options.is_empty() {
        let code = number(options, 0)?;
        let length = usize::from(number(options, 2)?);
        let (option, rest) = options.split_at_mut_checked(4 + length)?;
        if code == OPTION_SUBNET {
            let kept = match number(option, 4) {
                Some(1) => bits.0,
                Some(2) => bits.1,
                Some(_) | None => 0,
            };
            for (place, byte) in option.iter_mut().skip(8).enumerate() {
                let before = u32::try_from(place * 8).ok()?;
                let left = kept.saturating_sub(before).min(8);
                *byte &= !(0xffu32 >> left).to_le_bytes()[0];
            }
        }
        options = rest;
    }
    Some(())
}

/// Where what follows a name begins, which may end in a pointer.
fn behind_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..64 => at += 1 + usize::from(length),
            64..192 => return None,
            192.. => return Some(at + 2),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `a.b` with an answer, and an OPT with a cookie and these client subnets.
    fn message(subnets: &[&[u8]]) -> Vec<u8> {
        let mut options = b"\0\x0a\0\x08COOKIE!!".to_vec();
        for subnet in subnets {
            options.extend([0, 8, 0, u8::try_from(subnet.len()).unwrap()]);
            options.extend(*subnet);
        }
        let mut all = b"\0\x07\x81\0\0\x01\0\x01\0\0\0\x01\x01a\x01b\0\0\x01\0\x01".to_vec();
        all.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\xc0\0\x02\xff");
        all.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0");
        all.push(u8::try_from(options.len()).unwrap());
        all.extend(options);
        all
    }

    #[test]
    fn nothing_but_the_network_of_a_client_is_left() {
        let four: &[u8] = &[0, 1, 32, 0, 192, 0, 2, 77];
        let six: &[u8] = &[0, 2, 56, 0, 0x20, 1, 0x0d, 0xb8, 1, 2, 3];
        let mut masked = message(&[four, six]);
        assert!(Addresses::Network.mask_message(&mut masked));
        let (four_left, six_left) =
            ([0, 1, 32, 0, 192, 0, 2, 0], [0, 2, 56, 0, 0x20, 1, 0x0d, 0xb8, 1, 2, 0]);
        assert_eq!(masked, message(&[&four_left, &six_left]));
        let mut hidden = message(&[four]);
        assert!(Addresses::None.mask_message(&mut hidden));
        assert_eq!(hidden, message(&[&[0, 1, 32, 0, 0, 0, 0, 0]]));
        let mut full = message(&[four]);
        assert!(Addresses::Full.mask_message(&mut full));
        assert_eq!(full, message(&[four]));
        // Of a family that nobody knows, nothing.
        let mut odd = message(&[&[0, 3, 8, 0, 7]]);
        assert!(Addresses::Network.mask_message(&mut odd));
        assert_eq!(odd, message(&[&[0, 3, 8, 0, 0]]));
    }

    #[test]
    fn what_cannot_be_read_to_its_end_is_not_let_through() {
        let whole = message(&[&[0, 1, 32, 0, 192, 0, 2, 77]]);
        for end in 0..whole.len() {
            assert!(!Addresses::Network.mask_message(&mut whole[..end].to_vec()), "{end}");
        }
        assert!(!Addresses::Network.mask_message(&mut [&whole[..], &[0]].concat()));
        let mut cut_option = whole;
        let at = cut_option.len() - 9;
        cut_option[at] += 1;
        assert!(!Addresses::Network.mask_message(&mut cut_option));
    }

    #[test]
    fn addresses_are_told_as_far_as_the_setting_says() {
        let four: IpAddr = "192.0.2.77".parse().unwrap();
        let six: IpAddr = "2001:db8:1:2::3".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.77".parse().unwrap();
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
        assert_eq!(text(Addresses::Network.of_client(four)).unwrap(), "192.0.2.0");
        assert_eq!(text(Addresses::Network.of_client(six)).unwrap(), "2001:db8:1::");
        assert_eq!(text(Addresses::Network.of_client(mapped)).unwrap(), "192.0.2.0");
        assert_eq!((Addresses::Full.of_client(six), Addresses::Full.of_port(7)), (Some(six), Some(7)));
        assert_eq!((Addresses::None.of_client(six), Addresses::Network.of_port(7)), (None, None));
    }
}
