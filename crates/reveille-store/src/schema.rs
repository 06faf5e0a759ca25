//! The tables. Rows are JSON: a few hundred bytes each, readable in a hex dump when something went wrong.

use redb::TableDefinition;

/// Version of the layout. Raised when an older Reveille could misread what a newer one wrote; what it can read
/// regardless (a new field with a default) needs no raise.
pub const SCHEMA_VERSION: u64 = 1;

/// `schema` and `next_instance`.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Name → [`crate::StoredService`].
pub const SERVICES: TableDefinition<&str, &[u8]> = TableDefinition::new("services");
/// Identity → [`reveille_core::model::Instance`].
pub const INSTANCES: TableDefinition<u64, &[u8]> = TableDefinition::new("instances");
/// Name and sequence number → [`reveille_core::model::WakeRecord`].
pub const WAKES: History = TableDefinition::new("wakes");
/// Name and sequence number → [`crate::StoredDecision`].
pub const DECISIONS: History = TableDefinition::new("decisions");
/// Name and sequence number → [`crate::StoredHealth`].
pub const HEALTH: History = TableDefinition::new("health");
/// BLAKE3 of the token → [`crate::StoredToken`].
pub const TOKENS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("tokens");

/// Apex → the highest serial that the zone may have been published with ([`crate::Change::PutSerialCeiling`]).
pub const SERIAL_CEILINGS: TableDefinition<&str, u32> = TableDefinition::new("serial_ceilings");
/// Zone, owner in wire format and type → [`crate::StoredStaticSet`] without these.
pub const STATIC_SETS: TableDefinition<(&str, &[u8], u16), &[u8]> = TableDefinition::new("static_sets");
/// External primary and name → [`crate::StoredPublished`].
pub const PUBLISHED: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("published");
/// External primary → the serial of its zone that was seen last.
pub const PUBLISHED_SERIALS: TableDefinition<&str, u32> = TableDefinition::new("published_serials");

/// A table with a bounded row of entries per service.
pub type History = TableDefinition<'static, (&'static str, u64), &'static [u8]>;

/// Key of the layout version in [`META`].
pub const SCHEMA_KEY: &str = "schema";
/// Key of the next free instance identity in [`META`].
pub const NEXT_INSTANCE_KEY: &str = "next_instance";
