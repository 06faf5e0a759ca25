//! Numbers of 7 bits a byte, lowest first.

use super::Fault;

/// Longest encoding of 64 bits.
const BYTES_MAX: usize = 10;

pub(crate) fn put(to: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}

/// Reads from the front of some bytes and knows where it is.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { rest: bytes, at }
    }

    pub(crate) fn fault(&self, why: impl Into<String>) -> Fault {
        Fault::new(self.at, why)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.fault(format!("it ends {} bytes early", count - self.rest.len())));
        };
        self.rest = rest;
        self.at += count;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| self.fault("it ends early"))
    }

    pub(crate) fn number(&mut self) -> Result<u64, Fault> {
        let mut number = 0u64;
        for index in 0..BYTES_MAX {
            let [byte] = self.array()?;
            let shift = 7 * u32::try_from(index).unwrap_or(u32::MAX);
            let bits = u64::from(byte & 0x7f);
            let placed = bits.checked_shl(shift).filter(|placed| placed >> shift == bits);
            number |= placed.ok_or_else(|| self.fault("a number has more than 64 bits"))?;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.fault("a number has more than 64 bits"))
    }

    pub(crate) fn number_up_to(&mut self, max: u64, what: &str) -> Result<u64, Fault> {
        let number = self.number()?;
        if number > max {
            return Err(self.fault(format!("{what} is {number}, at most {max} are possible")));
        }
        Ok(number)
    }

    pub(crate) fn end(&self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.fault(format!("{} bytes too many", self.rest.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = vec![];
            put(&mut bytes, number);
            let mut reader = Reader::new(&bytes, 0);
            assert_eq!(reader.number().unwrap(), number);
            reader.end().unwrap();
        }
        assert!(Reader::new(&[0xff; 11], 0).number().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], 0).number().is_err());
        assert!(Reader::new(&[0x80], 0).number().is_err());
    }
}
