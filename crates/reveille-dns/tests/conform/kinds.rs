//! The kinds of differences that are argued in `docs/conformance.md`, each under its name there.
//!
//! A kind does not wave a difference through: it says from the question and from what Knot answers what Reveille must
//! answer, and the two are compared again.

use reveille_dns::wire::KEEPALIVE_MS;

use super::common::message::{self, AA, Message, Opt, RA, Rr};
use super::odd::Odd;
use super::packing::packing;
use super::reply::{Case, Reply, chain_from, is_at_or_below};

/// Both answers on their way to be equal: what is explained of a difference is taken out.
pub struct Pair {
    pub ours: Reply,
    /// Over UDP, what Knot would have said had there been room.
    pub knot: Reply,
    /// What it said.
    pub knot_said: Reply,
}

impl Pair {
    pub fn new(case: &mut Case<'_>, ours: Reply, knot_said: Reply) -> Self {
        let mut knot = knot_said.clone();
        if let (Some(message), true) = (knot.message_mut(), case.asked.over_udp)
            && let Some(whole) = case.whole().filter(|whole| whole.rcode == message.rcode)
        {
            *message = whole;
        }
        Self { ours, knot, knot_said }
    }
}

/// Explains a kind of difference if this is one: tells whether it changed the pair.
type Explain = fn(&mut Case<'_>, &mut Pair) -> bool;

/// Every kind, in the order in which they are looked for: what decides about the whole answer first.
pub const KINDS: [(&str, Explain); 24] = [
    ("stub-over-tcp", stub_over_tcp),
    ("error-instead-of-silence", error_instead_of_silence),
    ("opt-in-errors", opt_in_errors),
    ("opt-not-at-the-root", opt_not_at_the_root),
    ("other-operations", other_operations),
    ("malformed-subnet", malformed_subnet),
    ("malformed-cookie", malformed_cookie),
    ("meta-types", meta_types),
    ("any-class", any_class),
    ("transfers", transfers),
    ("dnssec-types-at-an-alias", dnssec_types_at_an_alias),
    ("repeated-records", repeated_records),
    ("unequal-ttls", unequal_ttls),
    ("longer-chains", longer_chains),
    ("alias-into-another-zone", alias_into_another_zone),
    ("between-zones", between_zones),
    ("ds-without-delegation", ds_without_delegation),
    ("minimal-any", minimal_any),
    ("addresses-of-the-owner", addresses_of_the_owner),
    ("extended-errors", extended_errors),
    ("subnet-echo", subnet_echo),
    ("keepalive", keepalive),
    ("no-expire", no_expire),
    ("packing", packing),
];

/// Sets what Knot should have said; false if it did.
fn expect(pair: &mut Pair, expected: Reply) -> bool {
    let differs = pair.knot != expected;
    pair.knot = expected;
    differs
}

fn stub_over_tcp(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let is_stub = case.asked.odd == Some(Odd::Stub) && !case.asked.over_udp;
    is_stub && pair.knot == Reply::Closed && expect(pair, Reply::Silence)
}

/// The error to a message that cannot be read to its end. How much of question and OPT came before the fault is
/// taken from our answer, as long as it is right.
fn fault(case: &Case<'_>, ours: &Reply) -> Option<Reply> {
    let ours = ours.message()?;
    let rcode = match case.asked.opcode {
        _ if case.asked.edns.as_ref().is_some_and(|edns| edns.version != 0) && ours.rcode == 16 => 16,
        0 => 1,
        _ => 4,
    };
    let mut expected = case.error(rcode);
    let message = expected.message_mut()?;
    if ours.questions.is_empty() {
        message.questions.clear();
    }
    match &ours.opt {
        Some(opt) => {
            let flags =
                if message.opt.is_some() || case.asked.odd.is_some() { opt.flags & 0x8000 } else { 0 };
            message.opt = Some(Opt { payload: 1_232, version: 0, flags, options: Vec::new() });
        }
        None => message.opt = None,
    }
    Some(expected)
}

fn error_instead_of_silence(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let unreadable = matches!(
        case.asked.odd,
        Some(
            Odd::Announced(_) | Odd::TwoQuestions | Odd::Cut | Odd::Pointer | Odd::LabelType | Odd::LongName
        )
    );
    if !unreadable || !matches!(pair.knot, Reply::Silence | Reply::Closed) {
        return false;
    }
    fault(case, &pair.ours).is_some_and(|expected| expect(pair, expected))
}

fn opt_in_errors(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let is_error =
        pair.knot.message().is_some_and(|knot| knot.rcode == 1 && knot.is_bare() && knot.opt.is_none());
    let has_opt = case.asked.edns.is_some() || case.asked.odd.is_some();
    if !is_error || !has_opt {
        return false;
    }
    fault(case, &pair.ours).is_some_and(|expected| expect(pair, expected))
}

fn opt_not_at_the_root(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    if case.asked.odd != Some(Odd::OptOwner) {
        return false;
    }
    let mut expected = case.error(if case.asked.opcode == 0 { 1 } else { 4 });
    if let Some(message) = expected.message_mut() {
        message.opt = None;
    }
    expect(pair, expected)
}

fn other_operations(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let speaks_edns0 = case.asked.edns.as_ref().is_none_or(|edns| edns.version == 0);
    let has_fault = pair.ours.message().is_none_or(|ours| ours.rcode != 4);
    if case.asked.opcode == 0 || !speaks_edns0 || has_fault || pair.knot.message().is_none() {
        return false;
    }
    fault(case, &pair.ours).is_some_and(|expected| expect(pair, expected))
}

/// Whether the message is one that can be read, and a question.
fn is_readable(case: &Case<'_>) -> bool {
    let edns0 = case.asked.edns.as_ref().is_none_or(|edns| edns.version == 0);
    edns0 && case.asked.is_readable() && case.asked.opcode == 0
}

fn has_malformed_subnet(case: &Case<'_>) -> bool {
    let options = case.asked.edns.iter().flat_map(|edns| &edns.options);
    options.filter(|(code, _)| *code == 8).any(|(_, data)| !is_subnet(data))
}

fn malformed_subnet(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    has_malformed_subnet(case) && is_readable(case) && expect(pair, case.error(1))
}

/// The first of several counts: 8 bytes of the client's, and 8 to 32 of the server's (RFC 7873 §4).
fn has_malformed_cookie(case: &Case<'_>) -> bool {
    case.asked.option(10).is_some_and(|data| data.len() != 8 && !(16..=40).contains(&data.len()))
}

fn malformed_cookie(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    has_malformed_cookie(case) && is_readable(case) && expect(pair, case.error(1))
}

/// Whether the question is answered by what it asks for.
fn is_plain(case: &Case<'_>) -> bool {
    is_readable(case) && !has_malformed_subnet(case) && !has_malformed_cookie(case)
}

/// As RFC 7871 §6 has it.
fn is_subnet(data: &[u8]) -> bool {
    let &[0, family @ 0..=2, prefix, 0, ref address @ ..] = data else { return false };
    let prefix = usize::from(prefix);
    let bits_set = |bit: usize| address[bit / 8] & 0x80 >> (bit % 8) != 0;
    prefix <= [0, 32, 128][usize::from(family)]
        && address.len() == prefix.div_ceil(8)
        && !(prefix..address.len() * 8).any(bits_set)
}

/// With what a type that cannot be asked for is met.
fn meta_rcode(qtype: u16) -> Option<u16> {
    match qtype {
        0 | 41 | 128 => Some(1),
        251 | 252 | 255 => None,
        129..=254 => Some(4),
        _ => None,
    }
}

fn meta_types(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(rcode) = meta_rcode(case.asked.qtype) else { return false };
    is_plain(case) && without_ede(pair) | expect(pair, case.error(rcode))
}

/// Drops an extended error that another kind argues.
fn without_ede(pair: &mut Pair) -> bool {
    let opt = pair.ours.message_mut().and_then(|ours| ours.opt.as_mut());
    opt.is_some_and(|opt| opt.options.extract_if(.., |(code, _)| *code == 15).next().is_some())
}

fn any_class(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let by_class = case.asked.qclass == 255 && meta_rcode(case.asked.qtype).is_none();
    by_class && is_plain(case) && expect(pair, case.error(5))
}

fn transfers(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    if !matches!(case.asked.qtype, 251 | 252) || !is_plain(case) {
        return false;
    }
    let name = case.asked.name.to_ascii_lowercase();
    let is_zone = case.zones.iter().any(|zone| zone.apex().as_wire() == name);
    // Nobody may; but first the name must be that of a zone.
    let rcode = if case.asked.qclass == 1 && !is_zone { 9 } else { 5 };
    expect(pair, case.error(rcode))
}

fn repeated_records(_: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(knot) = pair.knot.message_mut() else { return false };
    let before = knot.answer.len() + knot.additional.len();
    knot.answer.dedup();
    knot.additional.dedup();
    knot.answer.len() + knot.additional.len() < before
}

/// The one RRset of the zones whose records have different TTLs, and the least of them.
const UNEQUAL_TTLS: (&[u8], u32) = (b"\x06ttlmix\x07conform\x04test\x00", 100);

fn unequal_ttls(_: &mut Case<'_>, pair: &mut Pair) -> bool {
    let (owner, least) = UNEQUAL_TTLS;
    let Some(knot) = pair.knot.message_mut() else { return false };
    let unequal = knot.answer.iter_mut().filter(|rr| rr.owner == owner && rr.rtype == 1 && rr.ttl != least);
    unequal.map(|rr| rr.ttl = least).count() > 0
}

/// Most aliases that Reveille follows.
const ALIASES_MAX: usize = 8;
/// Most aliases that Knot follows.
const KNOT_ALIASES_MAX: usize = 5;

/// Knot answers a question for NSEC or RRSIG from the alias itself. It is taken through the aliases with another type instead.
fn dnssec_types_at_an_alias(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(knot) = pair.knot.message() else { return false };
    if !is_plain(case)
        || !matches!(case.asked.qtype, 46 | 47)
        || case.asked.qclass != 1
        || !knot.answer.is_empty()
    {
        return false;
    }
    let Some(through) = case.whole().filter(|through| !through.answer.is_empty()) else { return false };
    expect(pair, Reply::Message(through))
}

/// Knot goes on from where it stopped, as a resolver would make it.
fn longer_chains(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(mut whole) = pair.knot.message().cloned() else { return false };
    let mut start = case.asked.name.to_ascii_lowercase();
    let mut part = whole.answer.clone();
    while part.len() == KNOT_ALIASES_MAX && chain_from(start, &part).len() == KNOT_ALIASES_MAX {
        let end = case.end_of_chain(&whole.answer);
        let next = case.whole_of(&end).filter(|next| !next.answer.iter().any(|rr| whole.answer.contains(rr)));
        let Some(next) = next else { break };
        part.clone_from(&next.answer);
        whole.answer.extend(next.answer);
        (whole.authority, whole.additional, whole.rcode) = (next.authority, next.additional, next.rcode);
        start = end;
    }
    let chain: Vec<Rr> = case.chain(&whole.answer).into_iter().cloned().collect();
    if chain.len() >= ALIASES_MAX {
        whole.answer = chain.into_iter().take(ALIASES_MAX).collect();
        whole.authority.clear();
        whole.additional.clear();
        whole.rcode = 0;
    }
    whole.sort();
    case.asked.qtype != 5 && expect(pair, Reply::Message(whole))
}

fn alias_into_another_zone(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(knot) = pair.knot.message() else { return false };
    let end = case.end_of_chain(&knot.answer);
    let leaves =
        knot.answer.iter().any(|rr| rr.rtype == 5) && case.apex_of(&end) != case.apex_of(&case.asked.name);
    if !leaves || knot.authority.is_empty() {
        return false;
    }
    let knot = pair.knot.message_mut().unwrap();
    knot.authority.clear();
    knot.additional.clear();
    knot.rcode = 0;
    true
}

/// Whether a zone that is served begins at or below the name, which lies in another one.
fn is_above_a_zone(case: &Case<'_>, name: &[u8]) -> bool {
    let own = case.apex_of(name);
    let apexes = case.zones.iter().map(|zone| zone.apex().as_wire());
    apexes.filter(|apex| Some(*apex) != own.as_deref()).any(|apex| is_at_or_below(apex, name))
}

fn between_zones(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(knot) = pair.knot.message() else { return false };
    let end = case.end_of_chain(&knot.answer);
    if knot.rcode != 3 || !is_above_a_zone(case, &end) {
        return false;
    }
    pair.knot.message_mut().unwrap().rcode = 0;
    true
}

fn ds_without_delegation(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let name = case.asked.name.to_ascii_lowercase();
    let is_apex = case.apex_of(&name).as_ref() == Some(&name);
    let Some(knot) = pair.knot.message_mut() else { return false };
    if case.asked.qtype != 43 || !is_apex || knot.rcode != 3 {
        return false;
    }
    knot.rcode = 0;
    true
}

fn minimal_any(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    if case.asked.qtype != 255 || case.asked.qclass != 1 || !is_plain(case) {
        return false;
    }
    let Some(whole) = pair.knot.message().cloned() else { return false };
    let own = case.asked.name.to_ascii_lowercase();
    if !whole.answer.iter().any(|rr| rr.owner == own && rr.rtype != 5) {
        return false;
    }
    let data = b"\x07RFC8482\x00".to_vec();
    let mut expected = whole;
    expected.answer = vec![Rr { owner: own, rtype: 13, class: 1, ttl: 60, data }];
    expected.authority.clear();
    expected.additional.clear();
    expect(pair, Reply::Message(expected))
}

fn addresses_of_the_owner(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(knot) = pair.knot.message_mut() else { return false };
    let own: Vec<&Rr> = knot
        .answer
        .iter()
        .filter(|rr| matches!(rr.rtype, 64 | 65) && rr.data[..2] != [0, 0] && rr.data[2] == 0)
        .collect();
    let mut added = Vec::new();
    for rr in own {
        let node =
            case.zones.iter().find_map(|zone| zone.nodes().find(|node| node.owner().as_wire() == rr.owner));
        for rtype in [1, 28] {
            let Some(set) = node.and_then(|node| node.set(rtype)) else { continue };
            added.extend(set.data.iter().map(|data| Rr {
                owner: rr.owner.clone(),
                rtype,
                class: 1,
                ttl: set.ttl,
                data: data.to_vec(),
            }));
        }
    }
    added.retain(|rr| !knot.additional.contains(rr));
    let any = !added.is_empty();
    knot.additional.extend(added);
    knot.sort();
    any
}

/// Knot gives the code where it gives one; we give one for each refusal, with a sentence.
fn extended_errors(_: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Pair { ours: Reply::Message(ours), knot: Reply::Message(knot), .. } = pair else { return false };
    let (Some(opt), Some(knot)) = (&mut ours.opt, &mut knot.opt) else { return false };
    let known: Vec<Vec<u8>> =
        knot.options.extract_if(.., |(code, _)| *code == 15).map(|(_, data)| data).collect();
    let given: Vec<Vec<u8>> =
        opt.options.extract_if(.., |(code, _)| *code == 15).map(|(_, data)| data).collect();
    let [given] = &given[..] else { return false };
    let is_sentence = std::str::from_utf8(&given[2..]).is_ok_and(|text| text.len() > 10);
    matches!(ours.rcode, 1 | 2 | 4 | 5 | 9)
        && is_sentence
        && known.iter().all(|known| known[..2] == given[..2])
}

fn subnet_echo(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(opt) = pair.ours.message_mut().and_then(|ours| ours.opt.as_mut()) else { return false };
    let asked: Vec<&[u8]> = case
        .asked
        .edns
        .iter()
        .flat_map(|edns| &edns.options)
        .filter(|(code, _)| *code == 8)
        .map(|(_, data)| &**data)
        .collect();
    // The scope is 0 in the question already.
    let echoed = opt.options.extract_if(.., |(code, data)| *code == 8 && asked.contains(&&**data));
    echoed.count() == 1
}

fn keepalive(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(opt) = pair.ours.message_mut().and_then(|ours| ours.opt.as_mut()) else { return false };
    if case.asked.over_udp || case.asked.option(11).is_none() {
        return false;
    }
    // In tenths of a second.
    let told = (11, (KEEPALIVE_MS / 100).to_be_bytes().to_vec());
    opt.options.extract_if(.., |option| *option == told).count() == 1
}

fn no_expire(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Some(opt) = pair.knot.message_mut().and_then(|knot| knot.opt.as_mut()) else { return false };
    case.asked.option(9).is_some() && opt.options.extract_if(.., |(code, _)| *code == 9).count() == 1
}

/// What holds of every answer of ours, whatever others say.
pub fn faults(case: &Case<'_>, ours: &Reply, bytes: &[u8]) -> Vec<&'static str> {
    let Reply::Message(ours) = ours else {
        return if matches!(ours, Reply::Unreadable(_)) { vec!["it cannot be read"] } else { vec![] };
    };
    let mut faults = Vec::new();
    let mut check = |holds: bool, what| {
        if !holds {
            faults.push(what);
        }
    };
    check(ours.has(message::QR), "QR is not set");
    check(!ours.has(RA | message::Z | message::AD | message::CD), "RA, Z, AD or CD is set");
    check(ours.has(message::RD) == (case.asked.flags & message::RD != 0), "RD is not that of the question");
    check(bytes.len() <= case.asked.limit(), "it is larger than the asker takes");
    check(
        ours.opt.is_some() <= (case.asked.edns.is_some() || case.asked.odd.is_some()),
        "an OPT that nobody asked for",
    );
    check(Message::in_order(bytes).is_ok_and(|ours| ours.is_a_chain()), "aliases are not in order");
    let records = [&ours.answer, &ours.authority, &ours.additional];
    let repeats = |section: &Vec<Rr>| section.windows(2).any(|two| two[0] == two[1]);
    check(!records.into_iter().any(repeats), "a record is there twice");
    check(!ours.has(AA) || matches!(ours.rcode, 0 | 3), "an error that claims authority");
    faults
}
