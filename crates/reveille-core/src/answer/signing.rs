//! What answering leaves for whoever signs a zone's answers.
//!
//! The core looks names up and holds no key. A signed zone carries its signer, and a reply from a zone says where it
//! ends without the records that were asked for, so that the signer can prove it. The query room hands the reply
//! over before it is written; nothing in the core calls the signer.

use std::fmt;
use std::sync::Arc;

use super::lookup::Question;
use super::rdata::{A, AAAA, CNAME, DS, NS, TXT, VMSTATE};
use super::reply::{Owner, Reply};
use super::view::ServiceView;
use super::zone::Node;
use crate::model::Timestamp;

/// Makes the replies of one zone such as a validator wants them.
pub trait SignReplies: fmt::Debug + Send + Sync {
    /// The reply as it is to be sent: with the key records that the zone itself does not have, and for those who
    /// ask for DNSSEC with signatures and denials. Must never wait.
    fn sign<'v>(&self, reply: Reply<'v>, asked: &Asked<'_>) -> Reply<'v>;
}

/// What a signer is told beside the reply.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'q> {
    /// The question.
    pub question: &'q Question,
    /// DO: signatures are wanted.
    pub dnssec_ok: bool,
    /// CO: NXDOMAIN is taken beside a compact denial (RFC 9824 §5).
    pub compact_ok: bool,
    /// The answer may be truncated, upon which the asker comes back over a stream.
    pub may_truncate: bool,
    /// The asker's address is known to be its own.
    pub proven: bool,
    /// The time.
    pub now: Timestamp,
}

/// A zone's signer. Cloning shares it; equal is what is the same.
#[derive(Clone)]
pub struct Signer(Arc<dyn SignReplies>);

impl Signer {
    /// A handle to this signer.
    pub fn new(signer: Arc<dyn SignReplies>) -> Self {
        Self(signer)
    }
}

impl std::ops::Deref for Signer {
    type Target = dyn SignReplies;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Signer {}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name at which a reply ends without the records that were asked for: NODATA, NXDOMAIN, or a referral.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial<'v> {
    /// The name.
    pub owner: Owner<'v>,
    /// What there is at it.
    pub standing: Standing<'v>,
}

/// What there is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'v> {
    /// Nothing; the name does not exist.
    Nothing,
    /// The name exists, or a wildcard stands for it. With neither it is an empty non-terminal.
    Name {
        /// Its static records.
        node: Option<&'v Node>,
        /// The service of that name.
        service: Option<&'v ServiceView>,
    },
    /// The name is delegated, with these records at the parent's side; `None` if it is the apex of a zone that is
    /// served here too and that the zone above does not delegate.
    Cut(Option<&'v Node>),
    /// It stands for the state of a service.
    VmState,
}

impl Standing<'_> {
    /// The types that are answered with data, in no order.
    pub fn types(&self) -> Vec<u16> {
        match *self {
            Self::Nothing => Vec::new(),
            Self::VmState => vec![TXT, VMSTATE],
            // Of what stands at a cut, only these are the parent's to speak of (RFC 4035 §2.3).
            Self::Cut(node) => {
                let ds = node.filter(|node| node.set(DS).is_some()).map(|_| DS);
                [NS].into_iter().chain(ds).collect()
            }
            Self::Name { node, service } => {
                let beside = node.into_iter().flat_map(Node::sets).map(|(rtype, _)| rtype);
                let Some(service) = service else { return beside.collect() };
                // The service answers for its addresses and its state, whatever else the zone says of them. That some
                // may not ask for the state does not make it less there.
                let own = [A, VMSTATE].into_iter().chain(service.address6.map(|_| AAAA));
                own.chain(beside.filter(|rtype| !matches!(*rtype, A | AAAA | CNAME | VMSTATE))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::rdata::{MX, NSEC, SOA, SRV};
    use super::super::{Asker, QuestionName, Record, View, Zone, ZoneDefaults, Zones, answer, rdata};
    use super::*;
    use crate::model::DomainName;

    #[derive(Debug)]
    struct Nobody;

    impl SignReplies for Nobody {
        fn sign<'v>(&self, reply: Reply<'v>, _: &Asked<'_>) -> Reply<'v> {
            reply
        }
    }

    fn name(text: &str) -> DomainName {
        let label = |label: &str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
        let wire: Vec<u8> = text.split('.').chain([""]).flat_map(label).collect();
        DomainName::from_wire(&wire).unwrap()
    }

    fn zone(apex: &str, records: &[(&str, u16, &[u8])]) -> Zone {
        let defaults = ZoneDefaults {
            apex: name(apex),
            name_servers: vec![(name("ns.elsewhere.test"), vec![])],
            hostmaster: name("hostmaster.test"),
            serial: 1,
            ttl: 60,
            negative_ttl: 60,
        };
        let mut all = defaults.records();
        all.extend(records.iter().map(|&(owner, rtype, data)| Record {
            owner: name(owner),
            rtype,
            ttl: 60,
            data: data.to_vec(),
        }));
        Zone::new(name(apex), &all).unwrap().with_signer(Some(Signer::new(Arc::new(Nobody))))
    }

    /// What a reply leaves to be proven: code, name, types that are there, and whether names like it are endless.
    fn left(view: &View, qname: &str, qtype: u16) -> String {
        let question = Question { name: QuestionName::from(&name(qname)), qtype, qclass: rdata::CLASS_IN };
        let asker = Asker { address: IpAddr::V4(Ipv4Addr::LOCALHOST), key: None };
        let reply = answer(view, &question, asker, Timestamp::from_ms(0));
        let mut text = reply.rcode.word().to_owned();
        if reply.of_endless_names {
            text += " endless";
        }
        let Some(denial) = reply.denial else { return text };
        let owner = match denial.owner {
            Owner::Question => "@".to_owned(),
            Owner::Name(wire) => DomainName::from_wire(wire).unwrap().to_string(),
        };
        let kind = match denial.standing {
            Standing::Nothing => "nothing",
            Standing::Name { .. } => "name",
            Standing::Cut(_) => "cut",
            Standing::VmState => "state",
        };
        let types: Vec<String> = denial.standing.types().into_iter().map(rdata::type_word).collect();
        format!("{text} {kind} {owner} [{}]", types.join(" "))
    }

    #[test]
    fn a_reply_says_where_it_ends_and_what_is_there() {
        let alias = |target: &str| name(target).as_wire().to_vec();
        let zone = zone(
            "vm.test",
            &[
                ("www.vm.test", A, &[192, 0, 2, 1]),
                ("www.vm.test", MX, &[&[0, 1][..], name("www.vm.test").as_wire()].concat()),
                ("deep.empty.vm.test", TXT, b"\x01x"),
                ("svc.vm.test", MX, &[&[0, 1][..], name("www.vm.test").as_wire()].concat()),
                ("svc.vm.test", AAAA, &[0; 16]),
                ("alias.vm.test", CNAME, &alias("www.vm.test")),
                ("gone.vm.test", CNAME, &alias("none.vm.test")),
                ("cut.vm.test", CNAME, &alias("x.plain.vm.test")),
                ("*.wild.vm.test", TXT, b"\x01x"),
                ("*.walias.vm.test", CNAME, &alias("www.vm.test")),
                ("below.*.went.vm.test", TXT, b"\x01x"),
                ("plain.vm.test", NS, &alias("ns.elsewhere.test")),
                ("far.vm.test", NS, &alias("ns.elsewhere.test")),
                ("far.vm.test", DS, &[0, 1, 13, 2, 0xab]),
            ],
        );
        let child = self::zone("child.vm.test", &[]);
        let service = Arc::new(ServiceView::asleep(name("svc.vm.test"), Ipv4Addr::new(127, 64, 0, 1)));
        let zones = Zones::new([zone, child].map(Arc::new));
        let view = View::new(1, zones, [service], View::default_monitors());
        for (qname, qtype, expected) in [
            ("www.vm.test", A, "NOERROR"),
            ("www.vm.test", AAAA, "NOERROR name @ [A MX]"),
            ("vm.test", TXT, "NOERROR name @ [NS SOA]"),
            ("svc.vm.test", A, "NOERROR"),
            ("svc.vm.test", AAAA, "NOERROR name @ [A TYPE65280 MX]"),
            ("_vmstate.svc.vm.test", A, "NOERROR state @ [TXT TYPE65280]"),
            ("none.vm.test", A, "NXDOMAIN endless nothing @ []"),
            ("empty.vm.test", A, "NOERROR name @ []"),
            ("alias.vm.test", SRV, "NOERROR name www.vm.test [A MX]"),
            // Beside an alias, not behind it.
            ("alias.vm.test", NSEC, "NOERROR name @ [CNAME]"),
            ("gone.vm.test", A, "NXDOMAIN endless nothing none.vm.test []"),
            ("x.wild.vm.test", TXT, "NOERROR endless"),
            ("x.wild.vm.test", A, "NOERROR endless name @ [TXT]"),
            ("x.walias.vm.test", A, "NOERROR endless"),
            ("x.went.vm.test", A, "NOERROR endless name @ []"),
            ("x.plain.vm.test", A, "NOERROR cut plain.vm.test [NS]"),
            ("cut.vm.test", A, "NOERROR cut plain.vm.test [NS]"),
            ("plain.vm.test", DS, "NOERROR cut @ [NS]"),
            ("x.far.vm.test", A, "NOERROR cut far.vm.test [NS DS]"),
            ("far.vm.test", DS, "NOERROR"),
            ("child.vm.test", DS, "NOERROR cut @ [NS]"),
            ("child.vm.test", SOA, "NOERROR"),
            ("www.elsewhere.test", A, "REFUSED"),
        ] {
            assert_eq!(left(&view, qname, qtype), expected, "{qname} {}", rdata::type_word(qtype));
        }
    }
}
