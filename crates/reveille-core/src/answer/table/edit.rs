//! Changing a table: only the pages that are touched are copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::view::ServiceView;
use super::slot::{Kinds, Slot};
use super::{BRANCH_BITS, Branch, NameTable, PAGE_NAMES_MAX, Page, empty_branch, first_slot};

/// Where the names of a zone hang.
#[derive(Debug, Clone, Copy)]
pub(in crate::answer) struct ZoneShape {
    /// Labels of its apex.
    pub apex_labels: usize,
    /// Index of the zone in which its apex lies, if that is served too.
    pub outer: Option<u16>,
}

/// A changed copy of a table in the making. Zones are named by their index.
pub(in crate::answer) struct Edit {
    table: NameTable,
    zones: Vec<ZoneShape>,
    /// The names of the pages that were touched, in the order of their slots.
    touched: BTreeMap<usize, Vec<Slot>>,
}

impl Edit {
    pub(super) fn of(table: NameTable, zones: Vec<ZoneShape>) -> Self {
        Self { table, zones, touched: BTreeMap::new() }
    }

    /// Makes room for that many names in all, so that none of them makes the table spread again.
    pub(in crate::answer) fn reserve(&mut self, names: usize) {
        while names > PAGE_NAMES_MAX << self.table.bits {
            self.spread(names);
        }
    }

    /// What stands at a name now.
    pub(in crate::answer) fn get(&mut self, wire: &[u8]) -> Option<&Slot> {
        let page = self.page_of(wire);
        page.iter().find(|slot| slot.has_name(wire))
    }

    /// Puts a service at a name, or takes it away.
    pub(in crate::answer) fn set_service(
        &mut self,
        wire: &[u8],
        zone: u16,
        service: Option<Arc<ServiceView>>,
    ) {
        if service.is_none() && self.get(wire).is_none() {
            return;
        }
        self.change(wire, zone, |slot| slot.set_service(service));
    }

    /// Says of a name what it is beside a service.
    pub(in crate::answer) fn set_kinds(&mut self, wire: &[u8], zone: u16, add: Kinds, remove: Kinds) {
        self.change(wire, zone, |slot| slot.set_kinds(slot.kinds().without(remove).with(add)));
    }

    /// The table with all changes.
    pub(in crate::answer) fn finish(mut self) -> NameTable {
        self.flush();
        self.table
    }

    /// Changes a slot, which is made if there is none and goes if nothing is left in it; keeps the count of names
    /// below the ancestors.
    fn change(&mut self, wire: &[u8], zone: u16, change: impl FnOnce(&mut Slot)) {
        let page = self.page_of(wire);
        let at = page.iter().position(|slot| slot.has_name(wire)).unwrap_or_else(|| {
            page.push(Slot::new(wire, zone));
            page.len() - 1
        });
        let Some(slot) = page.get_mut(at) else { return };
        let was_void = slot.is_void();
        change(slot);
        let is_void = slot.is_void();
        if is_void {
            page.swap_remove(at);
        }
        match (was_void, is_void) {
            (true, false) => {
                self.table.names += 1;
                self.table.depth = self.table.depth.max(labels(wire));
                self.count_below(wire, zone, true);
                self.reserve(self.table.names);
            }
            (false, true) => {
                self.table.names -= 1;
                self.count_below(wire, zone, false);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// One name more, or less, below the parent; the ancestors that come to be, or cease to, count in turn.
    fn count_below(&mut self, wire: &[u8], zone: u16, more: bool) {
        let Some(shape) = self.zones.get(usize::from(zone)) else { return };
        // An apex is a name of the zone that it lies in.
        let zone = if labels(wire) > shape.apex_labels { Some(zone) } else { shape.outer };
        let (Some(zone), Some(parent)) = (zone, parent(wire)) else { return };
        self.change(parent, zone, |slot| {
            let below = if more { slot.below().saturating_add(1) } else { slot.below().saturating_sub(1) };
            slot.set_below(below);
        });
        if wire.starts_with(b"\x01*") {
            let (add, remove) = if more {
                (Kinds::HAS_WILDCARD, Kinds::default())
            } else {
                (Kinds::default(), Kinds::HAS_WILDCARD)
            };
            // The parent may be gone with its last name below, and needs no mark then.
            if self.get(parent).is_some() {
                self.set_kinds(parent, zone, add, remove);
            }
        }
    }

    fn page_of(&mut self, wire: &[u8]) -> &mut Vec<Slot> {
        let hash = self.table.hash(wire);
        let index = self.table.page_index(hash);
        let table = &self.table;
        self.touched
            .entry(index)
            .or_insert_with(|| table.page(index).iter().filter(|slot| !slot.is_empty()).cloned().collect())
    }

    /// Writes the touched pages into branches of their own.
    fn flush(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        let mut branches: Vec<Branch> = self.table.branches.to_vec();
        let mut pages = touched.into_iter().peekable();
        while let Some(&(first, _)) = pages.peek() {
            let at = first >> BRANCH_BITS;
            let Some(branch) = branches.get_mut(at) else { break };
            let mut own: Vec<Page> = branch.to_vec();
            while let Some((index, names)) = pages.next_if(|(index, _)| index >> BRANCH_BITS == at) {
                if let Some(page) = own.get_mut(index & ((1 << BRANCH_BITS) - 1)) {
                    *page = laid_out(&self.table, names);
                }
            }
            *branch = own.into();
        }
        self.table.branches = branches.into();
    }

    /// Spreads the table over as many pages as `names` need.
    fn spread(&mut self, names: usize) {
        self.flush();
        let old = self.table.clone();
        while names > PAGE_NAMES_MAX << self.table.bits {
            self.table.bits += 1;
        }
        let branches = 1usize << (self.table.bits - BRANCH_BITS);
        self.table.branches = std::iter::repeat_n(empty_branch(), branches).collect();
        for slot in old.iter() {
            let index = self.table.page_index(self.table.hash(slot.name()));
            self.touched.entry(index).or_default().push(slot.clone());
        }
        self.flush();
    }
}

/// Slots for these names, of which at most two thirds are taken.
fn laid_out(table: &NameTable, names: Vec<Slot>) -> Page {
    if names.is_empty() {
        return Arc::new([]);
    }
    let count = names.len() + names.len() / 2 + 1;
    let mut slots = vec![Slot::EMPTY; count];
    for name in names {
        let first = first_slot(table.hash(name.name()), count);
        let free = (first..count).chain(0..first).find(|&at| slots.get(at).is_some_and(Slot::is_empty));
        if let Some(slot) = free.and_then(|at| slots.get_mut(at)) {
            *slot = name;
        }
    }
    slots.into()
}

/// The name without its first label.
fn parent(wire: &[u8]) -> Option<&[u8]> {
    match wire.first()? {
        0 => None,
        length => wire.get(usize::from(*length) + 1..),
    }
}

/// How many labels a name has, the root label not counted.
fn labels(wire: &[u8]) -> usize {
    std::iter::successors(Some(wire), |wire| parent(wire)).count() - 1
}
