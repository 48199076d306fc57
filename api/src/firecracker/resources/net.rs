//! `/network-interfaces/{iface_id}`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use umbra_vmm::{Mac, NetHost, NetMetadata, NetSpec, VirtioKind};

use super::ID_PATTERN;
use super::limits::RateLimiter;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub iface_id: String,
    /// The TAP interface of the host.
    pub host_dev_name: String,
    /// Its address; one that is made up if there is none.
    #[serde(default)]
    pub guest_mac: Option<GuestMac>,
    /// The largest frame, 68 to 65535.
    #[serde(default, deserialize_with = "mtu")]
    #[schemars(range(min = MTU_MIN, max = u16::MAX))]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what it sends.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The smallest MTU (RFC 791, page 25).
const MTU_MIN: u16 = 68;

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let mtu = Option::<u16>::deserialize(deserializer)?;
    match mtu {
        Some(mtu) if mtu < MTU_MIN => Err(D::Error::custom("The MTU must be between 68 and 65535")),
        mtu => Ok(mtu),
    }
}

/// An Ethernet address, as `06:00:ac:10:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMac(pub Mac);

impl JsonSchema for GuestMac {
    fn schema_name() -> Cow<'static, str> {
        "GuestMac".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An Ethernet address of one interface, as `06:00:ac:10:00:02`.",
            "type": "string",
            // The lowest bit of the first byte says that an address is of many.
            "pattern": "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
        })
    }
}

impl<'de> Deserialize<'de> for GuestMac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mac = text.parse();
        mac.map(Self)
            .map_err(|_| D::Error::custom("The provided MAC address is invalid."))
    }
}

impl Serialize for GuestMac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl NetworkInterface {
    /// The device that it asks for, by which the guest reaches `metadata`, if it does.
    pub fn kind(&self, metadata: Option<NetMetadata>) -> VirtioKind {
        let host = NetHost::Tap {
            name: self.host_dev_name.clone(),
            queues: 1,
        };
        VirtioKind::Net(NetSpec {
            mac: self.guest_mac.map(|mac| mac.0),
            mtu: self.mtu,
            receive: self.rx_rate_limiter.unwrap_or_default().limits(),
            transmit: self.tx_rate_limiter.unwrap_or_default().limits(),
            metadata,
            ..NetSpec::new(host)
        })
    }
}

/// A change of one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    /// Which, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub iface_id: String,
    /// Other limits of what the guest receives.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits of what it sends.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiter>,
}
