//! The JSON form of what specifications are made of and other crates have: these know nothing of JSON.
//!
//! An enum is mirrored, and serde keeps the mirror complete (`remote`). Other types are written as another one that has
//! a form ([`As`]).

use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{BackingFiles, CpuTemplate, NetMetadata};
use crate::{Bucket, Metadata, MetadataConfig, MetadataVersion};

/// The format of a disk image, which is never guessed.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(remote = "umbra_block::Format", rename_all = "snake_case")]
pub enum Format {
    /// Its bytes are the disk's.
    Raw,
    /// QEMU's format: allocated when it is written, perhaps over a backing file.
    Qcow2,
}

/// What serves a disk.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(remote = "umbra_block::EngineKind", rename_all = "snake_case")]
pub enum EngineKind {
    /// io_uring; threads where the host has none.
    IoUring,
    /// Threads that call the file system and wait.
    Threads,
}

/// What becomes of writes to a disk.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(
    remote = "umbra_devices::virtio::block::Cache",
    rename_all = "snake_case"
)]
pub enum Cache {
    /// They are durable when the guest flushes.
    Writeback,
    /// They are durable when they are done.
    Writethrough,
    /// The guest cannot make them durable.
    Unsafe,
}

/// Which interrupt controllers are in KVM.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(remote = "umbra_cpu_kvm::IrqchipMode", rename_all = "snake_case")]
pub enum IrqchipMode {
    /// Split where the kernel offers it, else full.
    Auto,
    /// Only local APICs.
    Split,
    /// All.
    Full,
}

/// How the software processor executes guest code.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(remote = "umbra_cpu_soft::Processor", rename_all = "snake_case")]
pub enum Processor {
    /// Instruction by instruction.
    Interpreter,
    /// What is hot runs as host code.
    Translator,
    /// Everything runs as host code, for debugging.
    Eager,
    /// Everything runs instruction by instruction and as host code, and a difference ends the machine: for
    /// debugging.
    Both,
}

/// Which device a vhost-user back end is.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(
    remote = "umbra_vhost::Kind",
    rename_all = "snake_case",
    tag = "type",
    deny_unknown_fields
)]
pub enum VhostKind {
    /// A disk.
    Block,
    /// A file system.
    Fs {
        /// The guest mounts it by this tag, 1 to 36 bytes; the back end says it if it is not said here.
        #[serde(default)]
        tag: Option<String>,
    },
    /// A network interface with one pair of queues.
    Net {
        /// Its address.
        #[serde(with = "As::<Mac>")]
        #[schemars(with = "Mac")]
        mac: [u8; 6],
    },
    /// Sockets.
    Vsock,
    /// Any other device.
    Other {
        /// Its virtio device type, 1 to 63.
        id: u32,
        /// Bytes of its configuration, 256 at most.
        #[serde(default)]
        config_len: usize,
    },
}

/// Writes a value as a `W`, and reads it from one.
pub struct As<W>(PhantomData<W>);

impl<W> As<W> {
    pub fn serialize<T, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Clone,
        W: Serialize + From<T>,
    {
        W::from(value.clone()).serialize(serializer)
    }

    pub fn deserialize<'de, T, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error>
    where
        W: Deserialize<'de> + TryInto<T, Error: std::fmt::Display>,
    {
        let written = W::deserialize(deserializer)?;
        written.try_into().map_err(D::Error::custom)
    }
}

/// As [`As`], for what need not be there.
pub struct Maybe<W>(PhantomData<W>);

impl<W> Maybe<W> {
    pub fn serialize<T, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Clone,
        W: Serialize + From<T>,
    {
        value.clone().map(W::from).serialize(serializer)
    }

    pub fn deserialize<'de, T, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        W: Deserialize<'de> + TryInto<T, Error: std::fmt::Display>,
    {
        let written = Option::<W>::deserialize(deserializer)?;
        let read = written.map(TryInto::try_into).transpose();
        read.map_err(D::Error::custom)
    }
}

/// An Ethernet address of one interface, like `52:54:00:12:34:56`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Mac(#[schemars(regex(pattern = "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$"))] String);

impl From<umbra_net::Mac> for Mac {
    fn from(mac: umbra_net::Mac) -> Self {
        Self(mac.to_string())
    }
}

impl TryFrom<Mac> for umbra_net::Mac {
    type Error = umbra_net::MacError;

    fn try_from(mac: Mac) -> Result<Self, Self::Error> {
        mac.0.parse()
    }
}

impl From<[u8; 6]> for Mac {
    fn from(bytes: [u8; 6]) -> Self {
        umbra_net::Mac(bytes).into()
    }
}

impl TryFrom<Mac> for [u8; 6] {
    type Error = umbra_net::MacError;

    fn try_from(mac: Mac) -> Result<Self, Self::Error> {
        Ok(umbra_net::Mac::try_from(mac)?.0)
    }
}

/// A limit: so many tokens in a time. Without size or time it does not limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that a full bucket holds.
    size: u64,
    /// Tokens that are there once, besides.
    #[serde(default)]
    one_time_burst: u64,
    /// Milliseconds in which an empty bucket is full.
    #[serde(default = "second")]
    refill_time_ms: u64,
}

fn second() -> u64 {
    1000
}

impl From<Bucket> for TokenBucket {
    fn from(bucket: Bucket) -> Self {
        Self {
            size: bucket.size,
            one_time_burst: bucket.one_time_burst,
            refill_time_ms: millis(bucket.refill_time),
        }
    }
}

impl From<TokenBucket> for Bucket {
    fn from(bucket: TokenBucket) -> Self {
        Self {
            size: bucket.size,
            one_time_burst: bucket.one_time_burst,
            refill_time: Duration::from_millis(bucket.refill_time_ms),
        }
    }
}

/// How much a guest may do with a device in what time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Tokens are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    /// Tokens are requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    operations: Option<TokenBucket>,
}

impl From<crate::Limits> for Limits {
    fn from(limits: crate::Limits) -> Self {
        Self {
            bandwidth: limits.bandwidth.map(Into::into),
            operations: limits.operations.map(Into::into),
        }
    }
}

impl From<Limits> for crate::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            bandwidth: limits.bandwidth.map(Into::into),
            operations: limits.operations.map(Into::into),
        }
    }
}

/// A time in milliseconds.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Millis(u64);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self(millis(time))
    }
}

impl From<Millis> for Duration {
    fn from(time: Millis) -> Self {
        Self::from_millis(time.0)
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Whether the backing files of an image are opened.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Follow(bool);

impl From<BackingFiles> for Follow {
    fn from(files: BackingFiles) -> Self {
        Self(files == BackingFiles::Follow)
    }
}

impl From<Follow> for BackingFiles {
    fn from(follow: Follow) -> Self {
        match follow.0 {
            true => Self::Follow,
            false => Self::Refuse,
        }
    }
}

/// The name of a CPU template, or the path of its file.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TemplateName(String);

impl From<CpuTemplate> for TemplateName {
    fn from(template: CpuTemplate) -> Self {
        Self(match template {
            CpuTemplate::Load(name) => name,
            CpuTemplate::Read(template) => template.name().to_owned(),
        })
    }
}

impl From<TemplateName> for CpuTemplate {
    fn from(name: TemplateName) -> Self {
        Self::Load(name.0)
    }
}

/// What a guest can ask about itself, and how.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadataForm {
    /// A JSON object; 51,200 bytes at most.
    data: Value,
    /// Whether the guest needs a token (2) or not (1).
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 2))]
    version: u8,
    /// Where on its link: 169.254.1.0 to 169.254.254.255.
    #[serde(default = "address")]
    address: Ipv4Addr,
    /// Answers are always text, as EC2's.
    #[serde(default)]
    text_only: bool,
}

fn one() -> u8 {
    1
}

fn address() -> Ipv4Addr {
    MetadataConfig::ADDRESS
}

impl From<NetMetadata> for MetadataForm {
    fn from(metadata: NetMetadata) -> Self {
        let NetMetadata { data, config } = metadata;
        Self {
            data: data.get(),
            version: match config.version {
                MetadataVersion::V1 => 1,
                MetadataVersion::V2 => 2,
            },
            address: config.address,
            text_only: config.imds_compat,
        }
    }
}

impl TryFrom<MetadataForm> for NetMetadata {
    type Error = String;

    fn try_from(form: MetadataForm) -> Result<Self, String> {
        let version = match form.version {
            1 => MetadataVersion::V1,
            2 => MetadataVersion::V2,
            other => return Err(format!("metadata version {other}: there are 1 and 2")),
        };
        let config = MetadataConfig {
            version,
            address: form.address,
            imds_compat: form.text_only,
        };
        if !config.is_valid() {
            return Err(format!(
                "metadata address {}: it is one from 169.254.1.0 to 169.254.254.255",
                form.address
            ));
        }
        let data = Metadata::new(MetadataConfig::LIMIT);
        data.put(form.data).map_err(|error| error.to_string())?;
        Ok(Self { data, config })
    }
}
