//! Who asks for the services that are asked for much in this minute: what tells a crowd from a flood. Pure, of a fixed size; of clients
//! only keyed hashes.

use std::collections::BTreeMap;

use super::distinct::Distinct;
use super::heavy::HeavyHitters;

/// Services that are followed at a time, with some 5 kB each.
pub const CROWDS_MAX: usize = 256;
/// Queries in a minute from which on a service is followed.
pub const FOLLOWED_FROM: u64 = 50;
/// Services whose queries of this minute are counted, to see which are to be followed.
const COUNTED_MAX: usize = 16_384;
/// Clients of whom the one that asks most is sure to be found if it makes up more than this part of the queries.
const CLIENT_PLACES: usize = 16;

/// Who asked for one service, from where it was followed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crowd {
    /// Queries that were looked at.
    pub queries: u64,
    /// Different addresses that they came from, about.
    pub clients: u64,
    /// Queries of the one that asked most.
    pub top_client: u64,
    /// Queries whose sender has proven its address.
    pub proven: u64,
}

/// All that are followed.
#[derive(Debug, Default)]
pub(super) struct Crowds {
    counts: BTreeMap<u32, u64>,
    followed: BTreeMap<u32, Followed>,
}

#[derive(Debug)]
struct Followed {
    queries: u64,
    proven: u64,
    clients: Distinct,
    top: HeavyHitters<u64>,
}

impl Crowds {
    /// A client, of which this is a keyed hash, asked for a service.
    pub fn asked(&mut self, counter: u32, client: u64, proven: bool) {
        if let Some(followed) = self.followed.get_mut(&counter) {
            followed.queries += 1;
            followed.proven += u64::from(proven);
            followed.clients.add(client);
            followed.top.add(client);
            return;
        }
        if self.counts.len() >= COUNTED_MAX && !self.counts.contains_key(&counter) {
            return;
        }
        let count = self.counts.entry(counter).or_default();
        *count += 1;
        if *count >= FOLLOWED_FROM && self.followed.len() < CROWDS_MAX {
            let (clients, top) = (Distinct::default(), HeavyHitters::new(CLIENT_PLACES));
            self.followed.insert(counter, Followed { queries: 0, proven: 0, clients, top });
        }
    }

    /// Who asks for the service, if it is followed.
    pub fn of(&self, counter: u32) -> Option<Crowd> {
        let Followed { queries, proven, clients, top } = self.followed.get(&counter)?;
        let none = HeavyHitters::new(1);
        Some(Crowd {
            queries: *queries,
            clients: clients.of_both(clients),
            top_client: top.top_of_both(&none, 1).first().map_or(1, |heavy| heavy.at_least),
            proven: *proven,
        })
    }

    /// A minute begins.
    pub fn begin_minute(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use super::*;

    fn hash(number: u64) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(number)
    }

    #[test]
    fn many_clients_are_told_from_one_that_asks_much() {
        let mut crowds = Crowds::default();
        for number in 0..1_050 {
            crowds.asked(1, hash(number % 300), number % 10 == 0);
            crowds.asked(2, hash(if number % 5 == 0 { number } else { 7 }), false);
        }
        crowds.asked(3, hash(1), false);
        let many = crowds.of(1).unwrap();
        assert_eq!((many.queries, many.proven), (1_000, 100));
        assert!(many.clients.abs_diff(300) < 20 && many.top_client < 60, "{many:?}");
        let one = crowds.of(2).unwrap();
        assert!(one.clients.abs_diff(201) < 20 && one.top_client.abs_diff(800) < 20, "{one:?}");
        assert_eq!(crowds.of(3), None);
        crowds.begin_minute();
        assert_eq!(crowds.of(1), None);
    }

    #[test]
    fn what_is_kept_has_a_number_of_places() {
        let mut crowds = Crowds::default();
        for counter in 0..40_000 {
            (0..FOLLOWED_FROM + 1).for_each(|client| crowds.asked(counter, hash(client), false));
        }
        assert_eq!((crowds.followed.len(), crowds.counts.len()), (CROWDS_MAX, COUNTED_MAX));
    }
}
