//! When an update is answered, and what becomes of it when the disk fails.

use reveille_core::answer::Rcode;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::super::desk::{UpdateDesk, ZoneRows};
use super::super::door::{UpdateAsk, Verdict};
use super::*;

fn ask(edits: &[&str]) -> (UpdateAsk, oneshot::Receiver<Verdict>) {
    let (verdict, answer) = oneshot::channel();
    let client = IpAddr::from([127, 0, 0, 1]);
    (UpdateAsk { message: message(&[], edits), key: name(KEY), client, verdict }, answer)
}

fn desk() -> UpdateDesk {
    let mut book = StaticBook::default();
    book.open_page(Arc::new(file()), vec![everything()], []);
    UpdateDesk::new(book)
}

/// `+ name` for a row that is written, `- name` for one that goes.
fn shown(rows: &[ZoneRows]) -> Vec<String> {
    let rows = rows.iter().flat_map(|(_, rows)| rows);
    rows.map(|((owner, _), row)| format!("{} {owner}", if row.is_some() { '+' } else { '-' })).collect()
}

#[test]
fn nobody_is_answered_before_everybody_can_see_it() {
    let (mut desk, view) = (desk(), view_of(file()));
    let (made, mut answer) = ask(&["add new 60 A 192.0.2.9"]);
    let (refused, mut no) = ask(&["add hello 60 A 192.0.2.9"]);
    assert_eq!(shown(&desk.judge(&view, vec![made, refused])), ["+ new.vm.test"]);
    assert!(!desk.is_free());
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    let edits = desk.durable();
    assert_eq!(edits[0].names, [name("new.vm.test")]);
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    let view = view.advanced(2, [], edits);
    desk.published();
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert!(no.try_recv().unwrap().is_err());
    // What changes nothing needs no disk.
    let (same, mut answer) = ask(&["add new 60 A 192.0.2.9"]);
    assert!(desk.is_free() && desk.judge(&view, vec![same]).is_empty() && desk.is_free());
    assert_eq!(answer.try_recv(), Ok(Ok(())));
}

#[test]
fn a_write_that_failed_is_undone_before_anything_else_is_judged() {
    let (mut desk, view) = (desk(), view_of(file()));
    let (made, mut answer) = ask(&["add new 60 A 192.0.2.9", "delete www"]);
    let rows = shown(&desk.judge(&view, vec![made]));
    assert_eq!(rows, ["+ new.vm.test", "+ www.vm.test", "+ www.vm.test"]);
    let undone = ["- new.vm.test", "- www.vm.test", "- www.vm.test"];
    assert_eq!(shown(&desk.failed(&view)), undone, "as everybody sees it");
    assert_eq!(answer.try_recv().unwrap().unwrap_err().rcode, Rcode::ServFail);
    // Failed again; meanwhile nothing else is judged.
    assert_eq!(shown(&desk.failed(&view)), undone);
    let (early, mut answer) = ask(&["add other 60 A 192.0.2.9"]);
    assert!(!desk.is_free() && desk.judge(&view, vec![early]).is_empty());
    assert_eq!(answer.try_recv(), Err(TryRecvError::Closed));
    assert!(desk.durable().is_empty());
    let (again, _answer) = ask(&["add new 60 A 192.0.2.9"]);
    assert!(desk.is_free());
    assert_eq!(shown(&desk.judge(&view, vec![again])), ["+ new.vm.test"]);
}
