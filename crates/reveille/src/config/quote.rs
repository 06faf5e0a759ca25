//! What of a config file is shown in its faults: enough to find the place, and nothing that may be a secret.
//!
//! Secrets do not belong into the config, so whoever writes one into it gets a fault. That fault goes to terminals,
//! to logs and over the API.

use toml::Value;

/// Longest piece of a config that is quoted.
const QUOTED_CHARS_MAX: usize = 80;
/// Stands where a secret may.
const NOT_SHOWN: &str = "(not shown)";
/// Words in the names of secrets.
const SECRET_WORDS: [&str; 4] = ["secret", "password", "passphrase", "token"];
/// Of `[[key]]`, what is no secret.
const PUBLIC_OF_KEY: [&str; 3] = ["name", "algorithm", "file"];

/// The value at `place`, such as `key "k1".file`, in short.
pub fn value(place: &str, value: &Value) -> String {
    if may_be_secret(place) { NOT_SHOWN.to_owned() } else { short(&without_secrets(value).to_string()) }
}

/// What the reader of TOML says, with the line that it means.
pub fn syntax(text: &str, error: &toml::de::Error) -> String {
    let said = short(error.message().trim());
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return said };
    let number = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(begin..).unwrap_or_default().chars().count() + 1;
    let line = text.get(begin..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    // A line may go on from one that names a secret: then only its place is told.
    let shown = if may_be_secret_line(before, line) { NOT_SHOWN.to_owned() } else { short(line) };
    format!("line {number}, column {column}: {said}\n  {shown}")
}

fn may_be_secret(place: &str) -> bool {
    let name = place.rsplit('.').next().unwrap_or(place);
    let is_key = place == "key" || place.starts_with("key[") || place.starts_with("key \"");
    names_a_secret(name) || (is_key && !PUBLIC_OF_KEY.contains(&name))
}

/// Whether a value under that name may be a secret; where one lies is none.
fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word)) && !name.ends_with("file")
}

fn may_be_secret_line(before: &str, line: &str) -> bool {
    let has_word = |text: &str| {
        let text = text.to_ascii_lowercase();
        SECRET_WORDS.iter().any(|word| text.contains(word))
    };
    let section = before.lines().rev().find(|line| line.trim_start().starts_with('['));
    let public = |name: &str| line.split('=').next().is_some_and(|key| key.trim() == name);
    has_word(line)
        || section.is_some_and(|section| section.trim_start().starts_with("[[key"))
            && !PUBLIC_OF_KEY.iter().any(|name| public(name))
}

fn without_secrets(value: &Value) -> Value {
    match value {
        Value::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, value)| {
                    let value =
                        if names_a_secret(name) { Value::from(NOT_SHOWN) } else { without_secrets(value) };
                    (name.clone(), value)
                })
                .collect(),
        ),
        Value::Array(values) => Value::Array(values.iter().map(without_secrets).collect()),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            value.clone()
        }
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= QUOTED_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(QUOTED_CHARS_MAX).chain("…".chars()).collect()
}
