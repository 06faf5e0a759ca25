//! `reveille bench forecast` and `bench policy` on small data of the test's own.

use crate::place::Place;

/// M4's form: a row of names, then a series a line.
fn wide(names: &[&str], values: impl Fn(usize, usize) -> f64, count: usize) -> String {
    let head: Vec<String> = (1..=count + 1).map(|column| format!("\"V{column}\"")).collect();
    let mut lines = vec![head.join(",")];
    for (number, name) in names.iter().enumerate() {
        let cells: Vec<String> = (0..count).map(|at| format!("{:.1}", values(number, at))).collect();
        lines.push(format!("\"{name}\",{}", cells.join(",")));
    }
    lines.join("\n") + "\n"
}

/// A day's shape with a little that nobody can know.
fn value(number: usize, at: usize) -> f64 {
    let hour = at % 24;
    100.0 + 10.0 * number as f64 + 5.0 * hour.min(24 - hour) as f64 + (at * 7 % 5) as f64
}

#[test]
fn forecasts_are_measured_on_a_directory_of_data() {
    let place = Place::new();
    std::fs::create_dir(place.path("m4_hourly")).unwrap();
    place.write("m4_hourly/Hourly-train.csv", &wide(&["H1", "H2"], value, 240));
    place.write("m4_hourly/Hourly-test.csv", &wide(&["H1", "H2"], |number, at| value(number, at + 240), 48));
    let report = place.json(&["bench", "forecast", &place.path(""), "--m4", "--quick"]);
    for figure in ["m4_hourly_mase", "m4_hourly_smape", "m4_hourly_msis", "series_per_minute_per_core"] {
        assert!(report[figure].is_number(), "{figure} in {report}");
    }
    assert!(report["m4_hourly_mase"].as_f64().unwrap() < 2.0, "{report}");
    assert_eq!(report["m4_hourly"][0]["series"], 2);
    assert!(report["gap_bytes_per_name"].as_u64().unwrap() <= 400, "{report}");
    let text = place.run_once(&["bench", "forecast", &place.path(""), "--m4", "--quick"]).unwrap();
    assert!(text.contains("combination") && text.contains("Memory of a name"), "{text}");
    // Without --m4 all sets are wanted, and the first that is missing is named.
    let error = place.run_once(&["bench", "forecast", &place.path(""), "--quick"]).unwrap_err();
    assert!(error.contains("web_counts/nasa_1995-07_per_minute.csv: cannot be read"), "{error}");
    place.write("m4_hourly/Hourly-test.csv", "V1,V2\nH1,x\n");
    let error = place.run_once(&["bench", "forecast", &place.path(""), "--m4"]).unwrap_err();
    assert!(error.contains("m4_hourly/Hourly-test.csv:2: `x` is no number"), "{error}");
}

#[test]
fn policies_are_measured_on_a_directory_of_arrivals() {
    let place = Place::new();
    let error = place.run_once(&["bench", "policy", &place.path("")]).unwrap_err();
    assert!(error.contains("no CSV file with a column for the time and one for the name"), "{error}");
    std::fs::create_dir(place.path("arrivals")).unwrap();
    let lines: Vec<String> = (0..60).map(|ask| format!("{},web", 1_700_000_000 + ask * 900)).collect();
    place.write("arrivals/a.csv", &format!("time,name\n{}\n", lines.join("\n")));
    place.write("latency.csv", "timestamp,value\n1,2\n");
    let bench = place.json(&["bench", "policy", &place.path("")]);
    assert!(bench.get("cold_ratio_worst").is_some() && bench.get("delay_ratio_worst").is_some(), "{bench}");
    let trace = &bench["traces"][0];
    assert!(trace["file"].as_str().unwrap().ends_with("arrivals/a.csv"), "{trace}");
    let curves = trace["report"]["comparisons"][0]["curves"].as_array().unwrap();
    let policies: Vec<&str> = curves.iter().map(|curve| curve["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["fixed", "hybrid", "hybrid+arima", "reveille"]);
    let text = place.run_once(&["bench", "policy", &place.path("")]).unwrap();
    assert!(text.contains("a.csv") && text.contains("worst ratio of cold starts"), "{text}");
}
