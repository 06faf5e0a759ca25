//! Denials: an NSEC record at the very name that was asked for (RFC 9824).

use reveille_core::answer::rdata;

/// Longest name in wire format (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Longest label.
const LABEL_BYTES_MAX: u8 = 63;

/// The data of the NSEC record at `owner`, lower case, whose name has data of these types, and `RRSIG` and `NSEC`.
pub(super) fn nsec(owner: &[u8], types: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut data = successor(owner);
    let mut types: Vec<u16> = types.into_iter().chain([rdata::RRSIG, rdata::NSEC]).collect();
    types.sort_unstable();
    // Windows of 256 types, each with as many bytes as it needs (RFC 4034 §4.1.2).
    for window in types.chunk_by(|a, b| a >> 8 == b >> 8) {
        let mut bits = [0u8; 32];
        let (mut number, mut length) = (0, 0);
        for rtype in window {
            let [high, low] = rtype.to_be_bytes();
            if let Some(byte) = bits.get_mut(usize::from(low / 8)) {
                *byte |= 0x80 >> (low % 8);
            }
            (number, length) = (high, low / 8 + 1);
        }
        data.extend([number, length]);
        data.extend(bits.iter().take(length.into()));
    }
    data
}

/// The name that follows in canonical order, so that none lies between.
fn successor(owner: &[u8]) -> Vec<u8> {
    if owner.len() + 2 <= NAME_BYTES_MAX {
        return [b"\x01\x00", owner].concat();
    }
    // Too long for a name below it: the next one is beside it.
    beside(owner)
}

/// The next name that is not below this one (as in RFC 4471 §3.1.2, without its limit to host names).
fn beside(owner: &[u8]) -> Vec<u8> {
    let (&length, rest) = owner.split_first().unwrap_or((&0, &[]));
    let (label, above) = rest.split_at_checked(length.into()).unwrap_or((&[], &[]));
    if label.is_empty() {
        // Everything is below the root: the chain begins anew there.
        return vec![0];
    }
    let mut label = label.to_vec();
    if owner.len() < NAME_BYTES_MAX && length < LABEL_BYTES_MAX {
        label.push(0);
    } else {
        while label.last() == Some(&u8::MAX) {
            label.pop();
        }
        match label.last_mut() {
            // Upper case sorts as lower case, so that after `@` comes `[`.
            Some(last @ b'@') => *last = b'[',
            Some(last) => *last += 1,
            None => return beside(above),
        }
    }
    let mut next = vec![u8::try_from(label.len()).unwrap_or(LABEL_BYTES_MAX)];
    next.extend(label);
    next.extend_from_slice(above);
    next
}

#[cfg(test)]
mod tests {
    use domain::base::iana::Rtype;
    use domain::rdata::dnssec::RtypeBitmap;
    use reveille_core::model::DomainName;

    use super::*;

    /// The types that another implementation reads from the bitmap.
    fn read(nsec: &[u8]) -> (DomainName, Vec<u16>) {
        let (next, bits) = nsec.split_at(rdata::name_length(nsec).unwrap());
        let bitmap = RtypeBitmap::from_octets(bits).unwrap();
        (DomainName::from_wire(next).unwrap(), bitmap.iter().map(Rtype::to_int).collect())
    }

    #[test]
    fn the_bitmap_has_what_the_name_has() {
        for types in [&[][..], &[1], &[1, 28, 16], &[128], &[1, 257, 65_280], &[65_535, 255, 256]] {
            let (next, told) = read(&nsec(b"\x01a\x04test\x00", types.iter().copied()));
            let mut expected = [types, &[46, 47]].concat();
            expected.sort_unstable();
            assert_eq!(told, expected);
            assert_eq!(next.as_wire(), b"\x01\x00\x01a\x04test\x00");
        }
    }

    #[test]
    fn nothing_lies_between_a_name_and_its_successor() {
        // Of 253, 254 and 255 bytes, with a label of 61, 62 and 63 in front.
        let long = |first: Vec<u8>| {
            let rest =
                [[&[63u8][..], &[b'x'; 63]].concat().repeat(2), [&[61u8][..], &[b'y'; 61]].concat()].concat();
            [vec![u8::try_from(first.len()).unwrap()], first, rest, vec![0]].concat()
        };
        let shown = |name: Vec<u8>| (name.len(), name[..usize::from(name[0]) + 1].to_vec());
        assert_eq!(successor(&long(vec![b'a'; 61])).len(), 255);
        assert_eq!(successor(b"\x00"), b"\x01\x00\x00");
        let grown = [&[62u8][..], &[b'a'; 61], &[0]].concat();
        assert_eq!(shown(beside(&long(vec![b'a'; 61]))), (254, grown));
        let with = |last: &[u8]| {
            let label = [&vec![b'a'; 63 - last.len()], last].concat();
            let next = successor(&long(label));
            next[1 + 63 - last.len()..usize::from(next[0]) + 1].to_vec()
        };
        assert_eq!(with(b"a"), b"b");
        assert_eq!(with(b"@"), b"[");
        assert_eq!(with(b"a\xff\xff"), b"b");
        assert_eq!(successor(&long(vec![0xff; 63]))[..3], [63, b'x', b'x']);
        let names = [long(vec![0xff; 63]), long(vec![b'a'; 63]), long(vec![b'a'; 62])];
        for name in names.map(|name| DomainName::from_wire(&name).unwrap()) {
            assert!(DomainName::from_wire(&successor(name.as_wire())).unwrap() > name);
        }
    }
}
