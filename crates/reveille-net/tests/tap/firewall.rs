//! Guests that do not keep to themselves: with addresses that are not theirs, and towards whom they have no business.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use reveille_net::tap::{EgressPolicy, HOST_MAC, TapAddresses, TapBinding, Taps};

use crate::guest::{GUEST, Guest, PORT, binding, open_taps, open_taps_on, run_on_host};
use crate::spaces::{Spaces, inside, ip, may_run};

/// Does what it is sent as Perl, and answers with the outcome.
const INIT: &str = r#"#!/.reveille/busybox sh
exec /usr/bin/perl -e '
use Socket;
socket(my $s, PF_INET6, SOCK_STREAM, 0) or die "socket: $!";
setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
bind($s, pack_sockaddr_in6(7007, Socket::IN6ADDR_ANY)) or die "bind: $!";
listen($s, 100) or die "listen: $!";
for (;;) {
    accept(my $c, $s) or next;
    my $code = "";
    while (sysread($c, my $more, 65536)) { $code .= $more }
    my $outcome = eval $code;
    syswrite($c, defined $outcome ? $outcome : "failed: $@ $!");
    close $c;
}
'
"#;
/// What guests would like to reach.
const ASKED: u16 = 9_000;
const CLIENT: &str = "192.0.2.2";
const CLIENT6: &str = "2001:db8:1::2";
const HOST: &str = "192.0.2.1";
const HOST6: &str = "2001:db8:1::1";
const METADATA: &str = "169.254.169.254";

fn guest(number: u8) -> TapBinding {
    let v6 = format!("2001:db8:2::{number:x}").parse().unwrap();
    let addresses = TapAddresses { v4: [198, 51, 100, number].into(), v6: Some(v6) };
    TapBinding { service: format!("g{number}.vm.test").parse().unwrap(), addresses, ..binding() }
}

/// Has a guest run `code`, which must end.
fn have(spaces: &Spaces, guest: &TapBinding, code: &str) -> String {
    spaces.on_client(|| {
        let at = SocketAddr::new(guest.addresses.v4.into(), PORT);
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(20)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(code.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

/// Perl that sends frames as they are.
fn send_frames(frames: &[Vec<u8>]) -> String {
    let texts: Vec<String> = frames.iter().map(|frame| format!("\"{}\"", hex(frame))).collect();
    format!(
        r#"open my $f, "<", "/sys/class/net/eth0/ifindex"; my $index = <$f>;
        socket(my $raw, 17, SOCK_RAW, 0) or die "raw: $!";
        my $to = pack("SnlSCCa8", 17, 0x0800, $index, 1, 0, 6, pack("H*", "{}"));
        for my $frame ({}) {{ defined send($raw, pack("H*", $frame), 0, $to) or die "send: $!" }}
        "sent""#,
        hex(&HOST_MAC),
        texts.join(", ")
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ethernet(from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &from, &kind.to_be_bytes(), content].concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

/// A datagram from `from` to the client, without a UDP checksum in IPv4.
fn datagram(mac: [u8; 6], from: IpAddr, what: &str) -> Vec<u8> {
    let length = u16::try_from(8 + what.len()).unwrap().to_be_bytes();
    let ports = [ASKED.to_be_bytes(), ASKED.to_be_bytes()].concat();
    match from {
        IpAddr::V4(from) => {
            let to: std::net::Ipv4Addr = CLIENT.parse().unwrap();
            let total = u16::try_from(28 + what.len()).unwrap().to_be_bytes();
            let mut head =
                [&[0x45, 0][..], &total, &[0, 0, 0, 0, 64, 17, 0, 0], &from.octets(), &to.octets()].concat();
            let sum = checksum(&head);
            head[10..12].copy_from_slice(&sum);
            ethernet(mac, 0x0800, &[&head[..], &ports, &length, &[0, 0], what.as_bytes()].concat())
        }
        IpAddr::V6(from) => {
            let to: std::net::Ipv6Addr = CLIENT6.parse().unwrap();
            let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, 17]].concat();
            let sum = checksum(&[&pseudo[..], &ports, &length, &[0, 0], what.as_bytes()].concat());
            let head = [&[0x60, 0, 0, 0][..], &length, &[17, 64], &from.octets(), &to.octets()].concat();
            ethernet(mac, 0x86dd, &[&head[..], &ports, &length, &sum, what.as_bytes()].concat())
        }
    }
}

/// An ARP answer that nobody asked for.
fn arp(ethernet_mac: [u8; 6], mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let content = [&head[..], &mac, &ip, &HOST_MAC, &[169, 254, 1, 1]].concat();
    ethernet(ethernet_mac, 0x0806, &content)
}

/// A neighbour solicitation for the gateway, from whom the host then knows.
fn solicitation(mac: [u8; 6], from: &str) -> Vec<u8> {
    let from: std::net::Ipv6Addr = from.parse().unwrap();
    let to: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    let mut content = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &to.octets(), &[1, 1], &mac].concat();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo[..], &content].concat());
    content[2..4].copy_from_slice(&sum);
    let head = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &from.octets(), &to.octets()].concat();
    ethernet(mac, 0x86dd, &[head, content].concat())
}

async fn boot(taps: &Taps, binding: TapBinding) -> Guest {
    let guest = Guest::of(INIT, taps, binding).await;
    taps.guard().unwrap();
    guest.boot().await;
    guest.open();
    guest
}

fn nat(allow: &[&str], deny: &[&str]) -> EgressPolicy {
    let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    EgressPolicy::Nat { allow: networks(allow), deny: networks(deny), nameserver: None }
}

// --- As somebody else ----------------------------------------------------------------------------------------------

#[test]
fn a_guest_speaks_with_its_own_addresses_alone() {
    if !may_run("guests that spoof") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        // A host that believes everybody.
        for file in ["ipv4/conf/all/arp_accept", "ipv4/conf/default/arp_accept"] {
            std::fs::write(format!("/proc/sys/net/{file}"), "1").unwrap();
        }
        let (taps, _events) = open_taps();
        let own = TapBinding { egress: nat(&[], &[]), ..guest(7) };
        let (mac, v4, v6) = (own.addresses.mac(), own.addresses.v4, own.addresses.v6.unwrap());
        let _guest = boot(&taps, own.clone()).await;
        let other_mac = [0x52, 0x56, 198, 51, 100, 8];
        let [other, client]: [IpAddr; 2] = ["198.51.100.8".parse().unwrap(), CLIENT.parse().unwrap()];
        let other6: IpAddr = "2001:db8:2::8".parse().unwrap();
        let frames = [
            datagram(mac, other, "as another guest"),
            datagram(mac, client, "as the client itself"),
            datagram(mac, "127.0.0.1".parse().unwrap(), "as the host itself"),
            datagram(other_mac, v4.into(), "from another network card"),
            datagram(mac, other6, "as another guest"),
            datagram(mac, "fe80::5056:c6ff:fe33:6407".parse().unwrap(), "from the link"),
            datagram(other_mac, v6.into(), "from another network card"),
            arp(mac, mac, [198, 51, 100, 8]),
            arp(mac, other_mac, [198, 51, 100, 7]),
            arp(mac, mac, [192, 0, 2, 2]),
            solicitation(mac, "2001:db8:2::8"),
            solicitation(mac, "fe80::bad"),
            datagram(mac, v4.into(), "as itself"),
            datagram(mac, v6.into(), "as itself, IPv6"),
        ];
        let heard = spaces.on_client(|| [CLIENT, CLIENT6].map(|own| UdpSocket::bind(at(own)).unwrap()));
        assert_eq!(have(&spaces, &own, &send_frames(&frames)), "sent");
        for (socket, first, from) in [(&heard[0], "as itself", HOST), (&heard[1], "as itself, IPv6", HOST6)] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut buffer = [0; 100];
            let (length, sender) = socket.recv_from(&mut buffer).unwrap();
            // What came earlier would have been heard earlier.
            assert_eq!((&buffer[..length], sender.ip().to_string().as_str()), (first.as_bytes(), from));
        }
        let neighbours = ip("neigh show dev rvgc6336407");
        let strangers: Vec<&str> = neighbours.lines().filter(|line| !line.contains("PERMANENT")).collect();
        let link = "fe80::5056:c6ff:fe33:6407";
        assert!(strangers.iter().all(|line| line.starts_with(link)), "{neighbours}");
        taps.close().await;
    });
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), ASKED)
}

// --- To others -----------------------------------------------------------------------------------------------------

#[test]
fn guests_reach_their_clients_and_whom_their_policy_names() {
    if !may_run("guests that try each other") {
        return;
    }
    let spaces = Spaces::new();
    let client = spaces.client();
    // What a cloud has for its machines, beyond the host.
    ip(&format!("-n {client} address add {METADATA}/32 dev lo"));
    ip(&format!("-n {} route add {METADATA}/32 via {CLIENT}", spaces.host()));
    run_on_host(&spaces, async {
        let (taps, _events) = open_taps();
        let _first = Guest::of(INIT, &taps, guest(7)).await;
        let _second = boot(&taps, guest(8)).await;
        _first.boot().await;
        _first.open();
        let _open = [listen_everywhere(), inside(&client, listen_everywhere)];
        let reached = || {
            let peers = [
                (CLIENT, ASKED),
                (CLIENT6, ASKED),
                (HOST, ASKED),
                (HOST6, ASKED),
                ("169.254.1.1", ASKED),
                (METADATA, ASKED),
                ("198.51.100.8", PORT),
                ("2001:db8:2::8", PORT),
            ];
            let reaches =
                |(peer, port): &(&str, u16)| have(&spaces, &guest(7), &connect(peer, *port)) == "open";
            peers.into_iter().filter(reaches).map(|(peer, _)| peer).collect::<Vec<_>>()
        };
        let service = guest(7).service;
        assert_eq!(reached(), Vec::<&str>::new(), "egress `none`");
        for (allow, deny, expected) in [
            (&[][..], &[][..], &[CLIENT, CLIENT6][..]),
            (&[], &["192.0.2.0/24"], &[CLIENT6]),
            (&["192.0.2.0/24", "198.51.100.0/24", "0.0.0.0/0"], &[], &[CLIENT]),
            (&["198.51.100.8", "2001:db8:2::8"], &[], &["198.51.100.8", "2001:db8:2::8"]),
            (&["198.51.100.8", METADATA, HOST], &["198.51.100.0/24"], &[HOST, METADATA]),
        ] {
            taps.set_egress(&service, &nat(allow, deny)).unwrap();
            assert_eq!(reached(), expected, "allow {allow:?}, deny {deny:?}");
        }
        // Its name server, for names alone, whatever else is allowed.
        let _names = inside(&client, || TcpListener::bind((CLIENT, 53)).unwrap());
        let allow = vec!["203.0.113.0/24".parse().unwrap()];
        let nameserver = Some(CLIENT.parse().unwrap());
        let policy = EgressPolicy::Nat { allow, deny: Vec::new(), nameserver };
        taps.set_egress(&service, &policy).unwrap();
        assert_eq!(have(&spaces, &guest(7), &connect(CLIENT, 53)), "open");
        assert_eq!(reached(), Vec::<&str>::new());
        taps.set_egress(&service, &EgressPolicy::None).unwrap();
        assert_eq!(reached(), Vec::<&str>::new(), "egress `none` again");
        let rules = nft("list tables");
        assert!(rules.contains("table inet reveille") && rules.contains("table arp reveille"), "{rules}");
        drop((_first, _second));
        taps.close().await;
        assert!(!nft("list tables").contains("reveille"), "rules are left");
    });
}

/// Perl that connects, and says whether it could.
fn connect(peer: &str, port: u16) -> String {
    let (family, address) = match peer.parse().unwrap() {
        IpAddr::V4(_) => ("PF_INET", format!("pack_sockaddr_in({port}, Socket::inet_aton(\"{peer}\"))")),
        IpAddr::V6(v6) => {
            let bytes = hex(&v6.octets());
            ("PF_INET6", format!("pack_sockaddr_in6({port}, pack(\"H*\", \"{bytes}\"))"))
        }
    };
    format!(
        r#"socket(my $o, {family}, SOCK_STREAM, 0); local $SIG{{ALRM}} = sub {{ die "alarm" }}; alarm 5;
        my $done = eval {{ connect($o, {address}) }}; alarm 0; $done ? "open" : "closed: $! $@""#
    )
}

fn listen_everywhere() -> TcpListener {
    TcpListener::bind(at("::")).unwrap()
}

fn nft(arguments: &str) -> String {
    let output = std::process::Command::new("nft").args(arguments.split(' ')).output();
    String::from_utf8(output.expect("nftables is missing; `make test` installs it").stdout).unwrap()
}

// --- Whose rules ---------------------------------------------------------------------------------------------------

#[test]
fn rules_of_a_daemon_that_was_killed_are_replaced_and_two_daemons_do_not_share_a_namespace() {
    if !may_run("firewall rules") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let (taps, events) = open_taps();
        taps.bind(&guest(7)).unwrap();
        assert!(
            taps.queue(&guest(7).service, GUEST).is_err(),
            "no process gets a device before it is limited"
        );
        taps.guard().unwrap();
        taps.queue(&guest(7).service, GUEST).unwrap();
        taps.bind(&guest(8)).unwrap();
        let both = nft("list map inet reveille sources");
        assert!(both.contains("rvgc6336407") && both.contains("rvgc6336408"), "{both}");
        taps.unbind(&guest(8).service).await;
        assert!(!nft("list ruleset").contains("c6336408"), "the rules of a guest that is gone are left");
        let second = open_taps_on(None);
        let Err(error) = second else { panic!("two daemons in one namespace") };
        assert!(error.to_string().contains("another Reveille is in tap mode"), "{error}");
        // As a killed daemon: nothing is taken back.
        drop((taps, events));
        assert!(nft("list ruleset").contains("rvgc6336407"));
        // Its tasks end when they next look.
        let limit = Instant::now() + Duration::from_secs(20);
        let (next, _events) = loop {
            match open_taps_on(None) {
                Ok(taps) => break taps,
                Err(error) => assert!(Instant::now() < limit, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        next.bind(&guest(9)).unwrap();
        next.guard().unwrap();
        let rules = nft("list ruleset");
        assert!(!rules.contains("rvgc6336407") && rules.contains("rvgc6336409"), "{rules}");
        next.close().await;
        assert_eq!(nft("list ruleset"), "");
    });
}
