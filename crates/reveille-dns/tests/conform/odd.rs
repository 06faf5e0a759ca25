//! Questions whose form is wrong.

use super::common::random::Random;
use super::questions::Asked;

/// What is wrong with a question's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Odd {
    /// QR is set: it is an answer.
    Answer,
    /// So many questions are announced; there is one.
    Announced(u16),
    /// Two questions.
    TwoQuestions,
    /// None, and none announced; an OPT may be there.
    NoQuestion,
    /// More records are announced than there are.
    RecordsMissing,
    /// Ends in the middle.
    Cut,
    /// Has bytes behind its end.
    Trailing,
    /// The name is or ends in a pointer.
    Pointer,
    /// The name has a label of a reserved type (RFC 6891 §5).
    LabelType,
    /// The name has 256 bytes or more.
    LongName,
    /// Two OPT records.
    TwoOpts,
    /// The OPT stands in the answer section.
    OptInAnswer,
    /// The OPT stands in the authority section.
    OptInAuthority,
    /// The OPT has an owner other than the root.
    OptOwner,
    /// An option says that it is longer than the OPT.
    OptionTooLong,
    /// The OPT ends within the code or length of an option.
    OptionCut,
    /// A record in the answer section.
    InAnswer,
    /// A record in the authority section.
    InAuthority,
    /// A record in the additional section, before the OPT.
    InAdditional,
    /// A record behind the OPT.
    BehindOpt,
    /// Twenty records in the additional section.
    ManyRecords,
    /// Less than a header.
    Stub,
}

const ALL: [Odd; 25] = [
    Odd::Answer,
    Odd::Announced(0),
    Odd::Announced(2),
    Odd::Announced(65_535),
    Odd::TwoQuestions,
    Odd::NoQuestion,
    Odd::NoQuestion,
    Odd::RecordsMissing,
    Odd::Cut,
    Odd::Trailing,
    Odd::Pointer,
    Odd::LabelType,
    Odd::LongName,
    Odd::TwoOpts,
    Odd::OptInAnswer,
    Odd::OptInAuthority,
    Odd::OptOwner,
    Odd::OptionTooLong,
    Odd::OptionCut,
    Odd::InAnswer,
    Odd::InAuthority,
    Odd::InAdditional,
    Odd::BehindOpt,
    Odd::ManyRecords,
    Odd::Stub,
];

/// `x. 0 IN A 0.0.0.0`.
const RECORD: &[u8] = b"\x01x\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00";

/// Where the counts of questions and of the sections' records stand.
const COUNTS: [usize; 4] = [5, 7, 9, 11];

/// Makes one thing wrong.
pub fn spoil(asked: &mut Asked, random: &mut Random) {
    let odd = *random.pick(&ALL);
    let header = asked.packet[..12].to_vec();
    let question = [asked.name.clone(), asked.packet[12 + asked.name.len()..][..4].to_vec()].concat();
    let opt = asked.edns.as_ref().map(super::questions::Edns::written);
    let some_opt = opt.clone().unwrap_or_else(|| b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00".to_vec());
    let has_opt = u8::from(opt.is_some());
    let opt = opt.unwrap_or_default();
    let question_tail = question[asked.name.len()..].to_vec();
    // Counts, and what follows the header.
    let (counts, body): ([u8; 4], Vec<u8>) = match odd {
        Odd::Answer | Odd::Announced(_) | Odd::RecordsMissing | Odd::Cut | Odd::Trailing | Odd::Stub => {
            ([1, 0, 0, has_opt], [question, opt].concat())
        }
        Odd::TwoQuestions => ([2, 0, 0, has_opt], [question.clone(), question, opt].concat()),
        Odd::NoQuestion => ([0, 0, 0, has_opt], opt),
        Odd::Pointer => {
            let pointer = *random.pick(&[[0xc0, 0], [0xc0, 12], [0xc0, 14], [0xff, 0xff], [0xc0, 4]]);
            let label: &[u8] = if random.percent(50) { b"\x01a" } else { b"" };
            ([1, 0, 0, has_opt], [label, &pointer, &question_tail, &opt].concat())
        }
        Odd::LabelType => {
            let kind = *random.pick(&[0x40, 0x41, 0x80, 0xbf]);
            ([1, 0, 0, has_opt], [&[kind], &question[..], &opt].concat())
        }
        Odd::LongName => {
            let name = [b"\x3f".repeat(64 * 4), vec![0]].concat();
            ([1, 0, 0, has_opt], [name, question_tail, opt].concat())
        }
        Odd::TwoOpts => ([1, 0, 0, 2], [question, some_opt.clone(), some_opt].concat()),
        Odd::OptInAnswer => ([1, 1, 0, 0], [question, some_opt].concat()),
        Odd::OptInAuthority => ([1, 0, 1, 0], [question, some_opt].concat()),
        Odd::OptOwner => ([1, 0, 0, 1], [question, b"\x01x".to_vec(), some_opt].concat()),
        Odd::OptionTooLong => {
            ([1, 0, 0, 1], [&question[..], &OPT_HEAD, b"\x00\x05\xfd\xe9\x00\x02\x00"].concat())
        }
        Odd::OptionCut => ([1, 0, 0, 1], [&question[..], &OPT_HEAD, b"\x00\x03\xfd\xe9\x00"].concat()),
        Odd::InAnswer => ([1, 1, 0, has_opt], [&question[..], RECORD, &opt].concat()),
        Odd::InAuthority => ([1, 0, 1, has_opt], [&question[..], RECORD, &opt].concat()),
        Odd::InAdditional => ([1, 0, 0, 1 + has_opt], [&question[..], RECORD, &opt].concat()),
        Odd::BehindOpt => ([1, 0, 0, 1 + has_opt], [&question[..], &opt, RECORD].concat()),
        Odd::ManyRecords => ([1, 0, 0, 20 + has_opt], [&question[..], &RECORD.repeat(20), &opt].concat()),
    };
    let mut packet = [header, body].concat();
    for (at, count) in COUNTS.into_iter().zip(counts) {
        packet[at] = count;
    }
    #[allow(clippy::wildcard_enum_match_arm, reason = "the others are wrong already")]
    match odd {
        Odd::Answer => packet[2] |= 0x80,
        Odd::Announced(count) => packet[4..6].copy_from_slice(&count.to_be_bytes()),
        Odd::RecordsMissing => packet[7 + 2 * random.below(3)] += 1 + random.byte() % 3,
        Odd::Cut => packet.truncate(12 + random.below(packet.len() - 12)),
        Odd::Trailing => {
            let count = 1 + random.below(20);
            packet.extend(random.bytes(count));
        }
        Odd::Stub => packet.truncate(random.below(12)),
        _ => {}
    }
    asked.packet = packet;
    asked.odd = Some(odd);
}

/// An OPT up to the length of its data.
const OPT_HEAD: [u8; 9] = *b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00";
