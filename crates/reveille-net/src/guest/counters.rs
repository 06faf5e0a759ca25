//! What passed a link and what was dropped.

/// Sums since a link was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames for the guest.
    pub frames_out: u64,
    /// Bytes of the frames from the guest.
    pub bytes_in: u64,
    /// Bytes of the frames for the guest.
    pub bytes_out: u64,
    /// Frames and datagrams that went nowhere.
    pub dropped: Dropped,
}

/// Frames and datagrams that were dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Too short, or of lengths that contradict each other.
    pub malformed: u64,
    /// Longer than [`super::MTU`] allows.
    pub oversized: u64,
    /// From another address than the guest's own.
    pub spoofed: u64,
    /// For another address than ours, a broadcast, or a protocol that is not spoken here (IPv6 for example).
    pub not_for_us: u64,
    /// Fragments without the rest, or more unfinished datagrams than are kept.
    pub fragments: u64,
    /// Datagrams for a port that has no flow.
    pub unknown_flow: u64,
    /// Datagrams for a flow whose reader is too slow.
    pub flow_full: u64,
    /// Datagrams and replies for a guest that does not take its frames.
    pub outbox_full: u64,
    /// Panics of the TCP state machine; each ended one connection.
    pub stack_faults: u64,
}
