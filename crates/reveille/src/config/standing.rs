//! What a running daemon cannot change: it is named, and stays as it is until the next start.

use super::Config;

impl Config {
    /// This config with everything that cannot change under way as `running` has it, and the keys of what was to
    /// change.
    pub fn keeping_what_stands(mut self, running: &Self) -> (Self, Vec<String>) {
        let mut keys = Vec::new();
        let mut note = |key: &str| keys.push(key.to_owned());
        macro_rules! keep {
            ($($key:literal: $($field:ident).+),+ $(,)?) => {
                $(if self.$($field).+ != running.$($field).+ {
                    note($key);
                    self.$($field).+.clone_from(&running.$($field).+);
                })+
            };
        }
        keep! {
            "daemon.state_dir": daemon.state_dir,
            "dns.listen": dns.listen,
            "dns.udp_threads": dns.udp_threads,
            "dns.tls.listen": dns.tls.listen,
            "dns.https.listen": dns.https.listen,
            "dns.https.plain": dns.https.plain,
            "observe.dnstap_in": observe.dnstap_in,
            "observe.dnstap_out": observe.dnstap_out,
            "api.listen": api.listen,
            "api.anonymous": api.anonymous,
            "net.mode": net.mode,
            "net.nameserver": net.nameserver,
            "net.bridge": net.bridge,
            "relay.pool": relay.pool,
            "relay.pool6": relay.pool6,
            "depot": depot,
            "history": history,
            "records": records,
            "qemu.binary": qemu.binary,
            "qemu.user": qemu.user,
            "qemu.data_dir": qemu.data_dir,
            "qemu.accelerator": qemu.accelerator,
            "publish": publish,
        }
        // From files to other files, but not to and from a certificate that the server makes itself.
        if self.dns.tls.files().is_some() != running.dns.tls.files().is_some() {
            note("dns.tls.cert_file");
            self.dns.tls.clone_from(&running.dns.tls);
        }
        (self, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_stays_and_is_named_until_the_next_start() {
        let running = Config::parse("[dns]\nlisten = [\"127.0.0.1:5300\"]").unwrap();
        let wanted = "[dns]\nlisten = [\"127.0.0.1:5301\"]\nstatus_allow = []\n[qemu]\naccelerator = \"tcg\"\n[policy]\nttl_asleep_s = 7";
        let wanted = Config::parse(wanted).unwrap();
        let (first, keys) = wanted.clone().keeping_what_stands(&running);
        assert_eq!(keys, ["dns.listen", "qemu.accelerator"]);
        assert_eq!(
            (&first.dns.listen, first.qemu.accelerator),
            (&running.dns.listen, running.qemu.accelerator)
        );
        assert_eq!((first.dns.status_allow.len(), first.policy.ttl_asleep_s), (0, 7));
        // Once more says so once more.
        let (second, keys) = wanted.keeping_what_stands(&first);
        assert_eq!((second, keys.len()), (first, 2));
    }
}
