use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::events::channel;

fn gate(now: Now) -> ServiceGate {
    let limits = ServiceLimits {
        held_clients_max: 10,
        connections_max: 10,
        held_max: Duration::from_secs(60),
        half_closed_max: Duration::from_secs(60),
        udp_idle: Duration::from_secs(60),
        udp_sessions_max: 10,
        datagrams: HeldLimits {
            client_datagrams: 10,
            client_bytes: 1_000,
            service_datagrams: 10,
            service_bytes: 1_000,
        },
    };
    let (sender, _) = channel();
    ServiceGate::new(limits, ServiceEvents::new("hello.vm.test".parse().unwrap(), sender), now)
}

/// Threads pass all the time while another closes and opens the gate: between the return of a successful close and
/// the next opening nobody is inside.
#[test]
fn nobody_is_inside_a_closed_gate() {
    const CLOSES: u32 = 20_000;
    // A clock on which nothing is ever recent, so that only those inside keep the gate open.
    let gate = gate(Arc::new(|| Timestamp::from_ms(1)));
    let (closed, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut successes, mut refusals) = (0, 0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    if let Some(_pass) = gate.pass() {
                        for _ in 0..20 {
                            assert!(!closed.load(Ordering::SeqCst), "inside a closed gate");
                            std::hint::spin_loop();
                        }
                        gate.note_packet();
                    }
                    thread::yield_now();
                }
            });
        }
        gate.set(Gate::Open);
        while successes < CLOSES {
            let force = successes % 7 == 0;
            if gate.close_if_idle(0, force).is_ok() {
                closed.store(true, Ordering::SeqCst);
                for _ in 0..50 {
                    std::hint::spin_loop();
                }
                closed.store(false, Ordering::SeqCst);
                gate.set(Gate::Open);
                successes += 1;
            } else {
                refusals += 1;
                thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(gate.word.load(Ordering::SeqCst), OPEN, "{refusals} refusals");
}

#[test]
fn a_packet_within_the_idle_time_keeps_the_gate_open() {
    let time = Arc::new(AtomicU64::new(1_000));
    let clock = Arc::clone(&time);
    let gate = gate(Arc::new(move || Timestamp::from_ms(clock.load(Ordering::SeqCst))));
    gate.set(Gate::Open);
    drop(gate.pass());
    gate.note_packet();
    time.store(1_999, Ordering::SeqCst);
    let busy = Busy { open_connections: 0, last_packet: Timestamp::from_ms(1_000) };
    assert_eq!(gate.close_if_idle(1_000, false), Err(busy));
    assert!(gate.pass().is_some(), "a gate that was not closed lets through");
    time.store(2_000, Ordering::SeqCst);
    assert_eq!(gate.close_if_idle(1_000, false), Ok(()));
    assert!(gate.pass().is_none());
    assert_eq!(gate.close_if_idle(5_000, false), Ok(()), "closing again is harmless");
}
