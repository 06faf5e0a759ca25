//! What a service answers, and what wakes it, while no guest is there.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use reveille_core::model::{Gate, InstanceId};
use reveille_net::tap::TapError;
use reveille_net::{RelayEvent, RelayEvents};

use crate::guest::{GUEST, PORT, V4, V6, binding, open_taps, open_taps_on, run_on_host, service};
use crate::spaces::{Spaces, ip, may_run};

/// Another instance of the same service.
const OTHER: InstanceId = InstanceId(18);
/// Longest wait for an answer.
const LONG: Duration = Duration::from_secs(10);
/// Time in which nothing may happen.
const QUIET: Duration = Duration::from_millis(300);

async fn wanted(events: &mut RelayEvents) -> SocketAddr {
    match tokio::time::timeout(LONG, events.recv()).await.unwrap().unwrap() {
        RelayEvent::Wanted { client, .. } => client,
        other @ (RelayEvent::FirstByte { .. } | RelayEvent::Idle { .. }) => panic!("{other:?}"),
    }
}

fn udp(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LONG))?;
    socket.send(b"is anybody there?")?;
    Ok(socket)
}

#[test]
fn who_cannot_be_served_is_told_so_at_once_and_wakes_nobody() {
    if !may_run("refusals of a holder") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let (taps, mut events) = open_taps();
        taps.bind(&binding()).unwrap();
        let refused = |port: u16| {
            for address in [IpAddr::V4(V4), IpAddr::V6(V6)] {
                let to = SocketAddr::new(address, port);
                let tcp = TcpStream::connect_timeout(&to, LONG).unwrap_err();
                assert_eq!(tcp.kind(), io::ErrorKind::ConnectionRefused, "{to}");
                let error = udp(to).unwrap().recv(&mut [0; 10]).unwrap_err();
                // "Port unreachable", or "administratively prohibited", which a socket is told otherwise.
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "udp to {to}: {error}");
            }
        };
        // A port that the service does not have.
        spaces.on_client(|| refused(PORT + 1));
        for address in [V4.to_string(), V6.to_string()] {
            let ping = format!("netns exec {} ping -c 1 -W 5 {address}", spaces.client());
            if std::path::Path::new("/bin/ping").exists() || std::path::Path::new("/usr/bin/ping").exists() {
                ip(&ping);
            }
        }
        tokio::time::sleep(QUIET).await;
        assert_eq!(events.try_recv(), None);

        taps.set_gate(&service(), Gate::Refuse);
        spaces.on_client(|| refused(PORT));
        assert_eq!(events.try_recv(), None);
        let traffic = taps.traffic(&service()).unwrap();
        assert_eq!((traffic.refused, traffic.datagrams_refused), (4, 4));

        // Who waits when the service turns out not to wake is told then.
        taps.set_gate(&service(), Gate::Hold);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                spaces.on_client(|| TcpStream::connect_timeout(&SocketAddr::new(V4.into(), PORT), LONG))
            });
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(wanted(&mut events));
            });
            assert_eq!(taps.traffic(&service()).unwrap().held_clients, 1);
            taps.set_gate(&service(), Gate::Refuse);
            assert_eq!(client.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn over_its_limit_a_service_refuses_and_counts() {
    if !may_run("limits of a holder") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let (taps, mut events) = open_taps();
        let mut two = binding();
        two.held_clients_max = 2;
        two.held_ms_max = 60_000;
        taps.bind(&two).unwrap();
        let to = SocketAddr::new(V6.into(), PORT);
        spaces.on_client(|| {
            for _ in 0..2 {
                let waits = TcpStream::connect_timeout(&to, QUIET).unwrap_err();
                assert_eq!(waits.kind(), io::ErrorKind::TimedOut);
            }
            let refused = TcpStream::connect_timeout(&to, LONG).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
        wanted(&mut events).await;
        let traffic = taps.traffic(&service()).unwrap();
        assert_eq!((traffic.held_clients, traffic.over_held_limit), (2, 1));
    });
}

#[test]
fn who_has_waited_for_too_long_is_refused() {
    if !may_run("a holder's time limit") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let (taps, _events) = open_taps();
        let mut short = binding();
        short.held_ms_max = 200;
        taps.bind(&short).unwrap();
        spaces.on_client(|| {
            let to = SocketAddr::new(V4.into(), PORT);
            let refused = TcpStream::connect_timeout(&to, LONG).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
        assert_eq!(taps.traffic(&service()).unwrap().expired, 1);
    });
}

#[test]
fn a_new_daemon_takes_over_the_device_of_a_guest_that_runs() {
    if !may_run("adopting a guest's device") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let devices = || ip(&format!("-n {} -br link show type tun", spaces.host()));
        let (taps, _events) = open_taps();
        taps.bind(&binding()).unwrap();
        taps.guard().unwrap();
        assert!(matches!(taps.bind(&binding()), Err(TapError::AlreadyBound(_))));
        // As QEMU has it, which outlives the daemon.
        let qemu = taps.queue(&service(), GUEST).unwrap();
        let routes = || ip(&format!("-n {} route show proto 82", spaces.host()));
        taps.unbind(&service()).await;
        drop((taps, _events));
        assert_eq!(devices().lines().count(), 1, "{}", devices());
        // Without a daemon packets go to the guest.
        assert!(routes().contains("rvg") && !routes().contains("rvh"), "{}", routes());

        let (taps, mut events) = open_taps();
        taps.bind(&binding()).unwrap();
        taps.guard().unwrap();
        assert_eq!(devices().lines().count(), 2, "{}", devices());
        taps.queue(&service(), GUEST).expect_err("one process at a time");
        taps.set_gate(&service(), Gate::Open);
        assert!(!routes().contains("rvh"), "{}", routes());
        let probe = spaces.on_client(|| udp(SocketAddr::new(V4.into(), PORT))).unwrap();
        let mut frame = [0; 2_000];
        let began = std::time::Instant::now();
        while !rustix::io::read(&qemu, &mut frame)
            .is_ok_and(|length| frame[..length].windows(17).any(|bytes| bytes == b"is anybody there?"))
        {
            assert!(began.elapsed() < LONG, "the datagram did not come to the guest");
        }
        drop(probe);
        assert_eq!(events.try_recv(), None);

        // It ends: its device goes with it, and the next process gets a new one.
        taps.set_gate(&service(), Gate::Hold);
        drop(qemu);
        let _next = taps.queue(&service(), GUEST).unwrap();
        assert_eq!(devices().lines().count(), 2, "{}", devices());
        taps.set_gate(&service(), Gate::Open);
        taps.set_gate(&service(), Gate::Hold);
        taps.unbind(&service()).await;
    });
}

#[test]
fn two_instances_never_have_the_same_device() {
    if !may_run("sharing a guest's device") {
        return;
    }
    let spaces = Spaces::new();
    run_on_host(&spaces, async {
        let (taps, _events) = open_taps();
        taps.bind(&binding()).unwrap();
        taps.guard().unwrap();
        let _device = taps.queue(&service(), GUEST).unwrap();
        let refusal = taps.queue(&service(), OTHER).expect_err("it would have the same addresses");
        assert_eq!(refusal.to_string(), "i17 of the same service has its device");
        // That one failed to start; the first goes on, and is started again.
        taps.release(&service(), OTHER);
        taps.queue(&service(), OTHER).expect_err("the first has it");
        taps.queue(&service(), GUEST).unwrap();
        taps.release(&service(), GUEST);
        taps.queue(&service(), OTHER).unwrap();
        taps.unbind(&service()).await;
    });
}

#[test]
fn neighbours_on_the_bridge_find_services_without_a_route() {
    if !may_run("services among neighbours") {
        return;
    }
    let spaces = Spaces::new();
    let (host, client) = (spaces.host(), spaces.client());
    // The client looks for both on the wire itself.
    ip(&format!("-n {client} route del default"));
    ip(&format!("-n {client} -6 route del default"));
    ip(&format!("-n {client} route add {V4}/32 dev wire"));
    ip(&format!("-n {client} -6 route add {V6}/128 dev wire"));
    let answered_for = || ip(&format!("-n {host} neigh show proxy")).lines().count();
    run_on_host(&spaces, async {
        let fault = open_taps_on(Some("nowhere")).err().unwrap().to_string();
        assert!(fault.contains("`nowhere` (net.bridge)"), "{fault}");

        let (taps, mut events) = open_taps_on(Some("wire")).unwrap();
        taps.bind(&binding()).unwrap();
        for address in [IpAddr::V4(V4), IpAddr::V6(V6)] {
            let asked =
                spaces.on_client(|| udp(SocketAddr::new(address, PORT)).unwrap().local_addr().unwrap());
            assert_eq!(wanted(&mut events).await.ip(), asked.ip());
            // So that the next one is wanted too.
            taps.set_gate(&service(), Gate::Refuse);
            taps.set_gate(&service(), Gate::Hold);
        }
        assert_eq!(answered_for(), 2);
        taps.unbind(&service()).await;
        assert_eq!(answered_for(), 0);

        // As after a kill: what is left is taken away by the next one.
        taps.bind(&binding()).unwrap();
        drop(taps);
        assert_eq!(answered_for(), 2);
        let (_taps, _events) = open_taps();
        assert_eq!(answered_for(), 0);
    });
}
