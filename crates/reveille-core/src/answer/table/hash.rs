//! Hashing and comparing names without regard to case (RFC 4343), eight bytes at a time.

/// Odd constants with about half of their bits set, from the fraction of π.
const MIX: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];

/// Eight bytes with A–Z made a–z. Length octets are at most 63 and so below `A`: they stay.
pub(super) const fn lower_case(word: u64) -> u64 {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & !HIGH;
    // The high bit of each byte: at least `A`; above `Z`.
    let from_a = low + EACH * (0x80 - b'A' as u64);
    let beyond_z = low + EACH * (0x7f - b'Z' as u64);
    let upper = (from_a ^ beyond_z) & !word & HIGH;
    word | (upper >> 2)
}

/// The hash of a name in wire format; letters of either case hash alike.
///
/// A folded multiply for each word. With a secret seed nobody can choose names that share a page.
pub(super) fn hash(seed: u64, wire: &[u8]) -> u64 {
    let (words, rest) = wire.as_chunks::<8>();
    let length = wire.len() as u64;
    let mut state = seed ^ length.wrapping_mul(MIX[1]);
    for word in words {
        state = fold(state ^ lower_case(u64::from_le_bytes(*word)), MIX[0]);
    }
    fold(state ^ lower_case(partial(rest)), MIX[1])
}

/// Whether a name in wire format is `lower`, which has no capital letters.
pub(super) fn same_name(wire: &[u8], lower: &[u8]) -> bool {
    if wire.len() != lower.len() {
        return false;
    }
    let (wire, wire_rest) = wire.as_chunks::<8>();
    let (lower, lower_rest) = lower.as_chunks::<8>();
    wire.iter().zip(lower).all(|(a, b)| lower_case(u64::from_le_bytes(*a)) == u64::from_le_bytes(*b))
        && lower_case(partial(wire_rest)) == partial(lower_rest)
}

/// Up to seven bytes as a word, the missing ones zero. Zeros at the end do not tell names of different lengths
/// apart; their lengths do.
fn partial(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let halves = (product as u64, (product >> 64) as u64);
    halves.0 ^ halves.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_letters_change() {
        for byte in 0..=u8::MAX {
            let word = u64::from_le_bytes([byte; 8]);
            assert_eq!(lower_case(word), u64::from_le_bytes([byte.to_ascii_lowercase(); 8]), "{byte}");
        }
        let mixed = u64::from_le_bytes(*b"A@[z\xc1\x05Zm");
        assert_eq!(lower_case(mixed), u64::from_le_bytes(*b"a@[z\xc1\x05zm"));
    }

    #[test]
    fn names_of_any_length_compare_and_hash_without_case() {
        let long: Vec<u8> = b"\x3fAbCdEfGhIjKlMnOpQrStUvWxYz0123456789".repeat(6);
        for length in 0..long.len() {
            let (upper, lower) = (&long[..length], long[..length].to_ascii_lowercase());
            assert!(same_name(upper, &lower), "{length}");
            assert_eq!(hash(7, upper), hash(7, &lower));
            if length > 0 {
                let mut other = lower.clone();
                other[length - 1] ^= 1;
                assert!(!same_name(upper, &other));
                assert!(!same_name(&upper[1..], &lower));
                assert_ne!(hash(7, upper), hash(7, &other));
                assert_ne!(hash(7, upper), hash(8, upper));
            }
        }
    }
}
