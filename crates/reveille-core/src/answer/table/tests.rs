use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::view::ServiceView;
use super::*;
use crate::model::{DomainName, Timestamp};

fn service(name: &DomainName, counter: u32) -> Arc<ServiceView> {
    let address = Ipv4Addr::from_bits(0x7f40_0000 + counter);
    Arc::new(ServiceView { counter, ..ServiceView::asleep(name.clone(), address) })
}

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn filled(names: usize) -> NameTable {
    let mut edit = NameTable::new(3).edit(vec![ZoneShape { apex_labels: 1, outer: None }]);
    edit.set_kinds(name("test").as_wire(), 0, Kinds::APEX, Kinds::default());
    for n in 0..names {
        let name = name(&format!("s{n}.test"));
        edit.set_service(name.as_wire(), 0, Some(service(&name, u32::try_from(n).unwrap())));
    }
    edit.finish()
}

#[test]
fn every_name_is_found_while_the_table_grows_and_shrinks() {
    let count = 20_000;
    let table = filled(count);
    assert_eq!(table.len(), count + 1);
    for n in 0..count {
        let slot = table.find(name(&format!("s{n}.test")).as_wire()).unwrap();
        assert_eq!(slot.counter() as usize, n);
    }
    assert!(table.find(name("s20000.test").as_wire()).is_none());
    assert_eq!(table.find(b"\x04TEST\x00").unwrap().below() as usize, count);
    // Half of a slot's worth is lost to free ones at most.
    assert!(table.heap_bytes() < count * 64 * 2, "{}", table.heap_bytes() / count);
    let mut edit = table.edit(vec![ZoneShape { apex_labels: 1, outer: None }]);
    for n in 0..count {
        edit.set_service(name(&format!("s{n}.test")).as_wire(), 0, None);
    }
    let empty = edit.finish();
    assert_eq!((empty.len(), empty.iter().count()), (1, 1));
    assert_eq!(table.iter().count(), count + 1);
}

#[test]
fn an_edit_shares_the_pages_that_it_does_not_touch() {
    let table = filled(20_000);
    let mut edit = table.edit(vec![ZoneShape { apex_labels: 1, outer: None }]);
    let changed = name("s7.test");
    edit.set_service(changed.as_wire(), 0, Some(service(&changed, 1_000_000)));
    let next = edit.finish();
    let pages = |table: &NameTable| -> Vec<Page> {
        table.branches.iter().flat_map(|branch| branch.iter()).cloned().collect()
    };
    let own = pages(&table).iter().zip(&pages(&next)).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
    assert_eq!(own, 1);
    assert_eq!(table.find(changed.as_wire()).unwrap().counter(), 7);
    assert_eq!(next.find(changed.as_wire()).unwrap().counter(), 1_000_000);
}

#[test]
fn ttls_end_where_the_state_may_change() {
    let name = name("a.test");
    let mut seen = Arc::unwrap_or_clone(service(&name, 1));
    seen.ttl_s = 60;
    seen.holds_until = Some(Timestamp::from_ms(100_900));
    let mut slot = Slot::new(name.as_wire(), 0);
    slot.set_service(Some(Arc::new(seen.clone())));
    for (now_s, ttl_s) in [(0, 60), (40, 60), (41, 59), (99, 1), (100, 1), (5_000, 1)] {
        assert_eq!(slot.ttl_s(now_s), ttl_s);
        assert_eq!(seen.ttl_s_at(Timestamp::from_ms(u64::from(now_s) * 1_000)), ttl_s);
    }
    seen.ttl_s = 0;
    assert_eq!(seen.ttl_s_at(Timestamp::from_ms(0)), 0);
}

/// Names of a few labels below two zones, one in the other.
fn any_name() -> impl Strategy<Value = DomainName> {
    let label = prop::sample::select(vec!["a", "b", "*", "zone", "a-label-that-does-not-fit-into-a-slot"]);
    prop::collection::vec(label, 1..5).prop_filter_map("no name", |labels| {
        let wildcard_inside = labels.iter().skip(1).any(|label| *label == "*");
        (!wildcard_inside).then(|| format!("{}.test", labels.join(".")).parse().ok()).flatten()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A name exists exactly when it, or a name below it, was put there; and it has a wildcard exactly when one
    /// exists directly below.
    #[test]
    fn what_exists_is_what_the_names_say(steps in prop::collection::vec((any_name(), any::<bool>()), 1..40)) {
        let (outer, inner) = (name("test"), name("a.zone.test"));
        let shapes = vec![
            ZoneShape { apex_labels: 1, outer: None },
            ZoneShape { apex_labels: 3, outer: Some(0) },
        ];
        let zone = |name: &DomainName| u16::from(name.is_at_or_below(&inner));
        let mut edit = NameTable::new(9).edit(shapes.clone());
        edit.set_kinds(outer.as_wire(), 0, Kinds::APEX, Kinds::default());
        edit.set_kinds(inner.as_wire(), 1, Kinds::APEX, Kinds::default());
        let mut table = edit.finish();
        let mut there: BTreeSet<DomainName> = [outer.clone(), inner.clone()].into();
        let mut asked: BTreeSet<DomainName> = BTreeSet::new();
        for (name, add) in steps {
            let mut edit = table.edit(shapes.clone());
            edit.set_service(name.as_wire(), zone(&name), add.then(|| service(&name, 1)));
            let next = edit.finish();
            let _old = std::mem::replace(&mut table, next);
            if add {
                there.insert(name.clone());
            } else if name != inner {
                there.remove(&name);
            }
            asked.extend(std::iter::successors(Some(name), DomainName::parent));
        }
        for name in asked.iter().filter(|name| name.label_count() > 0) {
            let below = |other: &DomainName| other.is_at_or_below(name);
            prop_assert_eq!(table.find(name.as_wire()).is_some(), there.iter().any(below), "{}", name);
            let Some(slot) = table.find(name.as_wire()) else { continue };
            prop_assert_eq!(slot.zone(), zone(name), "{}", name);
            let wildcard = there.iter().any(|other| {
                other.parent().as_ref() == Some(name) && other.first_label().as_deref() == Some("*")
            });
            prop_assert_eq!(slot.kinds().any_of(Kinds::HAS_WILDCARD), wildcard, "{}", name);
        }
    }
}
