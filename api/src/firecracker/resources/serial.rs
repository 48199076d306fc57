//! `/serial`: where the serial port's output goes.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use umbra_vmm::Bucket;

use super::limits::TokenBucket;

/// The serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SerialDevice {
    /// A file, a pipe or a terminal that is opened when the machine starts; standard output if there is none.
    #[serde(default)]
    pub serial_out_path: Option<PathBuf>,
    /// Bytes that come out; what is more is lost.
    #[serde(default)]
    pub rate_limiter: Option<TokenBucket>,
}

impl SerialDevice {
    /// How much comes out, if that is limited.
    pub fn limit(&self) -> Option<Bucket> {
        self.rate_limiter.and_then(TokenBucket::bucket)
    }
}
