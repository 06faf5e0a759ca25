//! What answering leaves for whoever signs a zone's answers.
//!
//! The core looks names up and holds no key. A signed zone carries its signer, and a reply from a zone says where it
//! ends without the records that were asked for, so that the signer can prove it. The query room hands the reply
//! over before it is written; nothing in the core calls the signer.

use std::fmt;
use std::sync::Arc;

use super::lookup::Question;
use super::rdata::{A, AAAA, CNAME, DS, NS, TXT};
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
            Self::VmState => vec![TXT],
            // Of what stands at a cut, only these are the parent's to speak of (RFC 4035 §2.3).
            Self::Cut(node) => {
                let ds = node.filter(|node| node.set(DS).is_some()).map(|_| DS);
                [NS].into_iter().chain(ds).collect()
            }
            Self::Name { node, service } => {
                let beside = node.into_iter().flat_map(Node::sets).map(|(rtype, _)| rtype);
                let Some(service) = service else { return beside.collect() };
                // The service answers for its addresses, whatever else the zone says of them.
                let addresses = [A].into_iter().chain(service.address6.map(|_| AAAA));
                addresses.chain(beside.filter(|rtype| !matches!(*rtype, A | AAAA | CNAME))).collect()
            }
        }
    }
}
