use super::*;

const DEFAULTS: &str = include_str!("../../../../etc/reveille.toml");

#[test]
fn the_file_of_defaults_says_what_the_code_does() {
    let file: toml::Table = DEFAULTS.parse().unwrap();
    let code = toml::Table::try_from(Config::default()).unwrap();
    for (section, values) in &code {
        let Some(values) = values.as_table() else { continue };
        let written = file[section].as_table().unwrap();
        assert_eq!(written, values, "[{section}]");
    }
    assert_eq!(Config::parse(DEFAULTS).unwrap(), Config::default());
}

#[test]
fn the_examples_in_it_are_valid_and_name_every_key() {
    let start = DEFAULTS.find("# [[key]]").unwrap();
    let examples: String = DEFAULTS[start..]
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.contains(" = ") || line.starts_with("[["))
        .map(|line| format!("{line}\n"))
        .collect();
    let config = Config::parse(&examples).unwrap();
    let service = toml::Table::try_from(&config.service[0]).unwrap();
    for key in service.keys() {
        assert!(examples.contains(&format!("\n{key} = ")), "{key} has no example");
    }
    let zone = toml::Table::try_from(&config.zone[0]).unwrap();
    for key in zone.keys() {
        assert!(examples.contains(&format!("\n{key} = ")), "{key} has no example");
    }
    let publish = toml::Table::try_from(&config.publish[0]).unwrap();
    for key in publish.keys() {
        assert!(examples.contains(&format!("\n{key} = ")), "{key} has no example");
    }
    assert_eq!(
        (config.key.len(), config.zone.len(), config.publish.len(), config.service.len()),
        (1, 1, 1, 1)
    );
}

#[test]
fn every_fault_is_reported_at_once_with_key_value_and_range() {
    let text = r#"
        surprise = 1
        [daemon]
        on_stop = "explode"
        [dns]
        listen = ["0.0.0.0:53"]
        udp_thread = 3
        [dns.tls]
        listen = ["192.0.2.1:853"]
        cert_file = "cert.pem"
        [dns.https]
        listen = ["192.0.2.1:853", "127.0.0.1:8443"]
        plain = true
        [observe.dnstap_in]
        listen = ["127.0.0.1:8443"]
        count = ["client_query", "client_response"]
        [observe.dnstap_out]
        to = "tcp:192.0.2.1:6000"
        buffer_kib = 1
        [api]
        listen = "192.0.2.1:80"
        [relay]
        pool = "127.64.0.1/10"
        [policy]
        idle_ms = 1
        heartbeat_ms = "soon"
        [[zone]]
        name = "vm..test"
        [[zone]]
        name = "vm.test"
        [[service]]
        name = "hello.vm.test"
        ports = ["tcp/0"]
        [[service]]
        name = "hello.elsewhere.test"
        image = "demo"
        ports = ["tcp/80"]
        resources = { cpus = 0 }
        policy = { rest = "cold", hold_ms_max = 60000 }
    "#;
    let message = Config::parse(text).unwrap_err().to_string();
    let expected = [
        "surprise = 1",
        "daemon.on_stop = \"explode\"",
        "zone \"vm.test\".ns_address = (absent)",
        "dns.udp_thread = 3",
        "dns.tls.key_file = \"\"",
        "dns.https.listen = 192.0.2.1:853\n      allowed: an address and port that nothing else here has",
        "dns.https.listen = 192.0.2.1:853\n      allowed: a loopback address",
        "observe.dnstap_in.listen = 127.0.0.1:8443\n      allowed: an address and port that nothing else here has",
        "observe.dnstap_in.count = client_response\n      allowed: client_query once",
        "observe.dnstap_out.to = tcp:192.0.2.1:6000\n      allowed: a loopback address",
        "observe.dnstap_out.buffer_kib = 1\n      allowed: 128 to 65536",
        "api.listen = 192.0.2.1:80",
        "relay.pool = 127.64.0.1/10",
        "policy.idle_ms = 1\n      allowed: 100 to 2592000000",
        "policy.heartbeat_ms = \"soon\"",
        "zone \"vm..test\".name = \"vm..test\"",
        "service \"hello.vm.test\".image = (absent)",
        "service \"hello.vm.test\".ports = [\"tcp/0\"]",
        "service \"hello.elsewhere.test\".name = hello.elsewhere.test\n      allowed: a name in one of the configured zones",
        "service \"hello.elsewhere.test\".resources.cpus = 0\n      allowed: 1 to 64",
        "service \"hello.elsewhere.test\".policy.rest = cold",
        "service \"hello.elsewhere.test\".policy.hold_ms_max = 60000\n      allowed: 0 to 4000",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|line| !message.contains(line)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "in {message}");
    assert_eq!(message.matches("policy.idle_ms").count(), 1, "told where it stands: {message}");
}

#[test]
fn keys_and_who_may_have_a_zone_are_checked_together() {
    let text = r#"
        [dns]
        status_keys = ["monitor.test"]
        [[key]]
        name = "xfr.test"
        algorithm = "hmac-md5"
        file = "xfr.key"
        [[key]]
        name = "xfr.test"
        file = "xfr.key"
        [[key]]
        name = "fileless.test"
        [[zone]]
        name = "vm.test"
        transfer = [{ networks = ["192.0.2.1/24"] }, { key = "xfer.test" }, {}]
        notify = [{ address = "127.0.0.1:0" }, { address = "127.0.0.1:53", key = "no.test" }]
    "#;
    let message = Config::parse(text).unwrap_err().to_string();
    let expected = [
        "key \"xfr.test\".algorithm = hmac-md5\n      allowed: hmac-sha256, hmac-sha384, hmac-sha512",
        "key \"xfr.test\".name = xfr.test\n      allowed: each key once",
        "key \"fileless.test\".file = (absent)",
        "dns.status_keys = monitor.test\n      allowed: the name of a [[key]]: xfr.test",
        "zone \"vm.test\".transfer.key = xfer.test\n      allowed: the name of a [[key]]: xfr.test",
        "zone \"vm.test\".transfer.networks = 192.0.2.1/24",
        "zone \"vm.test\".transfer = {}",
        "zone \"vm.test\".notify.key = no.test",
        "zone \"vm.test\".notify.address = 127.0.0.1:0",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|line| !message.contains(line)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "in {message}");
}

#[test]
fn who_may_update_and_where_services_are_published_is_checked() {
    let text = r#"
        [[key]]
        name = "dyn.test"
        file = "dyn.key"
        [[zone]]
        name = "vm.test"
        update = [
            { key = "other.test" },
            { key = "dyn.test", networks = ["192.0.2.1/24"], names = ["*.example", "www..test"], types = ["SOA", "RRSIG", "B"] },
            { key = "dyn.test", names = ["*.dyn.vm.test", "www.vm.test"], types = ["a", "TXT", "TYPE65280"] },
        ]
        [[publish]]
        server = "192.0.2.1:0"
        zone = "vm.test"
        key = "other.test"
        ttl_s = 4000000000
        services = ["*.example"]
        resend_ms = 1
        [[publish]]
        server = "192.0.2.1:0"
        zone = "vm.test"
        key = "dyn.test"
        [[publish]]
        zone = "vm.test"
    "#;
    let message = Config::parse(text).unwrap_err().to_string();
    let expected = [
        "zone \"vm.test\".update.key = other.test\n      allowed: the name of a [[key]]: dyn.test",
        "zone \"vm.test\".update.networks = 192.0.2.1/24",
        "zone \"vm.test\".update.names = *.example\n      allowed: names in the zone vm.test",
        "zone \"vm.test\".update.names = www..test",
        "zone \"vm.test\".update.types = SOA",
        "zone \"vm.test\".update.types = RRSIG",
        "zone \"vm.test\".update.types = B",
        "publish[0].server = 192.0.2.1:0",
        "publish[0].key = other.test",
        "publish[0].ttl_s = 4000000000",
        "publish[0].services = *.example",
        "publish[0].resend_ms = 1\n      allowed: 10000 to 604800000",
        "publish[1].zone = vm.test\n      allowed: each zone of a server once",
        "publish[2].server = (absent)",
        "publish[2].key = (absent)",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|line| !message.contains(line)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "in {message}");
    assert!(!message.contains("TYPE65280 "), "{message}");
}

#[test]
fn a_service_states_only_what_differs_from_the_policy_of_the_file() {
    let text = r#"
        [policy]
        idle_ms = 7000
        heartbeat_ms = 500
        [[zone]]
        name = "vm.test"
        [[service]]
        name = "a.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        policy = { heartbeat_ms = 2000 }
    "#;
    let policy = Config::parse(text).unwrap().service[0].policy;
    assert_eq!((policy.idle_ms, policy.heartbeat_ms), (7_000, 2_000));
    assert_eq!(policy.boot_ms_max, Policy::default().boot_ms_max);
}

#[test]
fn faults_of_health_are_told_where_they_stand() {
    let text = r#"
        [health]
        down = 5
        http = { path = "up" }
        [[zone]]
        name = "vm.test"
        [[service]]
        name = "a.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        health = { tcp = 81, timeout_ms = 0, http = { status = [200, 99] } }
    "#;
    let message = Config::parse(text).unwrap_err().to_string();
    let expected = [
        "  health.down = 5\n      allowed: 1 to 4",
        "  health.http.path = \"up\"\n      allowed: a path such as /health",
        "service \"a.vm.test\".health.tcp = 81\n      allowed: one of the declared TCP ports",
        "service \"a.vm.test\".health.timeout_ms = 0\n      allowed: 10 to 60000",
        "service \"a.vm.test\".health.http.status = [200, 99]",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|line| !message.contains(line)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "in {message}");
    assert!(message.contains("5 faults"), "what is inherited is told once: {message}");
}

#[test]
fn a_service_states_only_what_differs_from_the_health_of_the_file() {
    let text = r#"
        [health]
        interval_ms = 2000
        http = { path = "/up" }
        [[zone]]
        name = "vm.test"
        [[service]]
        name = "a.vm.test"
        image = "demo"
        ports = ["udp/53", "tcp/80", "tcp/81"]
        [service.health]
        tcp = 81
        down = 2
        [[service]]
        name = "b.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        health = { http = "off", enabled = true }
        [[service]]
        name = "c.vm.test"
        image = "demo"
        ports = ["tcp/80"]
    "#;
    let services = Config::parse(text).unwrap().service;
    let [a, b, c] = [0, 1, 2].map(|service: usize| services[service].probing());
    assert_eq!((a.policy.interval_ms, a.policy.down, a.policy.down_of), (2_000, 2, 4));
    assert_eq!((a.tcp, a.http.map(|(port, probe)| (port, probe.path))), (Some(81), Some((80, "/up".into()))));
    assert_eq!((b.tcp, b.http), (Some(80), None));
    assert_eq!((c.tcp, c.http.map(|(port, _)| port)), (None, Some(80)));
    let error = Config::parse(&text.replace("enabled = true", "enabled = 1")).unwrap_err().to_string();
    assert!(error.contains("service \"b.vm.test\".health.enabled = 1"), "{error}");
    let error =
        Config::parse(&text.replace("{ http = \"off\", enabled = true }", "false")).unwrap_err().to_string();
    assert!(error.contains("service \"b.vm.test\".health = false"), "{error}");
}

#[test]
fn what_is_no_toml_names_the_line() {
    let error = Config::parse("[dns]\nlisten = [").unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn a_secret_that_was_written_into_the_config_is_not_shown() {
    let secret = "GJlPnWcEpYf0lq0hUYKxQe3ps4o=";
    let shown = |text: &str| Config::parse(&text.replace('*', secret)).unwrap_err().to_string();
    for text in [
        "[[key]]\nname = \"k1\"\nfile = \"k1\"\nsecret = \"*\"\n",
        "[[key]]\nname = \"k1\"\nfile = \"k1\"\nvalue = [\"*\"]\n",
        "[[key]]\nname = \"k1\"\nfile = \"k1\"\npolicy = { x = \"*\" }\n",
        "key = \"*\"\n",
        "key = [\"*\"]\n",
        "[key]\nname = \"k1\"\nx = \"*\"\n",
        "[[keys]]\nname = \"k1\"\nsecret = \"*\"\n",
        "[api]\ntoken = \"*\"\n",
        "[gate]\ncookies = { Secrets = [\"*\"] }\n",
        "secret = \"*\"\n",
        // No TOML at all.
        "[[key]]\nname = \"k1\"\nsecret = \"*\n",
        "[[key]]\nname = \"k1\"\nfile = \"k1\"\n*\n",
        "admin_password = *\n",
    ] {
        let shown = shown(text);
        assert!(!shown.contains("GJlP"), "{shown}");
        assert!(shown.contains("(not shown)"), "{shown}");
    }
    // Where a secret lies is none, and has to be found.
    assert!(shown("[gate.cookies]\nsecret_file = [\"here\"]\n").contains("[\"here\"]"));
    assert!(shown("[[key]]\nname = \"k1\"\nfile = [\"here\"]\n").contains("[\"here\"]"));
}

#[test]
fn a_long_line_is_quoted_in_short() {
    for text in ["[".repeat(200_000), format!("[dns]\nlisten = {}", "[".repeat(200_000))] {
        let message = Config::parse(&text).unwrap_err().to_string();
        assert!(message.len() < 1_000 && message.contains("line "), "{} bytes", message.len());
    }
}

#[test]
fn networks_are_taken_exactly() {
    assert_eq!(Network::parse_v4("127.64.0.0/10").unwrap().at(258), Some(Ipv4Addr::new(127, 64, 1, 2)));
    assert_eq!(Network::parse_v4("127.64.0.0/30").unwrap().at(4), None);
    for wrong in ["127.64.0.1/10", "127.64.0.0", "::/10", "127.0.0.0/7", "127.0.0.0/31"] {
        assert_eq!(Network::parse_v4(wrong), None, "{wrong}");
    }
}

#[test]
fn an_address_is_listened_on_once_and_state_has_a_place() {
    let text = r#"
        [daemon]
        state_dir = ""
        [dns]
        listen = ["127.0.0.1:5300", "127.0.0.2:0", "127.0.0.2:0", "127.0.0.1:5300"]
        [dns.tls]
        listen = ["127.0.0.1:8053"]
        [api]
        listen = "127.0.0.1:8053"
    "#;
    let message = Config::parse(text).unwrap_err().to_string();
    let expected = [
        "daemon.state_dir = \"\"\n      allowed: a directory",
        "dns.listen = 127.0.0.1:5300\n      allowed: an address and port that nothing else here has",
        "api.listen = 127.0.0.1:8053\n      allowed: an address and port that nothing else here has",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|line| !message.contains(line)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "in {message}");
    assert!(message.contains("3 faults"), "port 0 is another one each time: {message}");
}

#[test]
fn of_what_is_no_address_it_is_said_what_one_looks_like() {
    let told = Config::parse("[dns]\nlisten = [\"127.0.0.1:99999\"]\n").unwrap_err().to_string();
    assert!(told.contains("dns.listen") && told.contains("such as \"127.0.0.1:5300\""), "{told}");
}

#[test]
fn what_is_hardly_meant_is_a_warning_and_no_fault() {
    let text = r#"
        [qemu]
        binary = "/nonexistent/qemu"
        [[zone]]
        name = "vm.test"
        dnssec = "on"
        notify = [{ address = "127.0.0.1:53" }]
        [[zone]]
        name = "lab.test"
        dnssec = "on"
        [[zone]]
        name = "plain.test"
        notify = [{ address = "127.0.0.1:53" }]
        [[service]]
        name = "a.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        profile = "cache-heavy"
        policy = { boot_ms_max = 50000 }
        [[service]]
        name = "b.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        profile = "cache-heavy"
    "#;
    let found = warnings(&Config::parse(text).unwrap());
    let keys: Vec<_> = found.iter().map(|warning| (warning.key.as_str(), warning.value.as_str())).collect();
    assert_eq!(
        keys,
        [
            ("zone \"vm.test\".dnssec", "on"),
            ("qemu.binary", "/nonexistent/qemu"),
            ("service \"a.vm.test\".profile", "cache-heavy"),
        ]
    );
}

#[test]
fn tap_mode_refuses_addresses_that_packets_never_leave_the_host_for() {
    let text = r#"
        [net]
        mode = "tap"
        [[zone]]
        name = "vm.test"
        [[service]]
        name = "a.vm.test"
        image = "demo"
        ports = ["tcp/80"]
        address = "127.64.0.9"
        egress = "nat"
    "#;
    let error = Config::parse(text).unwrap_err().to_string();
    for place in ["relay.pool = 127.64.0.0/10", "service \"a.vm.test\".address"] {
        assert!(error.contains(place), "{place} in: {error}");
    }
    let routed = text.replace("127.64.0.9", "10.64.0.9");
    Config::parse(&format!("{routed}\n[relay]\npool = \"10.64.0.0/16\"")).unwrap();
}
