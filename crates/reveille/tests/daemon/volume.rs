//! Demand behind the caches of resolvers, as an operator sees it: raw, corrected, and how sure that is. No virtual machine is
//! started; the service has no image.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::Place;

/// TTL of the answers.
const TTL: Duration = Duration::from_secs(1);

/// A resolver with many clients: it asks as soon as what it has cached is over.
struct Resolver {
    socket: UdpSocket,
    cached_until: Instant,
}

impl Resolver {
    fn new(place: &Place, number: u8) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 77, number, 1], 0))).unwrap();
        socket.connect(place.dns).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, cached_until: Instant::now() }
    }

    fn ask_if_expired(&mut self) {
        if Instant::now() < self.cached_until {
            return;
        }
        let question = b"\x05hello\x02vm\x04test\0\0\x01\0\x01";
        let packet = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &question[..]].concat();
        self.socket.send(&packet).unwrap();
        let mut answer = [0; 512];
        let length = self.socket.recv(&mut answer).unwrap();
        let ttl = &answer[..length][packet.len() + 6..packet.len() + 10];
        assert_eq!(ttl, [0, 0, 0, 1], "{answer:?}");
        self.cached_until = Instant::now() + TTL;
    }
}

#[test]
fn what_resolvers_answer_from_their_caches_is_put_back_and_shown_beside_what_was_asked() {
    let place = Place::new();
    place.config(
        "[gate.wake]\nmode = \"off\"\n[policy]\nttl_asleep_s = 1\n[[zone]]\nname = \"vm.test\"\n\
         [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n",
    );
    let _daemon = place.daemon();
    let mut resolvers: Vec<Resolver> = (1..=20).map(|number| Resolver::new(&place, number)).collect();

    // Nearly always something is cached: far more clients wanted it than are seen.
    let shown = place.found("what queries stand for", || {
        resolvers.iter_mut().for_each(Resolver::ask_if_expired);
        let shown = place.json(&["service", "show", "hello"])["queries"].clone();
        shown["arrivals"].is_object().then_some(shown)
    });
    let count = |of: &Value, what: &str| of[what].as_u64().unwrap();
    let (asked, arrivals) = (count(&shown, "last_minute"), &shown["arrivals"]);
    assert!(count(arrivals, "estimate") > 2 * asked, "{shown}");
    let ends = ["low_95", "low_80", "estimate", "high_80", "high_95"].map(|what| count(arrivals, what));
    assert!(ends.is_sorted() && ends[0] < ends[4], "{shown}");
    assert_eq!(count(arrivals, "window_resolvers"), 20, "{shown}");

    // Both are in the history, and shown where names are.
    let sum = |demand: &Value, what: &str| -> f64 {
        demand["steps"].as_array().unwrap().iter().map(|step| step[what].as_f64().unwrap()).sum()
    };
    place.until("both are recorded", || {
        resolvers.iter_mut().for_each(Resolver::ask_if_expired);
        let demand = place.json(&["demand", "service", "hello", "--hours", "1"]);
        demand["per_thousand_queries"].is_object() && sum(&demand, "demand") > 1.2 * sum(&demand, "queries")
    });
    let text = place.run_once(&["dns"]).unwrap();
    assert!(text.contains("STAND FOR CLIENTS (95 %)"), "{text}");
    let text = place.run_once(&["service", "show", "hello"]).unwrap();
    assert!(text.contains("with caches put back"), "{text}");
}
