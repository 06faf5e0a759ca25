//! What a question for a transfer comes to. Pure.

use std::sync::Arc;

use reveille_core::answer::{
    Asker, Data, Ede, Owner, Rcode, Records, Reply, View, Zone, is_newer_serial, rdata,
};
use reveille_core::model::DomainName;

use crate::respond::Transport;
use crate::tsig::Exchange;
use crate::wire::Query;

/// A transfer that may begin.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    /// The question, as every message repeats it.
    pub query: Query,
    /// The zone, of the view that the question was judged by.
    pub zone: Arc<Zone>,
    /// Index of the zone in that view.
    pub index: u16,
    /// The serial that the client has, if it asked for what changed since, and that is kept.
    pub since: Option<u32>,
    /// How its messages are signed.
    pub exchange: Option<Exchange>,
}

/// The one message that says it all; or a transfer, and the message to send should it not be possible.
pub(crate) type Verdict<'v> = (Reply<'v>, Option<Box<Transfer>>);

/// Judges a question for AXFR or IXFR; `None` if it is another question, or not one of class IN.
pub(crate) fn judge<'v>(
    view: &'v View,
    query: &Query,
    asker: Asker<'_>,
    transport: Transport,
) -> Option<Verdict<'v>> {
    let question = &query.question;
    let full = match question.qtype {
        rdata::AXFR => true,
        rdata::IXFR => false,
        _ => return None,
    };
    if question.qclass != rdata::CLASS_IN {
        return None;
    }
    let error = |rcode, code, text| Some((Reply::error(rcode, code, text), None));
    let apex = DomainName::from_wire(question.name.as_wire()).ok()?;
    let zone = view.zones().find(&apex).and_then(|index| Some((index, view.zones().at(index)?)));
    let Some((index, zone)) = zone else {
        return error(Rcode::NotAuth, Ede::NOT_AUTHORITATIVE, "no zone of exactly this name is served here");
    };
    if !zone.transfer().allows(asker) {
        let why = "the zone is not transferred to this address and key";
        return error(Rcode::Refused, Ede::PROHIBITED, why);
    }
    let stream = |since| {
        let query = Query { signature: None, ..query.clone() };
        let zone = Arc::clone(zone);
        let instead = "the zone cannot be transferred now; ask again later, and over TLS with TLS 1.3";
        let instead = Reply::error(Rcode::ServFail, Ede::NOT_READY, instead);
        Some((instead, Some(Box::new(Transfer { query, zone, index, since, exchange: None }))))
    };
    match (full, transport.carries_transfers()) {
        // There is no such thing (RFC 5936 §4.2).
        (true, false) => {
            error(Rcode::NotImp, Ede::NOT_SUPPORTED, "a whole zone is transferred over TCP or TLS only")
        }
        (true, true) => stream(None),
        (false, _) => {
            let Some(has) = query.soa_serial else {
                let why = "an incremental transfer needs the SOA that the asker has";
                return error(Rcode::FormErr, Ede::OTHER, why);
            };
            // Nothing newer, or too much for one message: the SOA alone says so (RFC 1995 §2).
            if !is_newer_serial(zone.serial(), has) || !transport.carries_transfers() {
                return Some((soa_alone(zone), None));
            }
            stream(zone.history().since(has).map(|_| has))
        }
    }
}

fn soa_alone(zone: &Zone) -> Reply<'_> {
    let mut reply = Reply::empty();
    reply.answer.push(Records {
        owner: Owner::Question,
        rtype: rdata::SOA,
        ttl: zone.soa().ttl,
        data: Data::Zone(&zone.soa().data),
    });
    reply
}
