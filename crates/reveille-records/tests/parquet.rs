//! Files as others read them: by the reader of the `parquet` crate, and by pyarrow where `REVEILLE_PYARROW` names a Python
//! that has it.

#![cfg(feature = "parquet")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what failed by failing"
)]

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use reveille_core::model::Timestamp;
use reveille_records::{Client, QueryRow, RequestRow, Source, parquet};

/// 2026-11-23T06:50:47.000Z.
const NOW_MS: u64 = 1_795_416_647_000;

fn queries(count: u64) -> Vec<QueryRow> {
    let client = |n: u64| match n % 3 {
        0 => None,
        1 => Some(Client::Network("192.0.2.0".parse().unwrap())),
        _ => Some(Client::Hash(n)),
    };
    let row = |n: u64| QueryRow {
        at: Timestamp::from_ms(NOW_MS + n),
        name: format!("s{}.vm.test", n % 50).into(),
        qtype: if n % 2 == 0 { "A" } else { "AAAA" }.into(),
        client: client(n),
        source: if n % 10 == 0 { Source::Dnstap } else { Source::Own },
        rcode: (n % 10 != 0).then_some(u16::try_from(n % 4).unwrap()),
    };
    (0..count).map(row).collect()
}

fn requests() -> Vec<RequestRow> {
    let bare = RequestRow {
        at: Timestamp::from_ms(NOW_MS),
        user: "änn".into(),
        group: None,
        service: "hello.vm.test".into(),
        runtime: None,
        seconds: 0.25,
        cpu_seconds: None,
        memory_bytes: None,
        io_bytes: None,
        tags: [].into(),
    };
    let full = RequestRow {
        group: Some("staff".into()),
        runtime: Some("node22".into()),
        cpu_seconds: Some(0.125),
        memory_bytes: Some(1_000_000_000_000_000),
        io_bytes: Some(0),
        tags: ["eu".into(), "batch".into()].into(),
        ..bare.clone()
    };
    let one = RequestRow { tags: ["eu".into()].into(), ..bare.clone() };
    vec![bare, full, one]
}

/// The rows of a file as JSON, one by one.
fn rows(file: Vec<u8>) -> Vec<String> {
    let reader = SerializedFileReader::new(Bytes::from(file)).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect()
}

#[test]
fn what_was_written_is_read_row_by_row() {
    let form = parquet().unwrap();
    let read = rows(form.queries(&queries(30_000)).unwrap());
    assert_eq!(read.len(), 30_000);
    assert_eq!(
        read[0],
        "{time: 2026-11-23 06:50:47.000 +00:00, name: \"s0.vm.test\", type: \"A\", client: null, source: \"dnstap\", rcode: null}"
    );
    assert_eq!(
        read[29_999],
        "{time: 2026-11-23 06:51:16.999 +00:00, name: \"s49.vm.test\", type: \"AAAA\", client: \"000000000000752f\", source: \"own\", rcode: 3}"
    );
    let read = rows(form.requests(&requests()).unwrap());
    let tags = ["tags: []}", "tags: [\"eu\", \"batch\"]}", "tags: [\"eu\"]}"];
    assert!(read.iter().zip(tags).all(|(row, tags)| row.ends_with(tags)), "{read:?}");
    assert!(
        read[0].contains("user: \"änn\", group: null") && read[1].contains("cpu_seconds: 0.125"),
        "{read:?}"
    );
    assert_eq!(rows(form.queries(&[]).unwrap()), [] as [&str; 0]);
}

#[test]
fn a_file_is_a_tenth_of_its_rows() {
    let (form, queries) = (parquet().unwrap(), queries(30_000));
    let file = form.queries(&queries).unwrap();
    // 10 columns of text and numbers would be some 60 bytes a row.
    assert!(file.len() < 30_000 * 60 / 10, "{} bytes", file.len());
}

/// What pyarrow reads of a directory, with the partition columns of its paths.
const PYTHON: &str = r#"
import sys, pyarrow.dataset as ds, pyarrow.compute as pc
root = sys.argv[1]
queries = ds.dataset(root + "/kind=query", format="parquet", partitioning="hive").to_table()
assert queries.num_rows == 30000, queries.num_rows
assert str(queries.schema.field("time").type) == "timestamp[ms, tz=UTC]", queries.schema
assert queries["date"].unique().to_pylist() == ["2026-11-23"], queries["date"].unique()
row = queries.sort_by("time").slice(29999).to_pylist()[0]
assert row["time"].isoformat() == "2026-11-23T06:51:16.999000+00:00", row
assert (row["name"], row["type"], row["client"], row["source"], row["rcode"]) == ("s49.vm.test", "AAAA", "000000000000752f", "own", 3), row
assert queries.filter(pc.field("source") == "dnstap").column("rcode").null_count == 3000
requests = ds.dataset(root + "/kind=request", format="parquet", partitioning="hive").to_table().to_pylist()
assert [row["tags"] for row in requests] == [[], ["eu", "batch"], ["eu"]], requests
assert (requests[0]["user"], requests[0]["group"], requests[1]["memory_bytes"]) == ("änn", None, 10**15), requests
print("pyarrow reads it")
"#;

#[test]
fn pyarrow_reads_a_directory_of_files() {
    let Some(python) = std::env::var_os("REVEILLE_PYARROW") else {
        eprintln!("not run: REVEILLE_PYARROW names no Python with pyarrow");
        return;
    };
    let (temp, form) = (tempfile::tempdir().unwrap(), parquet().unwrap());
    let write = |path: &str, file: Vec<u8>| {
        let path = temp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, file).unwrap();
    };
    let all = queries(30_000);
    for (number, some) in all.chunks(20_000).enumerate() {
        write(&format!("kind=query/date=2026-11-23/{number}.parquet"), form.queries(some).unwrap());
    }
    write("kind=request/date=2026-11-23/0.parquet", form.requests(&requests()).unwrap());
    let run = Command::new(python).args(["-c", PYTHON]).arg(temp.path()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
