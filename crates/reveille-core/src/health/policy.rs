//! How a service is probed, and when probes make a verdict.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{PortSpec, Protocol, SpecFault};

/// Most findings that are remembered of each probe.
pub(super) const FINDINGS_MAX: u8 = 16;

/// How a service is probed, as its user says it. Durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthPolicy {
    /// Whether it is probed at all.
    pub enabled: bool,
    /// Whether monitor and agent are asked.
    pub heartbeat: bool,
    /// Which port has to complete a TCP handshake.
    pub tcp: TcpSetting,
    /// Which request has to be answered.
    pub http: HttpSetting,
    /// Time between two probes while the service is used.
    pub interval_ms: u32,
    /// Time between two probes while a finding contradicts the verdict, or there is none; never longer than the first.
    pub doubt_ms: u32,
    /// Time between two probes while nobody uses the service; never shorter than the first.
    pub quiet_ms: u32,
    /// Longest time until the answer.
    pub timeout_ms: u32,
    /// It is down when so many
    pub down: u8,
    /// of the last so many probes failed.
    pub down_of: u8,
    /// It is up again when so many
    pub up: u8,
    /// of the last so many probes were answered.
    pub up_of: u8,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            heartbeat: true,
            tcp: TcpSetting::First,
            http: HttpSetting::Off,
            interval_ms: 5_000,
            doubt_ms: 1_000,
            quiet_ms: 60_000,
            timeout_ms: 1_000,
            down: 3,
            down_of: 4,
            up: 2,
            up_of: 3,
        }
    }
}

/// Which port is probed by a TCP handshake: `"first"`, `"off"` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpSetting {
    /// The first TCP port of the service, if it has one.
    First,
    /// None.
    Off,
    /// This one.
    Port(u16),
}

/// Which HTTP request is made: `"off"` or a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpSetting {
    /// None.
    Off,
    /// A GET.
    Get(Box<HttpProbe>),
}

/// A request and the answers that are right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// A declared TCP port; default: the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Begins with `/`.
    #[serde(default = "HttpProbe::root")]
    pub path: String,
    /// The lowest and the highest status that is right.
    #[serde(default = "HttpProbe::status")]
    pub status: [u16; 2],
}

impl HttpProbe {
    fn root() -> String {
        "/".to_owned()
    }

    const fn status() -> [u16; 2] {
        [200, 399]
    }

    fn faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if !self.path.starts_with('/') || self.path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            faults.push(SpecFault::new("http.path", format!("{:?}", self.path), "a path such as /health"));
        }
        let [low, high] = self.status;
        if !(100..=599).contains(&low) || !(low..=599).contains(&high) {
            let allowed = "the lowest and the highest right status, from 100 to 599";
            faults.push(SpecFault::new("http.status", format!("[{low}, {high}]"), allowed));
        }
        faults
    }
}

/// What is probed of a service, and by which rules it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probing {
    /// The rules; what it says of ports is resolved below.
    pub policy: HealthPolicy,
    /// The port of the TCP probe. One that the HTTP probe asks anyway has none of its own.
    pub tcp: Option<u16>,
    /// Port and request of the HTTP probe.
    pub http: Option<(u16, HttpProbe)>,
}

impl Probing {
    /// The probes that decide: those of ports, or where there are none the heartbeat.
    pub fn deciding(&self) -> impl Iterator<Item = super::Probe> {
        use super::Probe;
        let ports = self.tcp.is_some() || self.http.is_some();
        let heartbeat = (self.policy.heartbeat && !ports).then_some(Probe::Heartbeat);
        let of_ports = [self.tcp.map(|_| Probe::Tcp), self.http.as_ref().map(|_| Probe::Http)];
        let enabled = self.policy.enabled;
        heartbeat.into_iter().chain(of_ports.into_iter().flatten()).filter(move |_| enabled)
    }

    /// Whether there is anything to probe.
    pub fn is_empty(&self) -> bool {
        self.deciding().next().is_none()
    }
}

impl HealthPolicy {
    /// What is probed of a service with these ports.
    pub fn probing(&self, ports: &[PortSpec]) -> Probing {
        let first = ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.number);
        let http = match &self.http {
            HttpSetting::Off => None,
            HttpSetting::Get(probe) => probe.port.or(first).map(|port| (port, HttpProbe::clone(probe))),
        };
        let tcp = match self.tcp {
            TcpSetting::First => first,
            TcpSetting::Off => None,
            TcpSetting::Port(port) => Some(port),
        };
        let asked_anyway = http.as_ref().map(|(port, _)| *port);
        Probing { policy: self.clone(), tcp: tcp.filter(|port| asked_anyway != Some(*port)), http }
    }

    /// Every value that is out of its range.
    pub fn faults(&self) -> Vec<SpecFault> {
        const HOUR_MS: u32 = 3_600_000;
        let of_times = [
            ("interval_ms", self.interval_ms, 100, HOUR_MS),
            ("doubt_ms", self.doubt_ms, 50, HOUR_MS),
            ("quiet_ms", self.quiet_ms, 100, 24 * HOUR_MS),
            ("timeout_ms", self.timeout_ms, 10, 60_000),
        ];
        let of_counts: [(&str, u8, u8, u8); 4] = [
            ("down_of", self.down_of, 1, FINDINGS_MAX),
            ("down", self.down, 1, self.down_of.clamp(1, FINDINGS_MAX)),
            ("up_of", self.up_of, 1, FINDINGS_MAX),
            ("up", self.up, 1, self.up_of.clamp(1, FINDINGS_MAX)),
        ];
        let of_counts = of_counts
            .map(|(key, value, least, most)| (key, u32::from(value), u32::from(least), u32::from(most)));
        let ranged = of_times.into_iter().chain(of_counts);
        let mut faults: Vec<SpecFault> = ranged
            .filter(|(_, value, least, most): &(&str, u32, u32, u32)| value < least || value > most)
            .map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}")))
            .collect();
        if let HttpSetting::Get(probe) = &self.http {
            faults.extend(probe.faults());
        }
        faults
    }

    /// The same, and ports that a service with these has not.
    pub fn faults_with(&self, ports: &[PortSpec]) -> Vec<SpecFault> {
        let mut faults = self.faults();
        let declared = |number| ports.contains(&PortSpec { protocol: Protocol::Tcp, number });
        let allowed = "one of the declared TCP ports";
        if let TcpSetting::Port(port) = self.tcp
            && !declared(port)
        {
            faults.push(SpecFault::new("tcp", port, allowed));
        }
        if let HttpSetting::Get(probe) = &self.http
            && let Some(port) = probe.port.filter(|port| !declared(*port))
        {
            faults.push(SpecFault::new("http.port", port, allowed));
        }
        faults
    }
}

// --- As it is written ------------------------------------------------------------------------------------------

impl Serialize for TcpSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::First => serializer.serialize_str("first"),
            Self::Off => serializer.serialize_str("off"),
            Self::Port(port) => serializer.serialize_u16(*port),
        }
    }
}

impl<'de> Deserialize<'de> for TcpSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = TcpSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"first\", \"off\" or a port from 1 to 65535")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<TcpSetting, E> {
                match word {
                    "first" => Ok(TcpSetting::First),
                    "off" => Ok(TcpSetting::Off),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<TcpSetting, E> {
                let port = u16::try_from(number).ok().filter(|port| *port != 0);
                let fault = || E::invalid_value(serde::de::Unexpected::Unsigned(number), &self);
                port.map(TcpSetting::Port).ok_or_else(fault)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<TcpSetting, E> {
                self.visit_u64(u64::try_from(number).unwrap_or_default())
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl Serialize for HttpSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Get(probe) => probe.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for HttpSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = HttpSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"off\" or a table such as { port = 8080, path = \"/health\", status = [200, 399] }",
                )
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<HttpSetting, E> {
                let fault = || E::invalid_value(serde::de::Unexpected::Str(word), &self);
                (word == "off").then_some(HttpSetting::Off).ok_or_else(fault)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HttpSetting, A::Error> {
                HttpProbe::deserialize(MapAccessDeserializer::new(map)).map(Box::new).map(HttpSetting::Get)
            }
        }
        deserializer.deserialize_any(Written)
    }
}
