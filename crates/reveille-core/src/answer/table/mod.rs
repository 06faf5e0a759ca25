//! Every name that exists, of all zones, in one persistent hash table.
//!
//! ```text
//!   hash ─┬─ upper bits ─► branch ─► page ─┐
//!         └─ lower bits ─────────────────► slot, slot, …   (linear probing; a slot is one cache line)
//! ```
//!
//! Services, static names and the names between them (empty non-terminals) have a slot each. Branches and pages
//! are shared between tables: [`NameTable::edit`] copies the pages that change and what leads to them, so that a
//! reader's table never changes and a new one costs what has changed.

mod edit;
mod hash;
mod slot;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(super) use edit::{Edit, ZoneShape};
pub use slot::{Kinds, Slot};
pub(super) use slot::{capped_ttl_s, seconds};

/// Bits of the hash that choose among the pages of a branch.
const BRANCH_BITS: u32 = 6;
/// Names of a page on average, above which the table is spread over twice as many.
const PAGE_NAMES_MAX: usize = 48;

/// The slots of one page: none, or at least one that is empty.
type Page = Arc<[Slot]>;
type Branch = Arc<[Page]>;

/// Every name that exists. Cloning shares everything.
#[derive(Debug, Clone)]
pub struct NameTable {
    seed: u64,
    names: usize,
    /// Most labels that a name has.
    depth: usize,
    /// The hash's upper bits choose the page: these many, at least [`BRANCH_BITS`].
    bits: u32,
    branches: Arc<[Branch]>,
}

/// The place at which a name is, or would be.
#[derive(Debug, Clone, Copy)]
pub struct Place<'t> {
    page: &'t [Slot],
    first: usize,
}

impl Default for NameTable {
    fn default() -> Self {
        Self::new(0)
    }
}

impl NameTable {
    /// An empty table. `seed` is to be secret where strangers may choose names.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, names: 0, depth: 0, bits: BRANCH_BITS, branches: Arc::new([empty_branch()]) }
    }

    /// What its hashes depend on.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names == 0
    }

    /// Most labels that a name of the table has, or had; a longer name cannot be in it.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The slot of a name in wire format, whose letters may be of either case.
    pub fn find(&self, wire: &[u8]) -> Option<&Slot> {
        self.place(self.hash(wire)).find(wire)
    }

    /// The hash under which [`NameTable::place`] finds the name, for this table and those edited from it.
    pub fn hash(&self, wire: &[u8]) -> u64 {
        hash::hash(self.seed, wire)
    }

    /// Where a name with that hash would be. Finding the place, touching it and looking for the name are apart so
    /// that many names can do each step together and their cache misses overlap.
    pub fn place(&self, hash: u64) -> Place<'_> {
        let page = self.page(self.page_index(hash));
        Place { page, first: first_slot(hash, page.len()) }
    }

    /// Every slot with a name, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        let pages = self.branches.iter().flat_map(|branch| branch.iter());
        pages.flat_map(|page| page.iter()).filter(|slot| !slot.is_empty())
    }

    /// Bytes on the heap, without what slots point to.
    pub fn heap_bytes(&self) -> usize {
        let pages = self.branches.iter().flat_map(|branch| branch.iter());
        let slots: usize = pages.map(|page| size_of_val(&**page) + size_of::<[usize; 2]>()).sum();
        slots + (self.branches.len() << BRANCH_BITS) * size_of::<Page>()
    }

    /// A changed copy in the making, with zones of these shapes.
    pub(super) fn edit(&self, zones: Vec<ZoneShape>) -> Edit {
        Edit::of(self.clone(), zones)
    }

    fn page_index(&self, hash: u64) -> usize {
        // Fewer bits than a `usize` has.
        usize::try_from(hash >> (64 - self.bits)).unwrap_or(0)
    }

    fn page(&self, index: usize) -> &[Slot] {
        let branch = self.branches.get(index >> BRANCH_BITS);
        branch.and_then(|branch| branch.get(index & ((1 << BRANCH_BITS) - 1))).map_or(&[], |page| &**page)
    }
}

impl<'t> Place<'t> {
    /// Reads a little of the slot, so that it is in the cache when it is looked at. The value means nothing.
    pub fn touch(self) -> u32 {
        self.page.get(self.first).map_or(0, Slot::counter)
    }

    /// The slot of the name with that wire format; it must be the name whose hash led here.
    pub fn find(self, wire: &[u8]) -> Option<&'t Slot> {
        let (before, from) = self.page.split_at_checked(self.first)?;
        // One slot of a page is always empty, so that this ends.
        let mut probed = from.iter().chain(before).take_while(|slot| !slot.is_empty());
        probed.find(|slot| slot.has_name(wire))
    }
}

/// The slot of a page of `slots` at which looking for a name begins. Independent of the upper bits, which are
/// alike for all names of a page.
fn first_slot(hash: u64, slots: usize) -> usize {
    let low = u128::from(hash & u64::from(u32::MAX));
    usize::try_from((low * slots as u128) >> 32).unwrap_or(0)
}

fn empty_branch() -> Branch {
    let empty: Page = Arc::new([]);
    std::iter::repeat_n(empty, 1 << BRANCH_BITS).collect()
}
