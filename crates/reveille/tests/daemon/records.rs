//! Raw records: refused where this program cannot write them, and otherwise from a question or a log to files that others read.
//! The latter needs the feature `parquet`, which `make test` is built without: `make soak` runs it. No virtual machine is
//! started; the service has no image.

use crate::place::Place;

const ZONE: &str = "[[zone]]\nname = \"vm.test\"\n\
     [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n";

/// A config that records into a directory of the place.
fn config(place: &Place, more: &str) -> String {
    let url = format!("file://{}", place.path("depot"));
    format!(
        "[depot]\nurl = \"{url}\"\n[records]\nqueries = true\nrequests = true\nflush_ms = 1000\n{more}\n{ZONE}{}",
        crate::place::NEVER_GIVEN_UP
    )
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_program_that_cannot_write_them_refuses_to_be_asked_and_says_what_helps() {
    let place = Place::new();
    place.config(&config(&place, ""));
    for command in ["check", "serve"] {
        let said = place.run_once(&[command, "--config", &place.path("reveille.toml")]).unwrap_err();
        assert!(
            said.contains("records.queries = true") && said.contains("records.requests = true"),
            "{said}"
        );
        assert_eq!(said.matches("cargo build --release --features parquet").count(), 2, "{command}: {said}");
    }
}

#[cfg(feature = "parquet")]
mod written {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use reveille_api::Time;
    use reveille_core::model::Timestamp;

    use super::{Place, config};

    /// All files below it.
    fn files(root: &Path) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(root) else { return vec![] };
        let below = entries.map(|entry| entry.unwrap().path());
        below.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    fn now() -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
    }

    /// Sums of what pyarrow reads, where there is one.
    const PYTHON: &str = r#"
import sys, glob, collections, pyarrow.dataset as ds
read = lambda kind: ds.dataset(glob.glob(sys.argv[1] + "/kind=" + kind + "/*/*.parquet"), format="parquet").to_table().to_pylist()
queries, requests = read("query"), read("request")
names = collections.Counter((row["name"], row["type"], row["source"], row["client"], row["rcode"]) for row in queries)
assert names[("hello.vm.test", "A", "own", "127.0.0.0/24", 0)] == 20, names
assert names[("none.vm.test", "TXT", "own", "127.0.0.0/24", 3)] == 1, names
assert len(requests) == 200 and all(row["tags"] == ["eu"] and row["group"] == "staff" for row in requests), requests[0]
"#;

    #[test]
    fn what_is_asked_and_what_logs_tell_becomes_files_that_survive_a_kill() {
        let place = Place::new();
        place.config(&config(&place, "keep_days = 2"));
        // Of an earlier run, and of somebody else.
        let old = "depot/records/kind=query/date=2026-01-01/20260101T000000Z-0000000000000001-000001.parquet";
        let other = "depot/records/kind=query/date=2026-01-01/by-hand.parquet";
        std::fs::create_dir_all(Path::new(&place.path(old)).parent().unwrap()).unwrap();
        place.write(old, "x");
        place.write(other, "x");
        let daemon = place.daemon();
        place.until("what is old is deleted", || !Path::new(&place.path(old)).exists());
        assert!(Path::new(&place.path(other)).exists());
        std::fs::remove_file(place.path(other)).unwrap();

        for _ in 0..20 {
            place.dig(&["hello.vm.test", "A"]);
        }
        place.dig(&["NONE.vm.test", "TXT"]);
        let line = |n: u64| {
            let at = Time(Timestamp::from_ms(now().as_ms() - 1_000 - n));
            format!(
                "{{\"time\":\"{at}\",\"user\":\"ann\",\"group\":\"staff\",\"service\":\"hello.vm.test\",\"seconds\":1,\"tags\":[\"eu\"]}}\n"
            )
        };
        place.write("requests.log", &(0..200).map(line).collect::<String>());
        place.json(&["demand", "send", &place.path("requests.log")]);
        let counts = || place.json(&["demand", "show"])["records"].clone();
        place.until("all of it is written", || {
            let counts = counts();
            counts["query"]["written"] == 21 && counts["request"]["written"] == 200
        });
        assert_eq!(counts()["query"]["dropped"], 0);
        let text = place.run_once(&["demand", "show"]).unwrap();
        assert!(text.contains("records of queries") && text.contains("written 21"), "{text}");

        // Killed while it writes: what is there is whole.
        for _ in 0..5 {
            place.dig(&["hello.vm.test", "AAAA"]);
        }
        daemon.kill();
        let whole = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1")
        };
        let written = files(Path::new(&place.path("depot/records")));
        assert!(written.len() >= 2 && written.iter().all(whole), "{written:?}");
        if let Some(python) = std::env::var_os("REVEILLE_PYARROW") {
            let run =
                Command::new(python).args(["-c", PYTHON, &place.path("depot/records")]).output().unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        }

        // The next run goes on beside them, and its graceful end writes what is buffered.
        let daemon = place.daemon();
        place.dig(&["hello.vm.test", "A"]);
        place.until("it is taken", || counts()["query"]["taken"] == 1);
        daemon.signal("TERM");
        assert!(daemon.succeeds(), "{}", place.log());
        let after = files(Path::new(&place.path("depot/records")));
        assert!(after.len() > written.len() && written.iter().all(|path| after.contains(path)), "{after:?}");
    }
}
