//! The zone file is edited under what updates have changed, and edited back: nothing that was acknowledged is lost
//! or undone by anything but a newer update.

use proptest::prelude::*;

use super::*;

const START: &str = "@ 300 SOA ns1 hostmaster 7 3600 600 604800 60\n@ 300 NS ns1\nns1 300 A 192.0.2.1\n";

/// A zone whose file is exchanged, as the daemon does it at a start and at a reload.
struct Shelf {
    view: View,
    book: StaticBook,
    /// What is stored.
    rows: BTreeMap<(DomainName, u16), SetChange>,
    file: String,
    /// Owners of what does not fit.
    aside: Vec<String>,
}

impl Shelf {
    fn new() -> Self {
        Self::granting(vec![everything()])
    }

    fn granting(grants: Vec<Grant>) -> Self {
        let view = view_of(zonefile::parse("f", START, &name("vm.test")).unwrap());
        let (book, rows) = (StaticBook::default(), BTreeMap::new());
        let mut shelf = Self { view, book, rows, file: String::new(), aside: Vec::new() };
        shelf.reload_granting("", grants);
        shelf
    }

    /// The file has these lines by now, beside those of [`START`].
    fn reload(&mut self, more: &str) {
        self.reload_granting(more, vec![everything()]);
    }

    fn reload_granting(&mut self, more: &str, grants: Vec<Grant>) {
        let text = format!("{START}{more}");
        let file = Arc::new(zonefile::parse("f", &text, &name("vm.test")).unwrap());
        more.clone_into(&mut self.file);
        self.book = StaticBook::default();
        self.book.open_page(Arc::clone(&file), grants, self.rows.keys().cloned());
        let (zone, aside) = lay_over(file, self.rows.values().cloned().collect(), |_| None);
        self.book.set_aside(&name("vm.test"), aside.iter().map(|aside| aside.change.clone()));
        self.aside = aside.iter().map(|aside| aside.change.owner.to_string()).collect();
        self.view = view_of(Arc::unwrap_or_clone(zone));
    }

    fn send(&mut self, edits: &[&str]) -> String {
        let message = message(&[], edits);
        let verdicts = self.book.judge(&self.view, [request(&message)]);
        // After a write whose outcome nobody knows, nothing that was stored is missing in what is written again.
        for ((owner, rtype), row) in
            self.book.rows_of(&self.view, &verdicts.changed).into_iter().flat_map(|of| of.1)
        {
            let again = row.map_or_else(Vec::new, |row| row.added);
            let before = self.rows.get(&(owner, rtype)).map_or(&[][..], |row| &row.added);
            assert!(before.iter().all(|data| again.contains(data)), "{edits:?}: {before:?}, {again:?}");
        }
        self.book.commit(&verdicts.changed);
        for changed in verdicts.changed {
            for (key, row) in changed.rows {
                match row {
                    Some(row) => self.rows.insert(key, row),
                    None => self.rows.remove(&key),
                };
            }
            if !changed.edit.names.is_empty() {
                self.view = self.view.advanced(self.view.generation + 1, [], [changed.edit]);
            }
        }
        verdicts.answers[0].as_ref().err().map_or("NOERROR".into(), ToString::to_string)
    }

    fn made(&mut self, edits: &[&str]) {
        assert_eq!(self.send(edits), "NOERROR", "{edits:?}");
    }

    /// `TYPE data` of each record of that name.
    fn at(&self, owner: &str) -> Vec<String> {
        let owner = format!("{} ", in_zone(owner));
        let lines = lines(self.view.zones().with_apex(&name("vm.test")).unwrap());
        let own = lines.iter().filter_map(|line| line.strip_prefix(&owner));
        own.map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

#[test]
fn what_an_update_removes_does_not_come_back_with_an_older_file() {
    let mut shelf = Shelf::new();
    for name in ["p", "q", "r", "s"] {
        shelf.made(&[&format!("add {name} 300 CNAME www")]);
    }
    let file = "p 300 A 10.0.0.1\nq 300 A 10.0.0.1\nr 300 A 10.0.0.1\ns 300 A 10.0.0.1\n";
    shelf.reload(file);
    assert_eq!(shelf.aside.len(), 4);
    let serial = shelf.view.zones().with_apex(&name("vm.test")).unwrap().serial();
    shelf.made(&["delete p"]);
    shelf.made(&["add q 300 AAAA 2001:db8::1"]);
    let now = shelf.view.zones().with_apex(&name("vm.test")).unwrap().serial();
    assert_eq!(now, serial + 2, "both changed what is served");
    shelf.made(&["delete r CNAME"]);
    let same = shelf.view.zones().with_apex(&name("vm.test")).unwrap().serial();
    assert_eq!(same, now, "nobody can see a difference");
    assert_eq!((shelf.at("p").len(), shelf.at("q").len(), shelf.at("r").len()), (0, 2, 1));
    // A restart changes nothing; then the old file comes back.
    shelf.reload(file);
    assert_eq!((shelf.at("p").len(), shelf.at("q").len(), shelf.at("r").len()), (0, 2, 1));
    assert_eq!(shelf.aside, ["s.vm.test"], "what nobody touched waits");
    shelf.reload("");
    assert_eq!((shelf.at("p"), shelf.at("r")), (Vec::new(), Vec::new()));
    assert_eq!(shelf.at("q"), ["AAAA 20010db8000000000000000000000001"]);
    assert!(shelf.at("s")[0].starts_with("CNAME "), "what was acknowledged is there again");
    assert_eq!(shelf.aside, [""; 0]);
}

#[test]
fn an_update_beside_what_is_set_aside_keeps_it() {
    let mut shelf = Shelf::new();
    shelf.made(&["add p 300 A 192.0.2.1", "add p 300 A 192.0.2.2", "add p 300 TXT x"]);
    shelf.reload("p 300 CNAME www\n");
    // An address beside an alias that is served is ignored, here too.
    shelf.made(&["add p 300 A 192.0.2.9"]);
    shelf.made(&["delete p A 192.0.2.1"]);
    shelf.made(&["delete p CNAME", "add p 300 A 192.0.2.3"]);
    assert_eq!(shelf.at("p"), ["A c0000203"]);
    shelf.reload("");
    assert_eq!(shelf.at("p"), ["A c0000202", "A c0000203", "TXT 0178"]);
}

#[test]
fn what_fits_is_served_beside_what_does_not() {
    let mut shelf = Shelf::new();
    shelf.made(&["add x 300 A 192.0.2.1", "add x 300 NS ns.x", "add ns.x 300 A 192.0.2.4"]);
    shelf.reload("ns.x 300 CNAME www\n");
    assert_eq!(shelf.aside, ["x.vm.test", "ns.x.vm.test"].map(String::from));
    assert_eq!(shelf.at("x"), ["A c0000201"]);
    shelf.made(&["add x 300 TXT x"]);
    shelf.reload("ns.x 300 CNAME www\n");
    assert_eq!(shelf.at("x"), ["A c0000201", "TXT 0178"]);
    shelf.reload("");
    assert_eq!((shelf.at("x").len(), shelf.at("ns.x").len(), shelf.aside.len()), (3, 1, 0));
}

#[test]
fn of_a_delegation_and_its_name_servers_address_the_newer_update_wins() {
    let with_glue = "ns.x 300 A 10.0.0.1\n";
    // The delegation is set aside; then the address is removed.
    let mut shelf = Shelf::new();
    shelf.reload(with_glue);
    shelf.made(&["add x 300 NS ns.x.vm.test."]);
    shelf.reload("ns.x 300 A 10.0.0.1\nx 300 CNAME www\n");
    assert_eq!(shelf.aside, ["x.vm.test"]);
    shelf.made(&["delete ns.x"]);
    shelf.reload(with_glue);
    assert_eq!((shelf.at("x").len(), shelf.at("ns.x").len(), shelf.aside.len()), (0, 0, 0));
    // The removal of the address is set aside; then another delegation needs it.
    let with_glue = "ns.y.x 300 A 10.0.0.1\n";
    let mut shelf = Shelf::new();
    shelf.reload(with_glue);
    shelf.made(&["delete ns.y.x"]);
    shelf.reload("ns.y.x 300 A 10.0.0.1\ny.x 300 NS ns.y.x\n");
    assert_eq!(shelf.aside, ["ns.y.x.vm.test"]);
    shelf.made(&["add x 60 NS ns.y.x.vm.test."]);
    shelf.reload(with_glue);
    assert_eq!((shelf.at("x").len(), shelf.at("ns.y.x").len(), shelf.aside.len()), (1, 1, 0));
    // Two removals of addresses of which one was set aside: the newer one stays made.
    let (both, cut) = ("ns.x 300 A 10.0.0.1\nns.x 300 A 10.0.0.2\n", "x 300 NS ns.x\n");
    let mut shelf = Shelf::new();
    shelf.reload(&format!("{both}ns.x 300 AAAA ::1\n"));
    shelf.made(&["delete ns.x A 10.0.0.1", "delete ns.x AAAA"]);
    shelf.reload("ns.x 300 A 10.0.0.1\nx 300 NS ns.x\n");
    assert_eq!(shelf.aside, ["ns.x.vm.test"]);
    shelf.reload(&format!("{both}{cut}"));
    shelf.made(&["add ns.x 300 A 192.0.2.7"]);
    shelf.made(&["delete ns.x A 10.0.0.2"]);
    shelf.reload(&format!("{both}{cut}"));
    assert_eq!(shelf.at("ns.x"), ["A c0000207"]);
}

#[test]
fn removing_a_name_needs_permission_for_what_is_set_aside_too() {
    let txt = || vec![Grant { types: vec![rdata::TXT], ..everything() }];
    let mut shelf = Shelf::new();
    shelf.made(&["add p 300 A 192.0.2.1"]);
    shelf.reload_granting("p 300 CNAME www\n", vec![Grant { types: vec![rdata::CNAME], ..everything() }]);
    let answer = shelf.send(&["delete p"]);
    assert!(answer.starts_with("REFUSED") && answer.contains("may not update A records"), "{answer}");
    shelf.reload_granting("p 300 TXT x\n", txt());
    assert_eq!(shelf.at("p").len(), 2);
}

// --- Whatever happens --------------------------------------------------------------------------------------------

/// What the file may have beside [`START`]; none of it is ever sent by an update.
const FILES: [&str; 6] = [
    "",
    "p 300 A 10.0.0.1\nq 300 A 10.0.0.1\n",
    "p 300 CNAME www\nq 300 TXT file\n",
    "p 300 CNAME www\nq 300 CNAME www\n",
    "p 300 A 10.0.0.1\np 300 TXT file\nq 300 CNAME www\n",
    "q 300 A 10.0.0.1\nq 300 A 10.0.0.2\n",
];
const OWN: [&str; 6] =
    ["A 192.0.2.1", "A 192.0.2.2", "TXT one", "TXT two", "CNAME one.example.", "CNAME two.example."];

#[derive(Debug, Clone)]
enum Step {
    Reload(usize),
    Add(&'static str, usize),
    Drop(&'static str, usize),
    DropSet(&'static str, usize),
    DropName(&'static str),
    /// Removes the name and adds the record in one update.
    Replace(&'static str, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let (owner, own) = (|| prop_oneof![Just("p"), Just("q")], || 0..OWN.len());
    prop_oneof![
        3 => (0..FILES.len()).prop_map(Step::Reload),
        4 => (owner(), own()).prop_map(|(owner, own)| Step::Add(owner, own)),
        1 => (owner(), own()).prop_map(|(owner, own)| Step::Drop(owner, own)),
        1 => (owner(), own()).prop_map(|(owner, own)| Step::DropSet(owner, own)),
        1 => owner().prop_map(Step::DropName),
        2 => (owner(), own()).prop_map(|(owner, own)| Step::Replace(owner, own)),
    ]
}

fn type_of(own: usize) -> &'static str {
    OWN[own].split(' ').next().unwrap()
}

/// Owner and index of every record that was added by an update and by no newer one removed or replaced.
type Acknowledged = BTreeSet<(&'static str, usize)>;

fn add(model: &mut Acknowledged, owner: &'static str, own: usize, at: &[String]) {
    let is_alias = type_of(own) == "CNAME";
    // RFC 2136 §3.4.2.2: ignored.
    if at.iter().any(|line| line.starts_with("CNAME ") != is_alias) {
        return;
    }
    model.retain(|(name, other)| *name != owner || !(is_alias || type_of(*other) == "CNAME"));
    model.insert((owner, own));
}

fn step(shelf: &mut Shelf, model: &mut Acknowledged, step: &Step) {
    match *step {
        Step::Reload(file) => shelf.reload(FILES[file]),
        Step::Add(owner, own) => {
            add(model, owner, own, &shelf.at(owner));
            shelf.made(&[&format!("add {owner} 300 {}", OWN[own])]);
        }
        Step::Drop(owner, own) => {
            model.remove(&(owner, own));
            shelf.made(&[&format!("delete {owner} {}", OWN[own])]);
        }
        Step::DropSet(owner, own) => {
            model.retain(|(name, other)| *name != owner || type_of(*other) != type_of(own));
            shelf.made(&[&format!("delete {owner} {}", type_of(own))]);
        }
        Step::DropName(owner) => {
            model.retain(|(name, _)| *name != owner);
            shelf.made(&[&format!("delete {owner}")]);
        }
        Step::Replace(owner, own) => {
            model.retain(|(name, _)| *name != owner);
            add(model, owner, own, &[]);
            shelf.made(&[&format!("delete {owner}"), &format!("add {owner} 300 {}", OWN[own])]);
        }
    }
}

/// Which records of the updates are served.
fn served(shelf: &Shelf) -> Acknowledged {
    let all = ["p", "q"].into_iter().flat_map(|owner| (0..OWN.len()).map(move |own| (owner, own)));
    let there = |(owner, own): &(&str, usize)| {
        let (rtype, text) = OWN[*own].split_once(' ').unwrap();
        let hex: String = data(rtype, text).iter().map(|byte| format!("{byte:02x}")).collect();
        shelf.at(owner).contains(&format!("{rtype} {hex}"))
    };
    all.filter(there).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_was_acknowledged_last_is_what_is_there(steps in prop::collection::vec(any_step(), 1..16)) {
        let (mut shelf, mut model) = (Shelf::new(), Acknowledged::new());
        for one in &steps {
            step(&mut shelf, &mut model, one);
            let now = served(&shelf);
            prop_assert!(now.is_subset(&model), "{:?} was removed", now.difference(&model));
            // The same file again, as at a restart.
            let mut again = Shelf { rows: shelf.rows.clone(), ..Shelf::new() };
            again.reload(&shelf.file);
            prop_assert!(now.is_subset(&served(&again)), "lost by a restart");
        }
        // Over a file that leaves room for everything, everything is there.
        shelf.reload("");
        prop_assert_eq!(&shelf.aside, &Vec::<String>::new());
        prop_assert_eq!(served(&shelf), model);
    }
}
