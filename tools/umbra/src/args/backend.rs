//! Devices of a process of their own, as `umbra backend` has them: `umbra backend KIND OPTIONS --socket PATH`, with the
//! options of `umbra run --KIND`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use umbra_vmm::{PortSpec, RngSpec, VirtioKind, VirtioSpec};

use super::{console, disk, net, vsock};

/// For `--help`.
pub const HELP: &str = "\
Memory balloons, persistent memory and memory devices are the guest's memory, and have no back end.
Ends with status 0 by SIGTERM or SIGINT, or when its front end has gone with --once.";

/// `umbra backend`.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// A disk (virtio-blk)
    Block {
        /// PATH, then the KEY=VALUEs of `umbra run --disk`
        #[arg(value_name = "PATH[,KEY=VALUE...]", value_parser = disk::parse)]
        disk: disk::Disk,
        #[command(flatten)]
        serve: Serve,
    },
    /// A network interface (virtio-net)
    Net {
        /// KIND, then the KEY=VALUEs of `umbra run --net`
        #[arg(value_name = "KIND[,KEY=VALUE...]", value_parser = net::parse)]
        net: net::Net,
        #[command(flatten)]
        serve: Serve,
    },
    /// An entropy device (virtio-rng)
    Rng {
        #[command(flatten)]
        serve: Serve,
    },
    /// Sockets between programs of the guest and of the host (virtio-vsock)
    Vsock {
        /// As with `umbra run --vsock`
        #[arg(value_name = "cid=N,path=PATH", value_parser = vsock::parse)]
        vsock: vsock::Vsock,
        #[command(flatten)]
        serve: Serve,
    },
    /// Consoles, or ports with names (virtio-console)
    Console {
        /// As with `umbra run --console`, without stdio
        #[arg(value_name = "END[,name=NAME]", value_parser = console::parse, required = true)]
        ports: Vec<PortSpec>,
        #[command(flatten)]
        serve: Serve,
    },
}

/// How a device is served.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[group(skip)]
pub struct Serve {
    /// Listen at PATH, for this user alone; a socket that nobody listens at is replaced
    #[arg(long, value_name = "PATH", required_unless_present = "socket_fd")]
    pub socket: Option<PathBuf>,
    /// Listen at the unix socket that was handed over as descriptor N, and listens already
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    pub socket_fd: Option<u16>,
    /// End when the first front end has gone
    #[arg(long)]
    pub once: bool,
    /// Allow every system call (for debugging)
    #[arg(long)]
    pub no_seccomp: bool,
}

impl Backend {
    /// Makes the device's specification. Consoles and ports with names are two devices, and so no one.
    pub fn device(&self) -> Result<VirtioSpec, String> {
        match self {
            Self::Block { disk, .. } => Ok(disk.device(0)),
            Self::Net { net, .. } => Ok(net.device(0)),
            Self::Rng { .. } => Ok(VirtioSpec {
                id: "rng".into(),
                kind: VirtioKind::Rng(RngSpec::default()),
            }),
            Self::Vsock { vsock, .. } => Ok(vsock.device()),
            Self::Console { ports, .. } => {
                let mut devices = console::devices(ports);
                match (devices.next(), devices.next()) {
                    (Some(device), None) => Ok(device),
                    _ => Err(
                        "consoles and ports with names are two devices; start a back end for each"
                            .to_owned(),
                    ),
                }
            }
        }
    }

    /// Returns how it is served.
    pub fn serve(&self) -> &Serve {
        match self {
            Self::Block { serve, .. }
            | Self::Net { serve, .. }
            | Self::Rng { serve }
            | Self::Vsock { serve, .. }
            | Self::Console { serve, .. } => serve,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(arguments: &[&str]) -> Result<Backend, String> {
        let all = [&["umbra", "backend"], arguments].concat();
        match Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(Command::Backend(backend)) => Ok(backend),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn devices_are_those_of_a_machine() {
        let table: [(&[&str], &str, &str); 6] = [
            (&["block", "/d,readonly", "--socket", "s"], "disk0", "blk"),
            (&["block", "--socket", "s", "/d,id=x"], "x", "blk"),
            (&["net", "tap=t0", "--socket", "s"], "net0", "net"),
            (&["rng", "--socket", "s"], "rng", "rng"),
            (
                &["vsock", "cid=4,path=v", "--socket-fd", "3"],
                "vsock",
                "vsock",
            ),
            (
                &["console", "file=a", "file=b", "--socket", "s"],
                "console",
                "console",
            ),
        ];
        for (arguments, id, kind) in table {
            let device = parse(arguments).unwrap().device().unwrap();
            assert_eq!(
                (&*device.id, device.kind.name()),
                (id, kind),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn a_socket_is_made_or_handed_over() {
        let serve = |more: &[&str]| {
            let parsed = parse(&[&["rng"], more].concat());
            parsed.map(|backend| backend.serve().clone())
        };
        let plain = serve(&["--socket", "s"]).unwrap();
        assert_eq!(plain.socket, Some("s".into()));
        assert!(!plain.once && !plain.no_seccomp);
        let other = serve(&["--socket-fd", "3", "--once", "--no-seccomp"]).unwrap();
        assert_eq!((other.socket, other.socket_fd), (None, Some(3)));
        assert!(other.once && other.no_seccomp);
        for wrong in [
            &[][..],
            &["--socket", "s", "--socket-fd", "3"],
            &["--socket-fd", "-1"],
        ] {
            assert!(serve(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_makes_no_device_is_refused_with_its_reason() {
        let table: [(&[&str], &str); 4] = [
            (
                &["block", "/d,format=vmdk", "--socket", "s"],
                "none of raw, qcow2",
            ),
            (&["balloon", "--socket", "s"], "balloon"),
            (&["console", "--socket", "s"], "END"),
            (&["block", "--socket", "s"], "PATH"),
        ];
        for (arguments, why) in table {
            let refused = parse(arguments).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let both = ["console", "file=a", "file=b,name=b", "--socket", "s"];
        assert!(
            parse(&both)
                .unwrap()
                .device()
                .unwrap_err()
                .contains("two devices")
        );
    }
}
