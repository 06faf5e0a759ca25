//! `reveille replay` on traces of every format, on bad ones, and on the history of a daemon that runs.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use reveille_core::model::Timestamp;
use reveille_dns::dnstap::message::{Dnstap, Message, MessageType};
use reveille_store::history::{Batch, History, Kind, KindSet, Limits, Point, Seen};
use serde_json::Value;

use crate::place::Place;

/// Three prices instead of 141, which would take long where nothing is optimised.
const QUICK: [&str; 3] = ["replay", "--delay-price", "0.001,0.1,10"];

/// Runs it; what it printed, or said on standard error.
fn replay(place: &Place, arguments: &[&str]) -> Result<String, String> {
    place.run_once(&[&QUICK[..], arguments].concat())
}

fn json(place: &Place, arguments: &[&str]) -> Value {
    serde_json::from_str(&replay(place, &[&["--json"], arguments].concat()).unwrap()).unwrap()
}

/// `busy` every ten minutes for two days, `rare` every five hours.
fn arrivals(days: std::ops::Range<u64>) -> String {
    let mut lines = vec!["time,name,client".to_owned()];
    for minute in days.start * 1_440..days.end * 1_440 {
        for (name, every) in [("busy", 10), ("rare", 300)] {
            if minute % every == 0 {
                lines.push(format!("{},{name},c", 1_700_000_000 + minute * 60));
            }
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn arrivals_are_replayed_as_table_json_and_picture() {
    let place = Place::new();
    place.write("all.csv", &arrivals(0..2));
    place.write("one.csv", &arrivals(0..1));
    place.write("two.csv", &arrivals(1..2));
    let (all, svg) = (place.path("all.csv"), place.path("curve.svg"));
    let report = json(&place, &[&all, "--svg", &svg]);
    assert_eq!(report["traces"][0]["format"], "arrivals");
    assert_eq!((&report["names"], &report["requests"]), (&2.into(), &298.into()));
    for ratio in ["cold_ratio_worst", "delay_ratio_worst"] {
        assert!(report.get(ratio).is_some(), "{ratio}");
    }
    let comparison = &report["comparisons"][0];
    assert_eq!((&comparison["measure"], &comparison["of"]), (&"cold_starts".into(), &"all names".into()));
    assert_eq!(comparison["curves"][0]["points"].as_array().unwrap().len(), 64);
    let fixed = &report["details"][0];
    assert_eq!(fixed["policy"], "fixed");
    // Ten minutes keep who is asked for every ten, and nobody else.
    assert_eq!(fixed["by_name"]["busy"]["cold"], 1);
    assert_eq!(fixed["by_name"]["rare"]["cold"], 10);
    assert!(fixed["total"]["gib_hours"]["active"].as_f64().unwrap() > 5.0, "{fixed}");
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("idle-warm hours"));

    let text = replay(&place, &[&all, "--names", "1"]).unwrap();
    for part in [
        "all.csv: 298 arrivals",
        "2 names, 298 requests",
        "all names (cold starts)",
        "  busy ",
        "1 more names",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("  rare "), "{text}");
    // Two files are one trace, in whatever order.
    let parts = json(&place, &[&place.path("two.csv"), &place.path("one.csv")]);
    assert_eq!(parts["comparisons"], report["comparisons"]);
}

#[test]
fn prices_rungs_and_budgets_are_as_they_are_given() {
    let place = Place::new();
    place.write("all.csv", &arrivals(0..2));
    let settings =
        ["--rung", "paused=210,35", "--without", "armed", "--budget", "7,30", "--keep-alive", "1,60"];
    let report =
        json(&place, &[&[place.path("all.csv").as_str()], &settings[..], &["--beside", "15"]].concat());
    assert_eq!(report["settings"]["fixed_min"], serde_json::json!([1.0, 7.0, 15.0, 30.0, 60.0]));
    assert_eq!(report["comparisons"][0]["budgets"].as_array().unwrap().len(), 3);
    assert_eq!(report["details"][0]["setting"], "15.0 min");
    let rungs = report["settings"]["rungs"].as_array().unwrap();
    assert_eq!(
        rungs.iter().map(|rung| rung["rung"].as_str().unwrap()).collect::<Vec<_>>().join(" "),
        "cold remote local paused active"
    );
    // Wrong use, and what does not fit together.
    for (arguments, status, told) in [
        (&["--format", "xml"][..], 2, "arrivals"),
        (&["--rung", "warm=1,2"], 2, "one of cold, remote"),
        (&["--message", "auth"], 2, "auth_query"),
        (&["--budget", "-3"], 2, "-3"),
        (&["--without", "local"], 1, "rest is local: it must be one of the rungs"),
        (&["--message", "auth_query", "--message", "auth_response"], 1, "--message"),
        (&["--svg", "/nonexistent/x.svg"], 1, "cannot write /nonexistent/x.svg"),
    ] {
        let output = place.command(&[&QUICK[..], &[place.path("all.csv").as_str()], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(told), "{arguments:?}: {error}");
    }
    let none = place.command(&["replay"]);
    assert_eq!(none.status.code(), Some(2));
    let help = place.run_once(&["replay", "--help"]).unwrap();
    assert!(
        help.contains("What is counted:") && help.contains("reveille replay /var/lib/reveille"),
        "{help}"
    );
}

/// Runs it on what is written to its standard input.
fn replay_input(arguments: &[&str], input: &[u8]) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_reveille"))
        .args([&QUICK[..], &["-"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses the first line does not read on.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let told = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(told).unwrap())
}

#[test]
fn counts_of_minutes_come_from_standard_input() {
    let (ok, told) = replay_input(&["--json"], b"minute,web,db\n0,1,0\n60,0,30\n6000,2,1\n");
    let report: Value = serde_json::from_str(&told).unwrap();
    assert!(ok && report["traces"][0]["format"] == "minutes", "{told}");
    assert_eq!((&report["names"], &report["requests"]), (&2.into(), &34.into()));
    // A header that `auto` takes for arrivals.
    let (ok, told) = replay_input(&["--format", "minutes"], b"time,name\n0,3\n600,2\n");
    assert!(!ok && told.contains("standard input: line 1: no column for the counts"), "{told}");
}

#[test]
fn a_bad_trace_is_named_with_its_line() {
    for (bad, told) in [
        (&b""[..], "the trace is empty"),
        (b"time,name\n", "no name has two requests"),
        (b"time,name\n1,a\n2,b\n", "no name has two requests"),
        (b"time,name\n1,a\nNaN,a\n", "line 3: time \"NaN\" is not"),
        (b"time,name\n1,a\n-1,a\n", "line 3: time \"-1\" is not"),
        (b"time,name\n1,a\n1e300,a\n", "line 3: time \"1e300\" is not"),
        (b"time,name\n1,a\n2,a\n\xff\xfe,a\n", "line 4 is not UTF-8 text"),
        (b"time,name\n1,a\n2\n", "line 3 has 1 values, the header 2"),
        (b"minute,count\n0,-5\n", "line 2: count \"-5\" is not"),
        (b"minute,count\n0,99999999999999999999\n", "line 2: count \"99999999999999999999\" is not"),
        (b"minute,count\n0,1.5\n", "line 2: count \"1.5\" is not"),
        (b"a,b\n0,1\n", "line 1: no column for the minute"),
        (b"\0\0\0\0", "frame 1 at byte 0: the stream ends within it"),
        (b"\x1f\x8b\x08\x00\x00", "line 1 is not UTF-8 text"),
    ] {
        let (ok, error) = replay_input(&[], bad);
        let shown = String::from_utf8_lossy(bad);
        assert!(!ok && error.starts_with("reveille: ") && error.contains(told), "{shown:?}: {error}");
        assert!(!error.contains("panicked"), "{shown:?}: {error}");
    }
    let place = Place::new();
    let error = replay(&place, &["/nonexistent.csv"]).unwrap_err();
    assert!(error.contains("/nonexistent.csv: No such file"), "{error}");
    let error = replay(&place, &[&place.path("")]).unwrap_err();
    assert!(error.contains("no state directory of a daemon with a history"), "{error}");
    // Numbers at the edge of what is taken.
    let edge = b"minute,count\n0,1000000000\n999999999999,1000000000\n1000000000000,1\n";
    let (ok, told) = replay_input(&["--json"], edge);
    assert!(ok && told.contains("\"requests\": 2000000001"), "{told}");
}

// --- dnstap ----------------------------------------------------------------------------------------------------------

/// A question for the A record of a name.
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// A file with one message for each type, name and second.
fn dnstap(messages: &[(MessageType, &str, u64)]) -> Vec<u8> {
    let content_type = b"protobuf:dnstap.Dnstap";
    let mut file = vec![0, 0, 0, 0, 0, 0, 0, 34, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 22];
    file.extend(content_type);
    for (kind, name, second) in messages {
        let packet = question(name);
        let message = Message {
            kind: Some(*kind),
            query_address: Some("192.0.2.7".parse().unwrap()),
            query_time: Some(Timestamp::from_ms(second * 1_000)),
            query_message: &packet,
            ..Message::default()
        };
        let mut payload = Vec::new();
        Dnstap { message, ..Dnstap::default() }.encode(&mut payload);
        file.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        file.extend(payload);
    }
    file.extend([0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3]);
    file
}

#[test]
fn of_a_dnstap_file_counts_what_the_daemon_would_count() {
    let mut messages = Vec::new();
    for minute in 0..30 {
        let at = 1_700_000_000 + minute * 60;
        messages.push((MessageType::ClientQuery, "web.vm.test", at));
        messages.push((MessageType::ClientResponse, "web.vm.test", at));
        messages.push((MessageType::AuthQuery, "DB.vm.test", at + 7));
        messages.push((MessageType::ResolverQuery, "web.vm.test", at));
        messages.push((MessageType::ClientQuery, "www.example.org", at));
    }
    let place = Place::new();
    let (path, whole) = (place.path("dns.fstrm"), dnstap(&messages));
    fs::write(&path, &whole).unwrap();
    let report = json(&place, &[&path, "--zone", "vm.test"]);
    let source = &report["traces"][0];
    assert_eq!((&source["format"], &source["arrivals"]), (&"dnstap".into(), &60.into()));
    let names: Vec<&String> = report["details"][0]["by_name"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["db.vm.test", "web.vm.test"]);
    let left_out = source["left_out"].to_string();
    for part in ["30 messages of type resolver_query", "30 questions for names in other zones"] {
        assert!(left_out.contains(part), "{part} in {left_out}");
    }
    assert_eq!(json(&place, &[&path])["names"], 3);
    assert_eq!(json(&place, &[&path, "--message", "resolver_query"])["requests"], 30);
    // Nothing that counts: what there is instead.
    let error = replay(&place, &[&path, "--message", "tool_query"]).unwrap_err();
    assert!(
        error.contains("60 messages of type client_query, which count with --message client_query"),
        "{error}"
    );
    // Cut within a frame, and a frame that holds something else.
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let error = replay(&place, &[&path]).unwrap_err();
    assert!(error.contains("dns.fstrm: frame 151 at byte ") && error.contains("ends within it"), "{error}");
    let mut odd = whole;
    odd[46] = 0xff;
    fs::write(&path, &odd).unwrap();
    let left_out = json(&place, &[&path])["traces"][0]["left_out"].to_string();
    assert!(
        left_out.contains("1 frames that hold no dnstap message, the first: frame 2 at byte 42"),
        "{left_out}"
    );
}

// --- History ---------------------------------------------------------------------------------------------------------

/// Arrivals of two hours ago until now, a batch each minute in which there is one.
fn seed(dir: &Path, now_s: u64) {
    let (history, _) = History::open(dir, Limits::default()).unwrap();
    let kinds = KindSet::NONE.with(Kind::Queries).with(Kind::Arrivals);
    for minute in 0..120 {
        let at_s = now_s - 7_200 + minute * 60;
        let point = |name: &str, kind| Point { name: name.as_bytes().into(), kind, at_s, amount: 1 };
        let mut points = vec![point("web.vm.test", Kind::Queries)];
        if minute % 10 == 0 {
            points.push(point("web.vm.test", Kind::Arrivals));
        }
        let batch = Batch { now_s: at_s, seen: Some(Seen { at_s, kinds }), points };
        assert!(history.recorder().record(batch));
        assert!(history.recorder().flush());
    }
}

#[test]
fn the_history_of_a_daemon_is_replayed_while_it_runs() {
    let place = Place::new();
    place.config("[[zone]]\nname = \"vm.test\"\n");
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    fs::create_dir(place.path("state")).unwrap();
    seed(Path::new(&place.path("state/history")), now_s);
    let daemon = place.daemon();
    let report = json(&place, &[&place.path("state")]);
    let source = &report["traces"][0];
    assert_eq!((&source["format"], &source["arrivals"]), (&"history".into(), &12.into()), "{source}");
    assert_eq!((&report["names"], &report["requests"]), (&1.into(), &12.into()));
    assert_eq!(json(&place, &[&place.path("state/history")])["requests"], 12);
    // Nothing of the daemon was in its way.
    place.json(&["service", "list"]);
    daemon.signal("TERM");
    assert!(daemon.succeeds(), "{}", place.log());
    assert_eq!(json(&place, &[&place.path("state"), "--format", "history"])["requests"], 12);
}
