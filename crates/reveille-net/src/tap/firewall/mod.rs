//! What guests may send: as themselves alone, answers to their clients, and what their egress policy lets them ask.
//!
//! The rules are two tables of nftables that are Reveille's own (`rules` has them), in the kernel and beside the data
//! path of the daemon: they hold for a guest that runs on while no daemon is there, and the next daemon replaces all of
//! them in one step. A guest whose device is in no rule can send nothing.
//!
//! `nft` is run, one batch at a time, and only when a service comes, goes, or has another policy; never while one wakes.
//! It is in every Debian system, its batches are all or nothing, and what it is told is what an operator
//! sees with `nft list table inet reveille`. The kernel's own protocol for this is an assembler of some forty messages and
//! as many expressions, which no kept crate writes without a C library.

mod nft;
mod rules;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reveille_core::answer::Network;

use super::device::{self, TapAddresses};

/// What a guest may reach by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EgressPolicy {
    /// Nobody: it answers its clients.
    #[default]
    None,
    /// Others, as the host.
    Nat {
        /// Only these, if there are any. Other guests, the host and addresses of a link are reached only by an entry
        /// for the single address.
        allow: Vec<Network>,
        /// None of these, whatever is allowed.
        deny: Vec<Network>,
        /// Whom it may ask for names.
        nameserver: Option<IpAddr>,
    },
}

/// Why the rules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program is missing.
    #[error("tap mode needs nftables to keep guests apart: apt-get install nftables")]
    NoProgram,
    /// It cannot be started.
    #[error("`nft` cannot be run: {0}")]
    Program(std::io::Error),
    /// It refuses.
    #[error("nftables refuses the rules that keep guests apart: {0}")]
    Refused(String),
    /// Somebody else's rules are there.
    #[error(
        "another Reveille is in tap mode in this network namespace; stop it, or give one of them a namespace of its own \
         (ip netns add NAME)"
    )]
    InUse,
}

/// One guest in the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    addresses: TapAddresses,
    egress: EgressPolicy,
}

/// The rules of one network namespace.
#[derive(Debug)]
pub(super) struct Firewall {
    state: Mutex<State>,
    /// Says in this namespace that there is one; gone with the process.
    _mark: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<Ipv4Addr, Member>,
    /// Whether the kernel has them.
    enforced: bool,
}

impl Firewall {
    /// Without guests; nothing is in force yet.
    pub(super) fn open() -> Result<Self, FirewallError> {
        nft::locate()?;
        Ok(Self { state: Mutex::default(), _mark: nft::mark()? })
    }

    /// Puts the rules of all guests that are known in the place of whatever rules there are, those of a daemon that was
    /// killed among them.
    pub(super) fn enforce(&self) -> Result<(), FirewallError> {
        let mut state = self.lock();
        nft::run(&rules::whole(state.members.values()))?;
        state.enforced = true;
        Ok(())
    }

    /// Whether the rules are in force.
    pub(super) fn is_enforced(&self) -> bool {
        self.lock().enforced
    }

    /// Adds a guest, or gives one that is there another policy.
    pub(super) fn put(&self, addresses: TapAddresses, egress: &EgressPolicy) -> Result<(), FirewallError> {
        let mut state = self.lock();
        let member = Member { addresses, egress: egress.clone() };
        if state.members.get(&addresses.v4) == Some(&member) {
            return Ok(());
        }
        if state.enforced {
            nft::run(&rules::with(&member))?;
        }
        state.members.insert(addresses.v4, member);
        Ok(())
    }

    /// Takes a guest out. Should its device still be there, it can send nothing.
    pub(super) fn take_out(&self, address: Ipv4Addr) {
        let mut state = self.lock();
        if let Some(member) = state.members.remove(&address)
            && state.enforced
            && let Err(error) = nft::run(&rules::without(&member))
        {
            tracing::error!(%error, "the rules of a guest that is gone are left until the next start");
        }
    }

    /// Removes the rules, unless a guest's device is left: then its process runs on, and so do they.
    pub(super) fn lift(&self, left: &[Ipv4Addr]) {
        let mut state = self.lock();
        let runs_on = |address: &Ipv4Addr| device::is_there(*address);
        if !state.enforced || left.iter().any(runs_on) {
            return;
        }
        state.enforced = false;
        if let Err(error) = nft::run(rules::NONE) {
            tracing::error!(%error, "the rules are left until the next start");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether rules can be made here: tried with a set of them that holds for nobody, in a transaction that is not carried
/// out.
///
/// # Errors
/// What is missing and what to do.
pub fn try_rules() -> Result<(), FirewallError> {
    nft::locate()?;
    nft::check(&rules::whole([].into_iter()))
}
