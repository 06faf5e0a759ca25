//! Loopback addresses that no other test has.

use std::net::{Ipv4Addr, TcpListener};

/// 256 loopback addresses that nobody else has who takes theirs here, in this test run or another.
pub struct Addresses {
    third: [u8; 3],
    /// Held so that nobody else takes them.
    _mark: TcpListener,
}

impl Addresses {
    /// Takes them.
    pub fn take() -> Self {
        let mut second = [0; 2];
        getrandom::fill(&mut second).unwrap();
        for step in 0..16_384_u16 {
            let [high, low] = u16::from_ne_bytes(second).wrapping_add(step).to_be_bytes();
            let third = [127, 64 | (high & 63), low];
            // Not the range that examples and the demo use.
            if third[1] > 64
                && let Ok(mark) = TcpListener::bind((Ipv4Addr::new(127, third[1], low, 253), 61_001))
            {
                return Self { third, _mark: mark };
            }
        }
        panic!("no loopback addresses are left");
    }

    /// The one that ends so.
    pub fn at(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.third;
        Ipv4Addr::new(a, b, c, last)
    }
}
