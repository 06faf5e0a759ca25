//! Request logs from a file to the history and to profiles, with a daemon that is killed in between. How many lines the log
//! has is in `REVEILLE_TEST_LOG_LINES`. No virtual machine is started; the service has no image.

use std::fmt::Write as _;

use reveille_api::Time;
use reveille_core::model::Timestamp;
use serde_json::Value;

use crate::place::Place;

const CONFIG: &str = "[[zone]]\nname = \"vm.test\"\n\
     [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n";

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A log of the last twenty hours: each hundredth line is damaged, each tenth is of a service elsewhere.
fn log(lines: u64) -> String {
    let (now, span) = (now_ms(), 20 * 3_600_000);
    let mut log = String::new();
    for number in 0..lines {
        let at = Time(Timestamp::from_ms(now - span + number * (span / lines)));
        let service = if number % 10 == 0 { "www.example" } else { "hello.vm.test" };
        let end = if number % 100 == 99 { "" } else { "}" };
        writeln!(
            log,
            "{{\"time\":\"{at}\",\"user\":\"user {}\",\"group\":\"staff\",\"service\":\"{service}\",\"seconds\":{}{end}",
            number % 7,
            (number * 37 % 101) as f64 / 100.0,
        )
        .unwrap();
    }
    log
}

/// All that the history has of a day, as one sum.
fn sum(place: &Place, what: &str) -> u64 {
    let demand = place.json(&["demand", "service", "hello", "--hours", "24"]);
    demand["steps"].as_array().unwrap().iter().map(|step| step[what].as_u64().unwrap()).sum()
}

#[test]
fn a_log_with_damage_reaches_the_history_and_profiles_and_survives_a_kill() {
    let lines =
        std::env::var("REVEILLE_TEST_LOG_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(20_000);
    let place = Place::new();
    place.config(CONFIG);
    let daemon = place.daemon();
    place.write("requests.log", &log(lines));

    // What is wrong is named line by line, and the exit status says that something was.
    let output = place.command(&["--json", "demand", "send", &place.path("requests.log")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let damaged: Vec<u64> =
        report["faults"].as_array().unwrap().iter().map(|fault| fault["line"].as_u64().unwrap()).collect();
    assert_eq!(damaged, (1..=lines).filter(|line| line % 100 == 0).collect::<Vec<_>>());
    let (good, elsewhere) = (lines - lines / 100, lines / 10);
    for (what, count) in
        [("accepted", good), ("counted", good - elsewhere), ("elsewhere", elsewhere), ("dropped", 0)]
    {
        assert_eq!(report[what], count, "{what}: {}", report["refused"]);
    }
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("of {lines} lines {} were refused", lines / 100)), "{said}");

    // The history has it within a second or two, to the request.
    place.until("the history has it", || sum(&place, "requests") == good - elsewhere);
    assert!(sum(&place, "request_ms") > 0);
    // What was logged is not taken for what was seen to be in use, of which instances are made.
    assert_eq!((sum(&place, "arrivals"), sum(&place, "execution_ms")), (0, 0));
    let users = place.json(&["demand", "users"]);
    let requests = |of: &Value| of["requests"].as_u64().unwrap();
    assert_eq!(users.as_array().unwrap().len(), 7);
    let shown = place.json(&["demand", "show"]);
    let known = users.as_array().unwrap().iter().map(requests).sum::<u64>() + requests(&shown["other_users"]);
    assert_eq!(known, good);
    assert_eq!(shown["requests"]["refused"], lines / 100, "{shown}");
    for interval in
        place.json(&["demand", "user", "user 3"])["behaviour"]["seconds"]["intervals"].as_array().unwrap()
    {
        let off = interval["coverage"].as_f64().unwrap() - interval["nominal"].as_f64().unwrap();
        assert!(off.abs() <= 0.03, "{interval}");
    }
    let text = place.run_once(&["demand", "group", "staff"]).unwrap();
    assert!(text.contains("execution time") && text.contains("NEXT, 95 % (HELD)"), "{text}");

    // A kill loses nothing that was there to be seen.
    daemon.kill();
    let _daemon = place.daemon();
    assert_eq!(sum(&place, "requests"), good - elsewhere);
    assert_eq!(place.json(&["demand", "users"]), users);
    let refused = place.run_once(&["demand", "user", "nobody"]).unwrap_err();
    assert!(refused.contains("there is no profile of nobody among the users"), "{refused}");
}

#[test]
fn what_has_no_place_in_the_history_is_counted_and_told() {
    let place = Place::new();
    place.config(CONFIG);
    let _daemon = place.daemon();
    let line = |at: u64| {
        let at = Time(Timestamp::from_ms(at));
        format!("{{\"time\":\"{at}\",\"user\":\"ann\",\"service\":\"hello.vm.test\",\"seconds\":1}}\n")
    };
    let now = now_ms();
    place.write("old.log", &(line(now - 30 * 86_400_000) + &line(now - 5_000)));
    let sent = place.json(&["demand", "send", &place.path("old.log")]);
    assert_eq!((&sent["accepted"], &sent["too_old"], &sent["counted"]), (&2.into(), &1.into(), &1.into()));
    place.until("the younger one is there", || sum(&place, "requests") == 1);
    let metrics = place.json(&["demand", "show"]);
    assert_eq!((&metrics["requests"]["too_old"], &metrics["history"]["late"]), (&1.into(), &0.into()));
}

#[test]
fn a_packed_log_is_sent_as_it_is_and_its_faults_are_named_by_their_lines() {
    let place = Place::new();
    place.config(CONFIG);
    let _daemon = place.daemon();
    place.write("requests.log", &log(5_000));
    let packed = std::process::Command::new("gzip").arg(place.path("requests.log")).status().unwrap();
    assert!(packed.success());
    let file = place.path("requests.log.gz");
    let output = place.command(&["--json", "demand", "send", &file]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["accepted"], &report["counted"]), (&4_950.into(), &4_450.into()));
    let lines = report["faults"].as_array().unwrap().iter().map(|fault| fault["line"].as_u64().unwrap());
    assert!(lines.eq((1..=50).map(|line| line * 100)));

    // Cut within: what was read counts, and how far that was is said.
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let said = place.run_once(&["demand", "send", &file]).unwrap_err();
    assert!(said.contains("gzip stream is damaged") && said.contains("of its lines 2"), "{said}");
}
