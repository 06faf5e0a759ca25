//! What a service's relay counts, and the picture of it that others read.

use std::sync::atomic::{AtomicU64, Ordering};

use reveille_core::model::Timestamp;

/// A count that is read now and then and orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one instance has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replies {
    /// Times that it answered what a TCP client had said.
    pub count: u64,
    /// Microseconds from the first byte that a client said to the first one of the answer, all of these together.
    pub us: u64,
}

/// Counts of [`Replies`].
#[derive(Debug, Default)]
pub(crate) struct ReplyCounters {
    count: Count,
    us: Count,
}

impl ReplyCounters {
    pub(crate) fn one(&self, us: u64) {
        self.count.one();
        self.us.add(us);
    }

    pub(crate) fn picture(&self) -> Replies {
        Replies { count: self.count.get(), us: self.us.get() }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts of one service since it was bound.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Count,)*
        }

        /// What passes through the relay of one service.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Traffic {
            /// TCP connections that are let through to the instance now.
            pub open_connections: u32,
            /// TCP clients that are held now.
            pub held_clients: u32,
            /// Datagrams that are held now.
            pub held_datagrams: u32,
            /// UDP sessions that exist now.
            pub udp_sessions: u32,
            /// When a byte or datagram last passed in either direction, or a connection opened or closed.
            pub last_packet: Option<Timestamp>,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// A picture with the gauges still at their defaults.
            pub(crate) fn picture(&self) -> Traffic {
                Traffic { $($name: self.$name.get(),)* ..Traffic::default() }
            }
        }
    };
}

counters! {
    /// TCP clients accepted.
    accepted,
    /// TCP connections that were let through; one that had to wait again is counted again.
    opened,
    /// TCP connections that both sides closed in order.
    completed,
    /// TCP connections that ended by a reset of the client.
    client_resets,
    /// TCP connections that ended by a reset of the instance, or whose last bytes it did not acknowledge.
    backend_resets,
    /// TCP connections that were cut: the instance was lost, put to sleep by force, or the service unbound.
    cut,
    /// TCP connections that the guest had closed and on which the client stayed silent.
    half_closed,
    /// TCP clients that left while they were held.
    left,
    /// TCP clients reset because they had waited for too long.
    expired,
    /// TCP clients reset because the gate refuses.
    refused,
    /// TCP clients reset because too many were held.
    over_held_limit,
    /// TCP clients reset because the service had too many, held and open.
    over_service_limit,
    /// TCP clients reset because the relay had too many in all.
    over_connection_limit,
    /// Tries to reach the instance beyond a connection's first.
    retries,
    /// Bytes from TCP clients to the instance.
    bytes_in,
    /// Bytes from the instance to TCP clients.
    bytes_out,
    /// Datagrams from clients to the instance.
    datagrams_in,
    /// Datagrams from the instance to clients.
    datagrams_out,
    /// Datagrams dropped because too many were held.
    datagrams_over_limit,
    /// Datagrams dropped because they had waited for too long.
    datagrams_expired,
    /// Datagrams dropped because the gate refuses.
    datagrams_refused,
    /// Datagrams dropped because the service has too many sessions or no way to the instance could be had.
    datagrams_no_session,
    /// Datagrams that the instance's or the client's side did not take.
    datagrams_failed,
    /// Times that the instance answered a datagram with "port unreachable".
    udp_unreachable,
}
