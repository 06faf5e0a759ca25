//! Answers that do not fit: what each server leaves out is its own choice, within rules.

use super::common::message::{Message, Rr, TC};
use super::kinds::Pair;
use super::reply::{Case, Reply};

/// Both were cut, or left out what an asker can do without, in ways of their own. Held against the whole answer, ours
/// has each of its sections whole or not at all but for the additional one, whose RRsets are whole; and TC is set if
/// anything is missing that is needed: an answer, an authority record, glue (RFC 2181 §9, RFC 9471).
pub fn packing(case: &mut Case<'_>, pair: &mut Pair) -> bool {
    let Pair { ours: Reply::Message(ours), knot: Reply::Message(knot), knot_said: Reply::Message(said) } =
        pair
    else {
        return false;
    };
    // Where Knot finds room for everything, so must we, but for the subnet that is only in our answer.
    let has_room = !said.has(TC) && sections(said) == sections(knot) && case.asked.option(8).is_none();
    if !case.asked.over_udp || !is_cut_of(ours, knot) || ours.has(TC) && has_room {
        return false;
    }
    let differs = sections(ours) != sections(knot) || said.has(TC);
    knot.answer.clone_from(&ours.answer);
    knot.authority.clone_from(&ours.authority);
    knot.additional.clone_from(&ours.additional);
    knot.set(TC, ours.has(TC));
    differs
}

fn sections(message: &Message) -> [&[Rr]; 3] {
    [&message.answer, &message.authority, &message.additional]
}

fn is_cut_of(ours: &Message, whole: &Message) -> bool {
    let is_all = |own: &[Rr], all: &[Rr]| own == all;
    let all_or_nothing = |own: &[Rr], all: &[Rr]| own.is_empty() || is_all(own, all);
    let sections =
        all_or_nothing(&ours.answer, &whole.answer) && all_or_nothing(&ours.authority, &whole.authority);
    let additional = rrsets(&ours.additional).into_iter().all(|set| rrsets(&whole.additional).contains(&set));
    let needed = is_all(&ours.answer, &whole.answer) && is_all(&ours.authority, &whole.authority);
    let is_referral = whole.answer.is_empty() && whole.authority.iter().all(|rr| rr.rtype == 2);
    let glue = !is_referral || is_all(&ours.additional, &whole.additional);
    sections && additional && ours.has(TC) != (needed && glue)
}

/// The RRsets of a sorted section.
fn rrsets(section: &[Rr]) -> Vec<&[Rr]> {
    section.chunk_by(|one, other| (&one.owner, one.rtype) == (&other.owner, other.rtype)).collect()
}
