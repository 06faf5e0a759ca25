//! What the relay tells the control loop, without ever waiting for it.
//!
//! Of each kind at most one event per service is under way. The flag that says so is cleared when the receiver
//! takes the event, so whatever happens after that raises the next one and nothing is forgotten. This bounds the
//! channel by three events per service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use reveille_core::model::{DomainName, PortSpec};
use tokio::sync::mpsc;

/// What happened at a service's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// A client waits for the service.
    Wanted {
        /// The service.
        service: DomainName,
        /// Who waits.
        client: SocketAddr,
        /// The port that was addressed.
        port: PortSpec,
        /// When it arrived.
        at: Instant,
    },
    /// The first byte or datagram came back after the gate opened.
    FirstByte {
        /// The service.
        service: DomainName,
        /// When it passed the relay.
        at: Instant,
    },
    /// The last open connection closed.
    Idle {
        /// The service.
        service: DomainName,
    },
}

/// The receiving end, for one control loop.
#[derive(Debug)]
pub struct RelayEvents {
    // Unbounded by type, bounded by the flags.
    queue: mpsc::UnboundedReceiver<UnderWay>,
}

impl RelayEvents {
    /// Waits for the next event; `None` once the relay and all its tasks are gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<RelayEvent> {
        self.queue.recv().await.map(UnderWay::take)
    }

    /// As [`RelayEvents::recv`], for who waits for several things.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<RelayEvent>> {
        self.queue.poll_recv(context).map(|event| event.map(UnderWay::take))
    }

    /// The next event, if one is there.
    pub fn try_recv(&mut self) -> Option<RelayEvent> {
        self.queue.try_recv().ok().map(UnderWay::take)
    }
}

#[derive(Debug)]
struct UnderWay {
    event: RelayEvent,
    flag: Arc<AtomicBool>,
}

impl UnderWay {
    fn take(self) -> RelayEvent {
        self.flag.store(false, Ordering::SeqCst);
        self.event
    }
}

/// The sending end, from which each service gets its own.
#[derive(Debug, Clone)]
pub struct EventSender(mpsc::UnboundedSender<UnderWay>);

fn now() -> Instant {
    // The timers' clock, which may be simulated.
    tokio::time::Instant::now().into_std()
}

/// The two ends.
pub fn channel() -> (EventSender, RelayEvents) {
    let (sender, queue) = mpsc::unbounded_channel();
    (EventSender(sender), RelayEvents { queue })
}

/// One service's sending end.
#[derive(Debug)]
pub struct ServiceEvents {
    service: DomainName,
    sender: EventSender,
    wanted: Arc<AtomicBool>,
    first_byte: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
}

impl ServiceEvents {
    /// The service's.
    pub fn new(service: DomainName, sender: EventSender) -> Self {
        let flag = || Arc::new(AtomicBool::new(false));
        Self { service, sender, wanted: flag(), first_byte: flag(), idle: flag() }
    }

    /// A client waits.
    pub fn wanted(&self, client: SocketAddr, port: PortSpec) {
        let service = || self.service.clone();
        self.send(&self.wanted, || RelayEvent::Wanted { service: service(), client, port, at: now() });
    }

    /// The first byte came back.
    pub fn first_byte(&self) {
        let service = || self.service.clone();
        self.send(&self.first_byte, || RelayEvent::FirstByte { service: service(), at: now() });
    }

    /// The last open connection closed.
    pub fn idle(&self) {
        self.send(&self.idle, || RelayEvent::Idle { service: self.service.clone() });
    }

    fn send(&self, flag: &Arc<AtomicBool>, event: impl FnOnce() -> RelayEvent) {
        if !flag.swap(true, Ordering::SeqCst) {
            // A control loop that is gone needs no events.
            let _ = self.sender.0.send(UnderWay { event: event(), flag: Arc::clone(flag) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_of_a_kind_is_under_way_until_it_is_taken() {
        let (sender, mut events) = channel();
        let service: DomainName = "hello.vm.test".parse().unwrap();
        let ours = ServiceEvents::new(service.clone(), sender.clone());
        let other = ServiceEvents::new("echo.vm.test".parse().unwrap(), sender);
        let client = "127.0.0.1:1".parse().unwrap();
        let port = "tcp/80".parse().unwrap();
        for _ in 0..100 {
            ours.wanted(client, port);
            other.wanted(client, port);
            ours.idle();
        }
        assert!(matches!(events.try_recv(), Some(RelayEvent::Wanted { service: s, .. }) if s == service));
        ours.wanted(client, port);
        assert!(matches!(events.try_recv(), Some(RelayEvent::Wanted { service: s, .. }) if s != service));
        assert!(matches!(events.try_recv(), Some(RelayEvent::Idle { .. })));
        assert!(matches!(events.try_recv(), Some(RelayEvent::Wanted { service: s, .. }) if s == service));
        assert_eq!(events.try_recv(), None);
    }
}
