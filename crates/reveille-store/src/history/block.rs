//! A name's points in one file: the body of a frame.
//!
//! `length of the name (1) · name · number of columns (1) · for each: kind (1) · length (varint) · column`

use std::collections::BTreeMap;

use super::column::{self, Slot, put_varint, take, take_varint};
use super::frame::{Mark, put_frame};

/// Columns by the code of their kind. A code that this Reveille does not know is kept as it is.
pub(super) type Columns = BTreeMap<u8, Vec<Slot>>;

/// Appends the frame of a name's block.
pub(super) fn encode(name: &[u8], columns: &Columns, out: &mut Vec<u8>) {
    put_frame(Mark::Block, out, |out| {
        // A name's length is checked where it comes in.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(&name[..name.len().min(super::NAME_BYTES_MAX)]);
        out.push(u8::try_from(columns.len()).unwrap_or(u8::MAX));
        let mut packed = Vec::new();
        for (kind, points) in columns {
            packed.clear();
            column::encode(points, &mut packed);
            out.push(*kind);
            put_varint(packed.len() as u64, out);
            out.extend_from_slice(&packed);
        }
    });
}

/// A block's body that has been found to be whole.
#[derive(Debug, Clone)]
pub(super) struct Block<'b> {
    pub name: &'b [u8],
    columns: Vec<(u8, &'b [u8])>,
}

impl<'b> Block<'b> {
    /// `None` where the body does not fit the format.
    pub fn of(mut body: &'b [u8]) -> Option<Self> {
        let [len] = *take(&mut body, 1)? else { return None };
        let name = take(&mut body, len.into())?;
        let [count] = *take(&mut body, 1)? else { return None };
        let mut columns = Vec::new();
        for _ in 0..count {
            let [kind] = *take(&mut body, 1)? else { return None };
            let len = usize::try_from(take_varint(&mut body)?).ok()?;
            columns.push((kind, take(&mut body, len)?));
        }
        body.is_empty().then_some(Self { name, columns })
    }

    /// The points of a kind, none if it has none; `None` where they cannot be read.
    pub fn points(&self, kind: u8, slots: u64) -> Option<Vec<Slot>> {
        match self.columns.iter().find(|(code, _)| *code == kind) {
            Some((_, bytes)) => column::decode(bytes, slots),
            None => Some(Vec::new()),
        }
    }

    /// All points; `None` where some cannot be read.
    pub fn columns(&self, slots: u64) -> Option<Columns> {
        self.columns.iter().map(|(kind, bytes)| Some((*kind, column::decode(bytes, slots)?))).collect()
    }

    /// First and last slot of all kinds.
    pub fn bounds(&self, slots: u64) -> Option<(u32, u32)> {
        let all = self.columns.iter().filter_map(|(_, bytes)| column::bounds(bytes, slots));
        all.reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)))
    }
}

/// Adds `more` to what is there of the same kind and slot; beyond the largest number it stays there.
pub(super) fn add_columns(columns: &mut Columns, more: Columns, place: impl Fn(u32) -> u32) {
    for (kind, points) in more {
        let there = columns.entry(kind).or_default();
        let mut sums: BTreeMap<u32, u64> = std::mem::take(there).into_iter().collect();
        for (slot, amount) in points {
            let sum = sums.entry(place(slot)).or_default();
            *sum = sum.saturating_add(amount);
        }
        *there = sums.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::frame::take_frame;

    proptest! {
        #[test]
        fn no_body_ends_reading_by_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let read = |body: &[u8]| Block::of(body).map(|block| (block.columns(60), block.points(1, 60), block.bounds(60)));
            read(&bytes);
            // One that was whole, with a byte that is not.
            let columns = Columns::from([(1, vec![(3, 7), (4, 9)]), (9, vec![(0, u64::MAX)])]);
            let mut frame = Vec::new();
            encode(b"a.vm.test", &columns, &mut frame);
            let (_, body) = take_frame(&frame).unwrap();
            prop_assert_eq!(Block::of(body).unwrap().columns(60), Some(columns));
            let mut changed = body.to_vec();
            let place = at.index(changed.len());
            changed[place] = bytes.first().copied().unwrap_or(0);
            read(&changed);
        }
    }

    #[test]
    fn points_of_the_same_place_are_added_whatever_the_order() {
        let mut columns = Columns::new();
        add_columns(&mut columns, Columns::from([(1, vec![(59, 1), (60, 2), (61, u64::MAX)])]), |slot| {
            slot / 60
        });
        add_columns(&mut columns, Columns::from([(1, vec![(0, 5)]), (2, vec![(3, 1)])]), |slot| slot / 60);
        assert_eq!(columns, Columns::from([(1, vec![(0, 6), (1, u64::MAX)]), (2, vec![(0, 1)])]));
    }
}
