//! Any bytes as a packet on the fast way: it leaves them to the general way, or says the same.

use reveille_dns::fuzz::fast;
use reveille_dns::{Origin, Transport, respond};

use crate::message::Message;
use crate::world::{NOW, VIEW, peer, setting};

/// The packet of a question.
pub fn run(packet: &[u8]) {
    let Some(answer) = fast(&VIEW, packet, NOW) else { return };
    let mut general = Vec::new();
    respond(&setting(&VIEW), packet, &Origin::new(peer(), Transport::Udp), &mut general);
    let read = |bytes: &[u8]| {
        Message::parse(bytes).unwrap_or_else(|why| panic!("{why}: {packet:02x?} {bytes:02x?}"))
    };
    assert_eq!(read(&answer), read(&general), "{packet:02x?}");
}
