//! What was out of the ordinary, and the risk of a service, as an operator sees them. No virtual machine is started; the service has
//! no image.

use std::path::Path;

use reveille_core::forecast::anomaly::{Event, Kind};
use reveille_core::model::Timestamp;
use reveille_store::history::{History, Limits, StoredAnomaly};

use crate::place::Place;

#[test]
fn anomalies_of_before_a_start_are_shown_with_their_evidence_and_the_risk_with_its_parts() {
    let place = Place::new();
    place.config(
        "[[zone]]\nname = \"vm.test\"\n\
         [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n",
    );
    let daemon = place.daemon();
    daemon.signal("TERM");
    assert!(daemon.succeeds(), "{}", place.log());
    let event = |since_ms: u64, kind| Event {
        kind,
        since: Timestamp::from_ms(since_ms),
        until: Timestamp::from_ms(since_ms + 60_000),
        points: 2,
        observed: 240.0,
        expected: 12.5,
        spread: 3.0,
        deviation_sd: 75.8,
        score: 0.9,
    };
    let begins = [(1_795_310_220_000, Kind::Drop), (1_795_396_620_000, Kind::Spike)];
    let stored = begins.map(|(since_ms, kind)| StoredAnomaly {
        name: b"hello.vm.test".as_slice().into(),
        since_ms,
        event: serde_json::to_vec(&serde_json::json!({ "event": event(since_ms, kind) })).unwrap(),
    });
    let dir = place.path("state/history");
    let (history, _) = History::open(Path::new(&dir), Limits::default()).unwrap();
    history.recorder().note_anomalies(stored.into()).unwrap();
    drop(history);

    let _daemon = place.daemon();
    let why = place.json(&["why", "hello"]);
    assert_eq!(
        (&why["anomalies"][0]["kind"], &why["anomalies"][1]["kind"]),
        (&"spike".into(), &"drop".into())
    );
    assert_eq!(
        (&why["anomalies"][0]["observed"], &why["anomalies"][0]["alarm"]),
        (&240.0.into(), &true.into())
    );
    let parts: Vec<&str> =
        why["risk"]["parts"].as_array().unwrap().iter().map(|part| part["what"].as_str().unwrap()).collect();
    assert_eq!(parts, ["demand", "failure", "health", "load"]);
    let score = why["risk"]["score"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&score), "{why}");
    let text = place.run_once(&["why", "hello"]).unwrap();
    assert!(
        text.contains("spike since 2026-11-23T01:17:00.000Z")
            && text.contains("240 questions in a minute, 12.5 expected, 75.8 standard deviations"),
        "{text}"
    );
    assert!(
        text.contains("Risk of failing a client within the hour") && text.contains("wakes failed"),
        "{text}"
    );
    let shown = place.json(&["service", "show", "hello"]);
    assert_eq!((&shown["last_anomaly"], &shown["risk"]), (&why["anomalies"][0], &why["risk"]));

    // Who cannot be started is a risk to whoever comes.
    place.until("it is given up", || {
        place.dig(&["hello.vm.test", "A"]);
        place.json(&["why", "hello"])["risk"]["parts"][2]["probability"] == 1.0
    });
    let risk = place.json(&["why", "hello"])["risk"].clone();
    assert!(risk["score"].as_f64().unwrap() > score, "{risk}");
}
