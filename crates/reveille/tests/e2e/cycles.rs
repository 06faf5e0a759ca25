//! Sleeping and waking over and over, with clients that arrive at random moments, also in the middle of it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chance::{Chance, count};
use crate::small::say;
use crate::wire;
use crate::world::{HELLO, World};

/// Within this time of a round's beginning its clients come.
const ROUND_MS: u64 = 500;
/// Within this time its order to sleep comes.
const ORDER_MS: u64 = 50;
/// One round in so many has a client that waits for the service to go to sleep.
const LURKERS_EVERY: u64 = 3;
/// Bytes that a TCP client has echoed at most.
const ECHO_BYTES_MAX: u64 = 200_000;
/// In so many rounds for each cycle that is wanted, enough must have slept.
const ROUNDS_PER_CYCLE_MAX: usize = 20;

#[test]
fn no_client_is_lost_whenever_it_comes() {
    let wanted = count("REVEILLE_TEST_CYCLES", 10);
    let chance = Chance::new("cycles");
    let world = World::new().policy("idle_ms", 300).service(HELLO).start();
    let nonce = world.page().nonce;
    let clients = Clients {
        world: &world,
        chance: &chance,
        nonce: &nonce,
        old_socket: wire::udp(),
        served: AtomicU64::new(0),
    };
    let (mut rounds, mut cycles) = (0, 0);
    while cycles < wanted {
        rounds += 1;
        assert!(rounds <= wanted * ROUNDS_PER_CYCLE_MAX, "only {cycles} cycles in {rounds} rounds");
        clients.round();
        cycles = clients.cycles();
    }
    let stayed = world.log().matches("stays awake").count();
    let served = clients.served.load(Ordering::Relaxed);
    say(&format!(
        "{cycles} cycles in {rounds} rounds: {served} clients served, none lost, {stayed} hibernations turned back, \
         nonce unchanged"
    ));
    assert_eq!(world.page().nonce, nonce);
}

struct Clients<'a> {
    world: &'a World,
    chance: &'a Chance,
    nonce: &'a str,
    /// A client that keeps its port over all the sleeps.
    old_socket: UdpSocket,
    served: AtomicU64,
}

impl Clients<'_> {
    /// One client of each kind and an operator, each at a moment of its own.
    fn round(&self) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.operator());
            let browser = if self.chance.below(LURKERS_EVERY) == 0 { Self::lurker } else { Self::browser };
            for client in [browser, Self::echo_tcp, Self::echo_udp, Self::echo_udp_again] {
                scope.spawn(move || {
                    client(self);
                    self.served.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
    }

    /// Wakes from a version that became ready.
    fn cycles(&self) -> usize {
        let wakes = self.world.wakes("hello");
        wakes.iter().filter(|wake| wake["from"] == "local" && wake["outcome"] == "ready").count()
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.world.address(1).into(), port)
    }

    fn operator(&self) {
        std::thread::sleep(self.chance.pause(ORDER_MS));
        let asked = self.world.ask("POST", "/v1/services/hello/hibernate").unwrap();
        // Refused while somebody is connected.
        assert!([200, 202, 409].contains(&asked.status), "{asked:?}");
    }

    fn browse(&self) {
        let page = self.world.try_page(self.world.address(1)).unwrap_or_else(|error| panic!("GET: {error}"));
        assert_eq!(page.nonce, self.nonce);
    }

    fn browser(&self) {
        std::thread::sleep(self.chance.pause(ROUND_MS));
        self.browse();
    }

    /// Comes when it sees the service go to sleep, or in the end.
    fn lurker(&self) {
        let until = std::time::Instant::now() + self.chance.pause(3 * ROUND_MS);
        while std::time::Instant::now() < until {
            if ["draining", "hibernating"].contains(&self.world.phase("hello").as_str()) {
                break;
            }
            std::thread::sleep(self.chance.pause(10));
        }
        self.browse();
    }

    fn echo_tcp(&self) {
        let length = usize::try_from(self.chance.below(ECHO_BYTES_MAX)).unwrap();
        let first = self.chance.below(251);
        let bytes: Vec<u8> = (first..).map(|n| u8::try_from(n % 251).unwrap()).take(length).collect();
        std::thread::sleep(self.chance.pause(ROUND_MS));
        wire::echo_tcp(self.at(7_007), &bytes)
            .unwrap_or_else(|error| panic!("TCP echo of {length}: {error}"));
    }

    fn echo_udp(&self) {
        self.echo_over(&wire::udp());
    }

    fn echo_udp_again(&self) {
        self.echo_over(&self.old_socket);
    }

    fn echo_over(&self, socket: &UdpSocket) {
        std::thread::sleep(self.chance.pause(ROUND_MS));
        let bytes = self.chance.below(u64::MAX).to_be_bytes();
        wire::echo_udp(socket, self.at(7_007), &bytes).unwrap_or_else(|error| panic!("UDP echo: {error}"));
    }
}
