//! Tap mode: the daemon on a host of its own, which is a network namespace, and clients on another.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::chance::{Chance, count};
use crate::small::{LOOK, PATIENCE, say, text};
use crate::spaces::{Spaces, ip, may_run, tcp_count};
use crate::wire;
use crate::world::{HELLO, World};

/// Clients that find their service asleep, in the short form; as many come in the test of the activator alone.
const WAKES: usize = 30;
/// A client that was served within this time must not have had to send its SYN twice: TCP does so after a second.
const PROMPT: Duration = Duration::from_millis(900);
/// Within this time of the last client the next one comes, if it comes at any moment.
const ANY_MOMENT_MS: u64 = 1_200;
/// Within this time of a capture's beginning it comes, if it comes in the middle of one.
const CAPTURE_MS: u64 = 20;
/// Longest wait for such a moment.
const MOMENT_MAX: Duration = Duration::from_secs(5);
/// The host's own address, where its DNS is asked.
const DNS: &str = "192.0.2.1";
const ECHO: u16 = 7_007;

/// What a service sleeps as, which is its name as well, in the order of the addresses.
const RUNGS: [&str; 3] = ["armed", "local", "paused"];

/// The `number`th service's addresses.
fn addresses(number: usize) -> [IpAddr; 2] {
    let number = u8::try_from(number + 1).unwrap();
    let v4 = Ipv4Addr::new(10, 64, 0, number);
    [v4.into(), format!("fd64:5245:56::a40:{number:x}").parse().unwrap()]
}

/// A daemon in tap mode, of the calling thread's namespace.
fn world() -> World {
    let world = World::new();
    let listen = format!("[\"{}\", \"{DNS}:5300\"]", world.dns());
    world
        .set("net", "mode", "\"tap\"")
        // Far more often than anybody would have it: no test may notice.
        .set("health", "interval_ms", 100)
        .set("dns", "listen", listen)
        .set("relay", "pool", "\"10.64.0.0/16\"")
        .set("relay", "pool6", "\"fd64:5245:56::/64\"")
}

// --- First packets -------------------------------------------------------------------------------------------------

#[test]
fn clients_elsewhere_are_all_served_by_their_first_packet() {
    if !may_run("a daemon in tap mode") {
        return;
    }
    let (wakes, chance) = (count("REVEILLE_TEST_TAP_WAKES", WAKES), Chance::new("tap"));
    let spaces = Spaces::new();
    spaces.on_host(|| {
        let mut world = RUNGS.iter().fold(world().policy("idle_ms", 300), |world, rung| {
            let service = HELLO.replace("hello", rung);
            world.service(&format!("{service}policy = {{ rest = \"{rung}\" }}\n"))
        });
        world.restart();
        let mut clients =
            Clients { world: &world, spaces: &spaces, chance: &chance, tally: Tally::default() };
        for number in 0..RUNGS.len() {
            clients.boot(number);
        }
        while clients.tally.wakes < wakes {
            clients.come();
        }
        let tally = clients.tally;
        say(&format!("{tally:?}; none lost, no SYN sent twice"));
        let few = wakes < WAKES;
        assert!(few || tally.from.iter().all(|count| *count > 0), "not every rung was woken from: {tally:?}");
        world.stop();
        assert_eq!(world.vms(), []);
        let links = ip("-o link");
        assert!(!links.contains(": rv"), "devices are left: {links}");
        assert_eq!(nft("list ruleset"), "");
    });
}

#[derive(Debug, Default)]
struct Tally {
    clients: usize,
    wakes: usize,
    /// Wakes from each of the rungs.
    from: [usize; RUNGS.len()],
    in_captures: usize,
    slow: usize,
    slowest: Duration,
}

struct Clients<'a> {
    world: &'a World,
    spaces: &'a Spaces,
    chance: &'a Chance,
    tally: Tally,
}

impl Clients<'_> {
    /// A client that may have to wait for long, such as for a cold boot.
    fn boot(&self, number: usize) {
        let at = SocketAddr::new(addresses(number)[0], ECHO);
        let echoed = self.spaces.on_client(|| over_tcp(at, "first"));
        echoed.unwrap_or_else(|error| panic!("{}: {error}", RUNGS[number]));
    }

    /// A client comes at some moment to some service.
    fn come(&mut self) {
        let number = self.draw(RUNGS.len());
        let (name, family, is_tcp) = (RUNGS[number], self.draw(2), self.draw(2) == 0);
        let in_capture = match self.draw(3) {
            0 => self.in_a_capture(number),
            1 => self.asleep(name),
            _ => {
                std::thread::sleep(self.chance.pause(ANY_MOMENT_MS));
                false
            }
        };
        let address = addresses(number)[family];
        let shown = self.world.show(&format!("{name}.vm.test"));
        let (what, by_name) = (format!("client {}", self.tally.clients), self.draw(2) == 0);
        let (answer, took, retransmitted) = self.spaces.on_client(|| {
            let before = tcp_count("TCPSynRetrans");
            let began = Instant::now();
            if by_name {
                assert_eq!(resolve(name, family), address.to_string());
            }
            let at = SocketAddr::new(address, ECHO);
            let answer = if is_tcp { over_tcp(at, &what) } else { over_udp(at, &what) };
            (answer, began.elapsed(), tcp_count("TCPSynRetrans") - before)
        });
        let told = format!("{what} of {name} at {address}, TCP {is_tcp}, after {took:?}, it was {shown}");
        assert_eq!(answer.unwrap_or_else(|error| panic!("{error}: {told}")), what, "{told}");
        assert!(took >= PROMPT || retransmitted == 0, "{retransmitted} SYN were sent again: {told}");
        let tally = &mut self.tally;
        tally.clients += 1;
        tally.in_captures += usize::from(in_capture);
        tally.slow += usize::from(took >= PROMPT);
        tally.slowest = tally.slowest.max(took);
        if shown["phase"] != "active" {
            tally.wakes += 1;
        }
        if shown["phase"] == "hibernated"
            && let Some(rung) = RUNGS.iter().position(|rung| shown["rung"] == *rung)
        {
            tally.from[rung] += 1;
        }
    }

    /// Wakes the service and waits until it is being put to sleep, and a moment more.
    fn in_a_capture(&self, number: usize) -> bool {
        let (name, began) = (RUNGS[number], Instant::now());
        self.boot(number);
        while began.elapsed() < MOMENT_MAX {
            if ["draining", "hibernating"].contains(&self.world.phase(&format!("{name}.vm.test")).as_str()) {
                std::thread::sleep(self.chance.pause(CAPTURE_MS));
                return true;
            }
        }
        false
    }

    /// Waits until it sleeps as it is to.
    fn asleep(&self, name: &str) -> bool {
        let asleep = |shown: &serde_json::Value| shown["phase"] == "hibernated" && shown["rung"] == *name;
        self.world.until_shown(&format!("{name}.vm.test"), "it to sleep on its rung", asleep);
        false
    }

    fn draw(&self, count: usize) -> usize {
        usize::try_from(self.chance.below(u64::try_from(count).unwrap())).unwrap()
    }
}

/// The address of a service, as dig prints it.
fn resolve(name: &str, family: usize) -> String {
    let server = format!("@{DNS}");
    let arguments = [&server, "-p", "5300", "+short", "+tries=1", "+timeout=10", "+nocookie"];
    let name = format!("{name}.vm.test");
    let output = Command::new("dig").args(arguments).args([&name, ["A", "AAAA"][family]]).output();
    text(&output.expect("dig is missing; `make test` installs it").stdout).trim().to_owned()
}

fn over_tcp(at: SocketAddr, what: &str) -> io::Result<String> {
    exchange(&wire::connect(at)?, what)
}

fn over_udp(at: SocketAddr, what: &str) -> io::Result<String> {
    let socket = UdpSocket::bind(if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(at)?;
    // Once: what is lost stays lost.
    socket.send(what.as_bytes())?;
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer)?;
    Ok(text(&answer[..length]))
}

/// Says something and hears it back.
fn exchange(mut stream: &TcpStream, what: &str) -> io::Result<String> {
    stream.write_all(what.as_bytes())?;
    let mut answer = vec![0; what.len()];
    stream.read_exact(&mut answer)?;
    Ok(text(&answer))
}

/// What nftables has in this namespace.
fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output();
    text(&output.expect("nftables is missing; `make test` installs it").stdout)
}

// --- Without the daemon --------------------------------------------------------------------------------------------

#[test]
fn connections_outlive_the_daemon_and_the_sleep_of_their_guest() {
    if !may_run("a daemon in tap mode that is killed") {
        return;
    }
    let spaces = Spaces::new();
    spaces.on_host(|| {
        let policy = "egress = \"nat\"\negress_deny = [\"198.51.100.0/24\"]\n";
        let mut world = world().service(&format!("{HELLO}{policy}")).start();
        let nonce = world.try_page(addresses(0)[0]).unwrap().nonce;
        let open: Vec<TcpStream> = spaces.on_client(|| {
            let at = addresses(0).map(|address| SocketAddr::new(address, ECHO));
            at.iter().map(|at| wire::connect(*at).unwrap()).collect()
        });
        let all_answer = |when: &str| {
            for stream in &open {
                let peer = stream.peer_addr().unwrap();
                assert_eq!(exchange(stream, when).unwrap_or_else(|e| panic!("{when}, {peer}: {e}")), when);
            }
        };
        all_answer("before");
        world.kill9();
        all_answer("without a daemon");
        let ways = nft("list chain inet reveille w0a400001");
        assert!(
            ways.contains("198.51.100.0/24") && ways.contains("accept"),
            "it is limited all the same: {ways}"
        );
        let newcomer = spaces.on_client(|| over_tcp(SocketAddr::new(addresses(0)[1], ECHO), "new"));
        assert_eq!(newcomer.unwrap(), "new", "who runs is reached by anybody");
        world.restart();
        world.until_phase("hello.vm.test", "active");
        all_answer("with the next daemon");
        assert_eq!(world.try_page(addresses(0)[0]).unwrap().nonce, nonce);

        world.json(&["hibernate", "hello", "--force"]);
        world.until_phase("hello.vm.test", "hibernated");
        world.kill9();
        world.restart();
        std::thread::sleep(LOOK);
        all_answer("after a sleep, and a third daemon");
        assert_eq!(world.try_page(addresses(0)[0]).unwrap().nonce, nonce);
    });
}
