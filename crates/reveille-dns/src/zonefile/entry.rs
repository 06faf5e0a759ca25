//! Cutting a zone file into entries: a line, or what is kept together by parentheses or quotes.

/// One entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'t> {
    /// The line on which it begins, counted from 1.
    pub line: usize,
    /// Its text, comments and line ends within it included.
    pub text: &'t str,
    /// What is left open at its end.
    pub open: Option<&'static str>,
}

impl<'t> Entry<'t> {
    /// Whether it begins with white space: its owner is that of the entry before.
    pub fn is_indented(&self) -> bool {
        self.text.starts_with([' ', '\t'])
    }

    /// What follows the directive, up to white space or a comment; `None` if the entry is something else.
    pub fn directive(&self, name: &str) -> Option<&'t str> {
        let mut words = tokens(self.text).map(|token| token.text);
        words.next().filter(|word| word.eq_ignore_ascii_case(name))?;
        Some(words.next().unwrap_or_default())
    }
}

/// What a byte means to the cutting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Escaped,
    Quoted,
    QuotedEscaped,
    Comment,
}

impl Mode {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Plain, b'\\') => Self::Escaped,
            (Self::Plain, b'"') => Self::Quoted,
            (Self::Plain, b';') => Self::Comment,
            (Self::Quoted, b'\\') => Self::QuotedEscaped,
            (Self::Quoted, b'"') | (Self::Comment, b'\n') => Self::Plain,
            (Self::QuotedEscaped, _) => Self::Quoted,
            (Self::Escaped, _) => Self::Plain,
            (other, _) => other,
        }
    }
}

/// The entries of a file, without those that are empty.
pub(super) fn split(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = text;
    let mut line = 1;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let (length, open) = entry_end(rest);
            let (text, after) = rest.split_at(length);
            let entry = Entry { line, text: text.trim_end_matches(['\n', '\r']), open };
            line += text.bytes().filter(|&byte| byte == b'\n').count();
            rest = after;
            if tokens(text).next().is_some() {
                return Some(entry);
            }
        }
    })
}

/// Up to and with the first line end that is in no parentheses, and what is open there. A line end in quotes ends
/// the entry too: nobody means it, and a forgotten quote must not swallow the rest of the file.
fn entry_end(text: &str) -> (usize, Option<&'static str>) {
    const QUOTE: Option<&str> = Some("a quoted string is not closed on its line");
    let mut mode = Mode::Plain;
    let mut depth = 0usize;
    let mut extra = None;
    for (at, byte) in text.bytes().enumerate() {
        match (mode, byte) {
            (Mode::Plain, b'(') => depth += 1,
            (Mode::Plain, b')') if depth == 0 => extra = Some("a parenthesis is closed that was not opened"),
            (Mode::Plain, b')') => depth -= 1,
            (Mode::Quoted | Mode::QuotedEscaped, b'\n') => return (at + 1, QUOTE),
            (_, b'\n') if depth == 0 => return (at + 1, extra),
            _ => {}
        }
        mode = mode.after(byte);
    }
    let open = match mode {
        Mode::Quoted | Mode::QuotedEscaped => QUOTE,
        Mode::Escaped => Some("the file ends after a backslash"),
        Mode::Plain | Mode::Comment if depth > 0 => Some("a parenthesis is not closed"),
        Mode::Plain | Mode::Comment => extra,
    };
    (text.len(), open)
}

/// A word of an entry, outside comments; quoted strings are words too, with their quotes.
#[derive(Debug, Clone, Copy)]
struct Token<'t> {
    at: usize,
    text: &'t str,
}

fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut at = 0;
    let mut mode = Mode::Plain;
    std::iter::from_fn(move || {
        let bytes = text.as_bytes();
        let mut start = None;
        while let Some(&byte) = bytes.get(at) {
            let separates = match mode {
                Mode::Plain => matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' | b';'),
                Mode::Comment => true,
                Mode::Escaped | Mode::Quoted | Mode::QuotedEscaped => false,
            };
            if separates && start.is_some() {
                break;
            }
            if !separates && start.is_none() {
                start = Some(at);
            }
            mode = mode.after(byte);
            at += 1;
        }
        let start = start?;
        // Separators are ASCII, so both ends are character boundaries.
        Some(Token { at: start, text: text.get(start..at)? })
    })
}

/// Seconds of `3600` or `1h30m`; `None` if it is neither or too large.
pub(super) fn seconds(text: &str) -> Option<u32> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    if let Ok(plain) = text.parse() {
        return Some(plain);
    }
    let mut total = 0u32;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(unit_at);
        let unit = match tail.as_bytes().first()?.to_ascii_lowercase() {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u32>().ok()?.checked_mul(unit)?)?;
        rest = tail.get(1..)?;
    }
    Some(total)
}

/// Where names stand among the words of a record's data, counted from 0, for the types whose text is known.
fn names_in(rtype: &str) -> &'static [usize] {
    const NAMES: [(&str, &[usize]); 18] = [
        ("NS", &[0]),
        ("CNAME", &[0]),
        ("PTR", &[0]),
        ("MX", &[1]),
        ("SOA", &[0, 1]),
        ("SRV", &[3]),
        ("SVCB", &[1]),
        ("HTTPS", &[1]),
        ("NAPTR", &[5]),
        ("RP", &[0, 1]),
        ("MINFO", &[0, 1]),
        ("IPSECKEY", &[3]),
        ("DNAME", &[0]),
        ("MB", &[0]),
        ("MD", &[0]),
        ("MF", &[0]),
        ("MG", &[0]),
        ("MR", &[0]),
    ];
    let known = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(rtype));
    known.map_or(&[], |(_, places)| places)
}

/// A time, and how it is written in plain seconds; `None` if it is none.
fn in_seconds(word: Token<'_>) -> Option<(Token<'_>, String)> {
    Some((word, seconds(word.text)?.to_string()))
}

/// The entry's text as the scanner takes it: TTLs, and the times of a SOA, in plain seconds; `origin` for an `@`
/// that stands for a name in a record's data (RFC 1035 §5.1), as the scanner knows it as an owner only.
pub(super) fn with_plain_words(entry: &Entry<'_>, origin: &str) -> String {
    let mut words = tokens(entry.text).skip(usize::from(!entry.is_indented()));
    let mut changed: Vec<(Token<'_>, String)> = Vec::new();
    let mut rtype = "";
    for word in words.by_ref().take(3) {
        if let Some(time) = in_seconds(word) {
            changed.push(time);
        } else if !["IN", "CH", "HS"].iter().any(|class| word.text.eq_ignore_ascii_case(class)) {
            rtype = word.text;
            break;
        }
    }
    let (names, is_soa) = (names_in(rtype), rtype.eq_ignore_ascii_case("SOA"));
    let last = names.iter().max().map_or(0, |last| last + 1).max(if is_soa { 7 } else { 0 });
    for (index, word) in words.take(last).enumerate() {
        if names.contains(&index) && word.text == "@" {
            changed.push((word, origin.to_owned()));
        } else if is_soa && index >= 3 {
            // Behind primary, hostmaster and serial.
            changed.extend(in_seconds(word));
        }
    }
    let mut text = String::with_capacity(entry.text.len());
    let mut copied = 0;
    for (Token { at, text: word }, new) in changed {
        text.push_str(entry.text.get(copied..at).unwrap_or_default());
        text.push_str(&new);
        copied = at + word.len();
    }
    text.push_str(entry.text.get(copied..).unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_cut_where_they_end() {
        let text = "a A 1.2.3.4 ; (\n\n@ SOA x y (\n 1 ; ) \n 2)\n  TXT \"a;b(\" c\\;d\nlast TXT \"open\nnext A 1.2.3.4";
        let cut: Vec<(usize, &str)> = split(text).map(|entry| (entry.line, entry.text)).collect();
        assert_eq!(
            cut,
            [
                (1, "a A 1.2.3.4 ; ("),
                (3, "@ SOA x y (\n 1 ; ) \n 2)"),
                (6, "  TXT \"a;b(\" c\\;d"),
                (7, "last TXT \"open"),
                (8, "next A 1.2.3.4"),
            ]
        );
    }

    #[test]
    fn times_may_have_units() {
        let cases = [
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("1h30m", Some(5400)),
            ("2W", Some(1_209_600)),
            ("1d1", None),
            ("h", None),
            ("1x", None),
            ("", None),
            ("99999999w", None),
        ];
        for (text, expected) in cases {
            assert_eq!(seconds(text), expected, "{text}");
        }
        let plain = |text| with_plain_words(&Entry { line: 1, text, open: None }, "o.");
        assert_eq!(plain("1h 1h IN A 1.2.3.4"), "1h 3600 IN A 1.2.3.4");
        assert_eq!(plain(" IN 2m TXT 1h"), " IN 120 TXT 1h");
        assert_eq!(
            plain("@ SOA 1h. 1h. 7 (1h ; 5m\n 10m 1w\t60)"),
            "@ SOA 1h. 1h. 7 (3600 ; 5m\n 600 604800\t60)"
        );
    }

    #[test]
    fn the_origin_may_stand_wherever_a_name_does() {
        let plain = |text| with_plain_words(&Entry { line: 1, text, open: None }, "o.");
        for (text, expected) in [
            ("@ CNAME @", "@ CNAME o."),
            ("@ 1h IN SOA @ ( @ 1 1 1 1 1 )", "@ 3600 IN SOA o. ( o. 1 1 1 1 1 )"),
            (" mx 10 @ ; @", " mx 10 o. ; @"),
            ("a SRV 0 0 0 @", "a SRV 0 0 0 o."),
            ("a HTTPS 1 @ alpn=h2", "a HTTPS 1 o. alpn=h2"),
            ("a NAPTR 1 1 @ @ @ @", "a NAPTR 1 1 @ @ @ o."),
            ("a TXT @ \"@\"", "a TXT @ \"@\""),
            ("a CNAME \\@", "a CNAME \\@"),
            ("a CNAME \"@\"", "a CNAME \"@\""),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
