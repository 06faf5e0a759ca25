//! dnstap as the config has it: a daemon that tells a collector of what it is asked, which here is its own. No virtual
//! machine is started; the service has no image.

use std::os::unix::fs::PermissionsExt;

use crate::place::Place;

#[test]
fn what_a_daemon_is_asked_is_told_counted_and_shown() {
    let place = Place::new();
    place.config(
        "[observe.dnstap_in]\nunix = \"tap.sock\"\nunix_mode = \"0600\"\n\
         [observe.dnstap_out]\nto = \"unix:tap.sock\"\nresponses = true\nidentity = \"own\"\n\
         [[zone]]\nname = \"vm.test\"\n\
         [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n",
    );
    let daemon = place.daemon();
    let mode = std::fs::metadata(place.path("tap.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let counts = || place.json(&["dns"])["dnstap"].clone();
    // Nothing is asked before the daemon has found its collector.
    place.until("a connection", || place.log().contains("dnstap is taken"));
    for qname in ["hello.vm.test", "none.vm.test", "www.example"] {
        place.dig(&[qname, "A"]);
    }
    place.until("all of it", || counts()["out"]["sent"] == 6);
    let shown = place.found("what was taken in", || {
        let shown = counts();
        (shown["in"]["other_types"] == 3).then_some(shown)
    });
    assert_eq!((&shown["in"]["counted"], &shown["in"]["outside"]), (&2.into(), &1.into()), "{shown}");
    assert_eq!((&shown["in"]["broken"], &shown["out"]["withheld"]), (&0.into(), &0.into()), "{shown}");
    let text = place.run_once(&["dns"]).unwrap();
    assert!(text.contains("dnstap, in") && text.contains("counted 2"), "{text}");
    daemon.signal("TERM");
    assert!(daemon.succeeds(), "{}", place.log());
    assert!(!std::path::Path::new(&place.path("tap.sock")).exists(), "gone with the daemon");
}
