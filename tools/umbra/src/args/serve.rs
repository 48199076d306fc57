//! `umbra serve`.

use std::path::PathBuf;

use clap::Args;
use umbra_api::firecracker::config::Options;
use umbra_api::firecracker::resources::logger::LoggerConfig;

use super::BackendArg;
use crate::console::Escapes;
use crate::serve::Service;

/// `umbra serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The unix socket of the API; one that nobody serves any more is replaced
    #[arg(long, value_name = "PATH", required_unless_present = "no_api")]
    pub api_sock: Option<PathBuf>,
    /// A machine's configuration (JSON), which starts at once: in Firecracker's form, or as `umbra run --print-config`
    /// prints it, which says itself what --backend, --pci and --metadata say of the other
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve no API
    #[arg(long, requires = "config", conflicts_with = "api_sock")]
    pub no_api: bool,
    /// What the machine is called
    #[arg(long, value_name = "NAME", default_value = "umbra")]
    pub id: String,
    /// What executes the guest
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Put virtio devices on a PCI bus, with MSI-X, where others can come and go
    #[arg(long)]
    pub pci: bool,
    /// Metadata of the machine (JSON)
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Bytes of a request's body, and of metadata
    #[arg(long, value_name = "BYTES", default_value_t = 51200)]
    pub body_max: usize,
    /// A file or a pipe for the log [default: standard output]
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// A file or a pipe for counters, a line of JSON each minute
    #[arg(long, value_name = "PATH")]
    pub metrics: Option<PathBuf>,
}

impl ServeArgs {
    /// What is served.
    pub fn service(&self) -> Service {
        Service {
            name: concat!("Umbra v", env!("CARGO_PKG_VERSION")).into(),
            options: Options {
                id: self.id.clone(),
                backend: self.backend.into(),
                pci: self.pci,
                mmds_limit: self.body_max,
            },
            socket: self.api_sock.clone(),
            body_max: self.body_max,
            config: self.config.clone(),
            metadata: self.metadata.clone(),
            logger: LoggerConfig {
                log_path: self.log.clone(),
                show_level: Some(true),
                ..LoggerConfig::default()
            },
            metrics: self.metrics.clone(),
            escapes: Escapes::CtrlA,
        }
    }
}
