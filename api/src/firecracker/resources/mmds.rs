//! `/mmds` and `/mmds/config`: what the guest can ask about itself.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{Metadata, MetadataConfig, MetadataVersion, NetMetadata};

use crate::firecracker::fault::Fault;

/// How the guest asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum MmdsVersion {
    /// Just so; deprecated.
    #[default]
    V1,
    /// With a token that it asked for before.
    V2,
}

/// The address where none is given.
const ADDRESS: Ipv4Addr = MetadataConfig::ADDRESS;

/// How the guest reaches the metadata service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How the guest asks.
    #[serde(default)]
    pub version: MmdsVersion,
    /// By which interfaces, at least one.
    #[schemars(length(min = 1))]
    pub network_interfaces: Vec<String>,
    /// At which address: 169.254.1.0 to 169.254.254.255.
    #[serde(default = "address")]
    #[schemars(regex(
        pattern = r"^169\.254\.([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-4])\.[0-9]{1,3}$"
    ))]
    pub ipv4_address: Ipv4Addr,
    /// Answers are always text, as EC2's.
    #[serde(default)]
    pub imds_compat: bool,
}

fn address() -> Ipv4Addr {
    ADDRESS
}

impl MmdsConfig {
    /// Checks it beside the names of the interfaces that there are.
    pub fn check(&self, mut there: impl FnMut(&str) -> bool) -> Result<(), Fault> {
        let wrong = |why: &str| Err(Fault::MmdsConfig(why.into()));
        if !self.config().is_valid() {
            return wrong("The MMDS IPv4 address is not link local.");
        }
        if self.network_interfaces.is_empty() {
            return wrong(
                "The list of network interface IDs that allow forwarding MMDS requests is empty.",
            );
        }
        if !self.network_interfaces.iter().all(|id| there(id)) {
            return wrong(
                "The list of network interface IDs provided contains at least one ID that does not correspond to \
                 any existing network interface.",
            );
        }
        Ok(())
    }

    fn config(&self) -> MetadataConfig {
        MetadataConfig {
            version: match self.version {
                MmdsVersion::V1 => MetadataVersion::V1,
                MmdsVersion::V2 => MetadataVersion::V2,
            },
            address: self.ipv4_address,
            imds_compat: self.imds_compat,
        }
    }

    /// The service that it asks for, with this data.
    pub fn service(&self, data: &Metadata) -> NetMetadata {
        NetMetadata {
            data: data.clone(),
            config: self.config(),
        }
    }
}
