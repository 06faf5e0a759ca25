//! What who sends logs would miss. How many lines the long test has is in `REVEILLE_TEST_LOG_LINES`.

use std::collections::BTreeMap;

use reveille_core::forecast::profile::{LEVELS, Profiles};

use super::*;
use crate::Time;

/// Fields by name, with their values as JSON.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// 2026-11-22T12:00:00Z.
const NOW: Timestamp = Timestamp::from_ms(1_795_348_800_000);
const GOOD: &str =
    r#"{"time":"2026-11-21T01:17:05.123Z","user":"ann","service":"hello.vm.test","seconds":0.21}"#;

fn read(pieces: &[&[u8]]) -> (Vec<Result<Request, Fault>>, Tally) {
    let (mut reader, mut found) = (Reader::new(NOW), Vec::new());
    let mut take = |line| found.push(line);
    pieces.iter().for_each(|piece| reader.push(piece, &mut take));
    let tally = reader.finish(&mut take);
    (found, tally)
}

/// The fault of a line with these fields, which take the place of those of a good one; an empty value leaves it out.
fn fault_of(fields: Fields<'_>) -> Fault {
    let mut all = BTreeMap::from([
        ("time", r#""2026-11-21T01:17:05.123Z""#),
        ("user", r#""ann""#),
        ("service", r#""hello.vm.test""#),
        ("seconds", "0.21"),
    ]);
    all.extend(fields.iter().copied());
    let fields: Vec<String> = all
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    let line = format!("{{{}}}", fields.join(","));
    let (mut found, tally) = read(&[GOOD.as_bytes(), b"\n", line.as_bytes()]);
    assert_eq!((tally.accepted, tally.refused), (1, 1), "{line}: {found:?}");
    let fault = found.pop().unwrap().unwrap_err();
    assert_eq!(fault.line, 2);
    fault
}

#[test]
fn a_line_says_all_of_a_request() {
    let line = concat!(
        r#"{"time":"2026-11-22T02:17:05.1239+01:00","user":"ann","group":"staff","service":"hello.vm.test","#,
        r#""runtime":"node22","seconds":3,"cpu_seconds":0.05,"memory_bytes":73400320,"io_bytes":null,"#,
        r#""tags":["eu","batch"]}"#
    );
    let (mut found, tally) = read(&[line.as_bytes()]);
    assert_eq!(tally, Tally { accepted: 1, refused: 0, blank: 0 });
    let expected = Request {
        at: Timestamp::from_ms(1_795_310_225_123),
        user: "ann".into(),
        group: Some("staff".into()),
        service: "hello.vm.test".into(),
        runtime: Some("node22".into()),
        seconds: 3.0,
        cpu_seconds: Some(0.05),
        memory_bytes: Some(73_400_320),
        io_bytes: None,
        tags: Box::new(["eu".into(), "batch".into()]),
    };
    assert_eq!(found.pop().unwrap().unwrap(), expected);
}

#[test]
fn times_are_read_as_programs_write_them() {
    let at = |text: &str| {
        let (mut found, _) = read(&[GOOD.replace("2026-11-21T01:17:05.123Z", text).as_bytes()]);
        found.pop().unwrap().map(|request| Time::from(request.at).to_string())
    };
    for (text, same) in [
        ("2026-11-21T01:17:05Z", "2026-11-21T01:17:05.000Z"),
        ("2026-11-21t01:17:05.5z", "2026-11-21T01:17:05.500Z"),
        ("2026-11-21 01:17:05.123456789Z", "2026-11-21T01:17:05.123Z"),
        ("2026-11-21T01:17:05.12-23:30", "2026-11-22T00:47:05.120Z"),
        ("2024-02-29T23:59:59+05:45", "2024-02-29T18:14:59.000Z"),
        // Ten minutes ahead are a clock that differs.
        ("2026-11-22T12:10:00Z", "2026-11-22T12:10:00.000Z"),
    ] {
        assert_eq!(at(text).unwrap(), same);
    }
    for text in [
        "",
        "yesterday",
        "2026-11-21",
        "2026-11-21T01:17:05",
        "2026-11-21T01:17:05.Z",
        "2026-11-21T01:17:05.1234567890Z",
        "2026-11-21T24:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-11-21T01:17:60Z",
        "2026-11-21T01:17:05+1:00",
        "2026-11-21T01:17:05+0100",
        "2026-11-21T01:17:05+24:00",
        "2026-11-21T01:17:05*01:00",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+01:00",
        "2026-11-21T01:17:05Z ",
        "２026-11-21T01:17:05Z",
        "2026-11-21T01:17:05.123Zé",
    ] {
        let fault = at(text).unwrap_err();
        assert!(fault.field.as_deref() == Some("time") && fault.what.contains("RFC 3339"), "{text}: {fault}");
    }
    let early = at("2026-11-22T12:10:00.001Z").unwrap_err().to_string();
    assert!(early.contains("is later than now; expected a time that is at most 600 s ahead"), "{early}");
}

#[test]
fn each_fault_names_its_place_and_what_is_expected() {
    let long = format!("\"{}\"", "x".repeat(NAME_BYTES_MAX + 1));
    let tags = format!("[{}]", vec!["\"a\""; TAGS_MAX + 1].join(","));
    let cases: [(Fields<'_>, Option<&str>, &str); 17] = [
        (&[("user", "")], None, "missing field `user`"),
        (&[("user", "17")], Some("user"), "expected a text of 1 to 128 bytes"),
        (&[("user", "\"\"")], Some("user"), "invalid length 0, expected a text of 1 to 128 bytes"),
        (&[("group", &long)], Some("group"), "invalid length 129, expected a text of 1 to 128 bytes"),
        (&[("runtime", "\"a\\u001b[2J\"")], Some("runtime"), "without control characters"),
        (&[("seconds", "-1")], Some("seconds"), "expected a number of seconds from 0 to 1000000000"),
        (
            &[("seconds", "\"0.2\"")],
            Some("seconds"),
            "invalid type: string \"0.2\", expected a number of seconds",
        ),
        (&[("seconds", "null")], Some("seconds"), "expected a number of seconds"),
        (&[("cpu_seconds", "1e10")], Some("cpu_seconds"), "expected a number of seconds"),
        (&[("memory_bytes", "1.5")], Some("memory_bytes"), "expected a whole number of bytes"),
        (
            &[("memory_bytes", "-1")],
            Some("memory_bytes"),
            "integer `-1`, expected a whole number of bytes from 0",
        ),
        (&[("io_bytes", "1000000000000001")], Some("io_bytes"), "expected a whole number of bytes"),
        (&[("tags", &tags)], Some("tags"), "invalid length 17, expected a list of at most 16 texts"),
        (&[("tags", "[\"a\",2]")], Some("tags[1]"), "expected a text of 1 to 64 bytes"),
        (
            &[("memroy_bytes", "1")],
            Some("memroy_bytes"),
            "unknown field `memroy_bytes`, expected one of `time`",
        ),
        (&[("seconds", "1e999")], Some("seconds"), "no JSON: number out of range"),
        (&[("seconds", "0.2,\"seconds\":1")], None, "duplicate field `seconds`"),
    ];
    for (fields, field, what) in cases {
        let fault = fault_of(fields);
        assert!(fault.what.contains(what), "{fields:?}: {fault}");
        assert!(field.is_none() || fault.field.as_deref() == field, "{fields:?}: {fault}");
        assert!(fault.column.is_some(), "{fields:?}: {fault}");
        assert!(!fault.what.contains(" at line "), "{fields:?}: {fault}");
    }
    let shown = fault_of(&[("seconds", "\"0.2\"")]).to_string();
    assert!(shown.starts_with("line 2, column ") && shown.contains(", `seconds`: invalid type"), "{shown}");
}

#[test]
fn what_is_no_object_is_told_as_such() {
    for (line, what) in [
        ("[1,2,3,4]", "expected one line that begins with `{`"),
        ("17", "expected one line that begins with `{`"),
        ("{", "no JSON: EOF"),
        (&GOOD[..50], "no JSON: EOF"),
        ("{\"time\":}", "no JSON: expected value"),
    ] {
        let (found, tally) = read(&[line.as_bytes()]);
        assert_eq!(tally.refused, 1);
        let fault = found[0].as_ref().unwrap_err();
        assert!(fault.what.contains(what), "{line}: {fault}");
    }
    let twice = format!("{GOOD}{GOOD}");
    let (found, _) = read(&[twice.as_bytes()]);
    let fault = found[0].as_ref().unwrap_err();
    assert!(fault.what.contains("trailing characters"), "{fault}");
    assert_eq!(fault.column, Some(GOOD.len() as u64 + 1));
    // Bytes that are no text.
    let mut damaged = GOOD.as_bytes().to_vec();
    damaged[45] = 0xff;
    let (found, _) = read(&[&damaged]);
    assert!(found[0].as_ref().unwrap_err().what.contains("invalid unicode"), "{found:?}");
    // What is quoted is short.
    let noise = format!("{{\"\\u001b[2J{}\":1}}", "n".repeat(2_000));
    let (found, _) = read(&[noise.as_bytes()]);
    let fault = found[0].as_ref().unwrap_err();
    let field = fault.field.as_ref().unwrap();
    assert!(fault.what.len() <= FAULT_BYTES_MAX && field.len() <= FIELD_BYTES_MAX, "{fault}");
    assert!(!format!("{fault}").contains(char::is_control), "{fault:?}");
}

#[test]
fn a_line_that_is_too_long_is_refused_once_and_not_kept() {
    let long = vec![b'x'; 100];
    let (mut reader, mut found) = (Reader::new(NOW), Vec::new());
    reader.push(format!("{GOOD}\n").as_bytes(), &mut |line| found.push(line));
    for _ in 0..10_000 {
        reader.push(&long, &mut |line| found.push(line));
        assert!(reader.begun.capacity() <= 2 * LINE_BYTES_MAX);
    }
    reader.push(format!("\n{GOOD}\n").as_bytes(), &mut |line| found.push(line));
    // In one piece, too; and one that is as long as may be.
    let piece = [vec![b'x'; LINE_BYTES_MAX + 1], b"\n".to_vec(), GOOD.as_bytes().to_vec()].concat();
    reader.push(&piece, &mut |line| found.push(line));
    let most = format!("{}\n", " ".repeat(LINE_BYTES_MAX - GOOD.len()));
    reader.push(most.as_bytes(), &mut |line| found.push(line));
    let tally = reader.finish(&mut |line| found.push(line));
    assert_eq!(tally, Tally { accepted: 3, refused: 2, blank: 0 });
    let lines: Vec<u64> = found.iter().filter_map(|line| Some(line.as_ref().err()?.line)).collect();
    assert_eq!(lines, [2, 4]);
    assert!(found[1].as_ref().unwrap_err().to_string().contains("too long; expected at most 16384 bytes"));
}

#[test]
fn it_does_not_matter_how_the_log_is_cut() {
    let log = format!("\u{feff}{GOOD}\r\n\n   \n{{\n{GOOD}\nnothing\n{GOOD}");
    let (whole, tally) = read(&[log.as_bytes()]);
    assert_eq!(tally, Tally { accepted: 3, refused: 2, blank: 2 });
    let faults: Vec<u64> = whole.iter().filter_map(|line| Some(line.as_ref().err()?.line)).collect();
    assert_eq!(faults, [4, 6]);
    for size in [1, 2, 3, 7, 64] {
        let pieces: Vec<&[u8]> = log.as_bytes().chunks(size).collect();
        assert_eq!(read(&pieces), (whole.clone(), tally));
    }
    assert_eq!(read(&[]), (Vec::new(), Tally::default()));
}

/// Numbers that look random and are the same each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u32) -> usize {
        usize::try_from(self.next() % u64::from(limit)).unwrap()
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}

#[test]
fn no_bytes_do_harm() {
    let mut dice = Dice(11);
    for _ in 0..300 {
        let mut log = format!("{GOOD}\n{GOOD}\n{GOOD}").into_bytes();
        for _ in 0..8 {
            let at = dice.below(u32::try_from(log.len()).unwrap());
            log[at] = u8::try_from(dice.below(256)).unwrap();
        }
        let lines = log.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
        let (found, tally) = read(&log.chunks(5).collect::<Vec<_>>());
        assert_eq!((found.len(), tally.accepted + tally.refused), (lines, lines as u64));
    }
}

/// How the line with that number looks: each hundredth is damaged, each time in another way.
fn line(number: u64, dice: &mut Dice) -> Vec<u8> {
    let user = number % 20;
    // One request in two seconds, over as many days as it takes.
    let at = Time(Timestamp::from_ms(1_700_000_000_000 + number * 2_000));
    let (slow, work) = (1.0 + user as f64, dice.exponential());
    let memory = 1_000_000.0 * (2.0 + dice.uniform()) * slow;
    let good = format!(
        "{{\"time\":\"{at}\",\"user\":\"user-{user}\",\"group\":\"group-{}\",\"service\":\"hello.vm.test\",\
         \"runtime\":\"{}\",\"seconds\":{},\"cpu_seconds\":{},\"memory_bytes\":{},\"io_bytes\":{},\"tags\":[\"eu\"]}}",
        user % 3,
        if dice.uniform() < 0.7 { "node22" } else { "python3.12" },
        slow * work,
        slow * work * (0.5 + 0.3 * dice.uniform()),
        memory.round(),
        (dice.exponential() * 1e6).round(),
    );
    if number % 100 != 99 {
        return good.into_bytes();
    }
    match number / 100 % 8 {
        0 => good[..good.len() / 2].into(),
        1 => good.replace("\"seconds\":", "\"seconds\":-").into(),
        2 => good.replace("\"user\":\"user-", "\"user\":\"").replace("\"user\":\"19\"", "\"user\":19").into(),
        3 => good.replace("\"service\"", "\"sevrice\"").into(),
        4 => [good.as_bytes(), &[b' '; LINE_BYTES_MAX]].concat(),
        5 => good.bytes().map(|byte| if byte == b'n' { 0xff } else { byte }).collect(),
        6 => good.replace("[\"eu\"]", "\"eu\"").into(),
        _ => good.replace('T', "?").into(),
    }
}

#[test]
fn a_long_log_with_damage_is_counted_to_the_line_and_makes_profiles() {
    let lines =
        std::env::var("REVEILLE_TEST_LOG_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40_000);
    let (mut dice, mut cuts) = (Dice(1), Dice(2));
    let mut reader = Reader::new(NOW);
    let (mut profiles, mut faulty, mut good) = (Profiles::default(), Vec::new(), 0_u64);
    let mut take = |line: Result<Request, Fault>| match line {
        Ok(request) => {
            good += 1;
            profiles.take(&request);
        }
        Err(fault) => {
            assert!(fault.what.contains("expected") || fault.what.contains("no JSON"), "{fault}");
            faulty.push(fault.line);
        }
    };
    let mut log = Vec::new();
    for number in 0..lines {
        log.extend_from_slice(&line(number, &mut dice));
        log.push(b'\n');
        // Pieces of any size, as a connection brings them.
        if log.len() > 200_000 || number + 1 == lines {
            for piece in log.chunks(1 + cuts.below(9_000)) {
                reader.push(piece, &mut take);
            }
            log.clear();
        }
    }
    let tally = reader.finish(&mut take);
    let expected: Vec<u64> = (1..=lines).filter(|number| number % 100 == 0).collect();
    assert_eq!(faulty, expected);
    assert_eq!((tally.accepted, tally.refused), (lines - lines / 100, lines / 100));
    assert_eq!(good, tally.accepted);
    check(&profiles, lines);
}

/// Each profile's intervals hold as often as they say, of what they had not seen.
fn check(profiles: &Profiles, lines: u64) {
    assert_eq!((profiles.users().count(), profiles.groups().count()), (20, 3));
    for (name, profile) in profiles.users().chain(profiles.groups()) {
        let told = profile.behaviour();
        for (what, summary) in [
            ("seconds", &told.seconds),
            ("cpu_seconds", &told.cpu_seconds),
            ("memory_bytes", &told.memory_bytes),
            ("io_bytes", &told.io_bytes),
        ] {
            assert_eq!(summary.intervals.len(), LEVELS.len());
            for interval in &summary.intervals {
                let off = interval.coverage.unwrap() - interval.nominal;
                assert!(off.abs() <= 0.03, "{name}, {what}: {interval:?}");
            }
        }
        assert!((told.runtimes[0].share - 0.7).abs() < 0.06, "{name}: {:?}", told.runtimes);
        assert!(
            (told.volume_per_hour.mean / (told.requests as f64 / (lines as f64 / 1_800.0)) - 1.0).abs() < 0.2
        );
    }
}
