//! One name: everything that ordinary questions about it need, in one cache line.

use std::sync::Arc;

use super::super::view::ServiceView;
use super::hash::same_name;
use crate::model::{AnswerPolicy, Phase, Timestamp};

/// Longest name that lies in the slot itself, in wire format.
const INLINE_BYTES_MAX: usize = 30;

/// What a name is, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(u16);

impl Kinds {
    /// A service.
    pub const SERVICE: Self = Self(1);
    /// The name of static records.
    pub const STATIC: Self = Self(1 << 1);
    /// The apex of a zone.
    pub const APEX: Self = Self(1 << 2);
    /// At or below a delegation of its zone.
    pub const BELOW_CUT: Self = Self(1 << 3);
    /// A wildcard stands directly below.
    pub const HAS_WILDCARD: Self = Self(1 << 4);
    /// The service does not run: asking for its address wakes it.
    pub const ASLEEP: Self = Self(1 << 5);
    /// Questions for the sleeping service are held.
    pub const HELD: Self = Self(1 << 6);
    /// The service cannot be woken for some time.
    pub const REFUSED: Self = Self(1 << 7);
    /// The service has an IPv6 address.
    pub const ADDRESS6: Self = Self(1 << 8);

    /// The service is on its way up: asking for it begins nothing.
    pub const STARTING: Self = Self(1 << 9);

    /// What only services are.
    const OF_SERVICES: Self = Self(
        Self::SERVICE.0
            | Self::ASLEEP.0
            | Self::HELD.0
            | Self::REFUSED.0
            | Self::ADDRESS6.0
            | Self::STARTING.0,
    );

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without the other's bits.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it is any of the other's.
    pub const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One name of the table. 64 bytes.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Slot {
    name: SlotName,
    service: Option<Arc<ServiceView>>,
    /// Names directly below this one: with any, the name exists even if nothing else stands there.
    below: u32,
    counter: u32,
    ttl_s: u32,
    /// Seconds since 1970 until which the answer holds; `u32::MAX`: whatever the time.
    holds_until_s: u32,
    address: [u8; 4],
    kinds: Kinds,
    zone: u16,
}

/// A name in wire format, lower case.
#[derive(Debug, Clone)]
enum SlotName {
    Inline { length: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Apart(Box<[u8]>),
}

impl SlotName {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Apart(bytes) => bytes,
        }
    }

    fn new(wire: &[u8]) -> Self {
        let mut bytes = [0; INLINE_BYTES_MAX];
        match (bytes.get_mut(..wire.len()), u8::try_from(wire.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(wire);
                Self::Inline { length, bytes }
            }
            (Some(_) | None, _) => Self::Apart(wire.into()),
        }
    }
}

impl Slot {
    /// A slot in which no name is.
    pub(super) const EMPTY: Self = Self {
        name: SlotName::Inline { length: 0, bytes: [0; INLINE_BYTES_MAX] },
        service: None,
        below: 0,
        counter: 0,
        ttl_s: 0,
        holds_until_s: 0,
        address: [0; 4],
        kinds: Kinds(0),
        zone: 0,
    };

    /// A name, lower case, at which nothing stands yet.
    pub(super) fn new(wire: &[u8], zone: u16) -> Self {
        Self { name: SlotName::new(wire), zone, ..Self::EMPTY }
    }

    pub(super) fn is_empty(&self) -> bool {
        // Every name has at least the root label.
        self.name.bytes().is_empty()
    }

    pub(super) fn has_name(&self, wire: &[u8]) -> bool {
        same_name(wire, self.name.bytes())
    }

    /// Whether nothing stands here or below, so that the name does not exist.
    pub(super) fn is_void(&self) -> bool {
        self.below == 0 && !self.kinds.any_of(Kinds::SERVICE.with(Kinds::STATIC).with(Kinds::APEX))
    }

    pub(super) fn set_below(&mut self, below: u32) {
        self.below = below;
    }

    pub(super) fn set_kinds(&mut self, kinds: Kinds) {
        self.kinds = kinds;
    }

    /// Takes up a service, or forgets the one that is there.
    pub(super) fn set_service(&mut self, service: Option<Arc<ServiceView>>) {
        self.kinds = self.kinds.without(Kinds::OF_SERVICES);
        match &service {
            None => {
                (self.counter, self.ttl_s, self.holds_until_s, self.address) = (0, 0, 0, [0; 4]);
            }
            Some(seen) => {
                self.counter = seen.counter;
                self.ttl_s = seen.ttl_s;
                self.holds_until_s = seen.holds_until.map_or(u32::MAX, seconds);
                self.address = seen.address.octets();
                self.kinds = self.kinds.with(kinds_of(seen));
            }
        }
        self.service = service;
    }

    /// The name in wire format, lower case.
    pub fn name(&self) -> &[u8] {
        self.name.bytes()
    }

    /// What the name is.
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// How many names of the table lie directly below.
    pub fn below(&self) -> u32 {
        self.below
    }

    /// Index of the zone whose content it is, in the order of [`super::super::Zones::iter`].
    pub fn zone(&self) -> u16 {
        self.zone
    }

    /// The service, if one has this name.
    pub fn service(&self) -> Option<&Arc<ServiceView>> {
        self.service.as_ref()
    }

    /// Number of the service's counter; 0 counts all names without one.
    pub fn counter(&self) -> u32 {
        self.counter
    }

    /// The service's IPv4 address.
    pub fn address(&self) -> [u8; 4] {
        self.address
    }

    /// TTL of the service's addresses at `now_s`, seconds since 1970.
    pub fn ttl_s(&self, now_s: u32) -> u32 {
        capped_ttl_s(self.ttl_s, self.holds_until_s, now_s)
    }
}

/// `ttl_s`, but not beyond `holds_until_s`; at least a second, below which resolvers would ask for every client.
pub(in crate::answer) fn capped_ttl_s(ttl_s: u32, holds_until_s: u32, now_s: u32) -> u32 {
    ttl_s.min(holds_until_s.saturating_sub(now_s).max(1))
}

/// Whole seconds since 1970, rounded down.
pub(in crate::answer) fn seconds(at: Timestamp) -> u32 {
    u32::try_from(at.as_ms() / 1_000).unwrap_or(u32::MAX)
}

fn kinds_of(service: &ServiceView) -> Kinds {
    let mut kinds = Kinds::SERVICE;
    if service.address6.is_some() {
        kinds = kinds.with(Kinds::ADDRESS6);
    }
    if service.phase != Phase::Active {
        kinds = kinds.with(Kinds::ASLEEP);
        if service.phase.is_starting() {
            kinds = kinds.with(Kinds::STARTING);
        }
        if service.answer == AnswerPolicy::Hold {
            kinds = kinds.with(Kinds::HELD);
        }
    }
    if service.refused.is_some() {
        kinds = kinds.with(Kinds::REFUSED);
    }
    kinds
}

const _: () = assert!(size_of::<Slot>() == 64);
