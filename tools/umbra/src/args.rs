//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use umbra_vmm::{Module, Spec};

pub use backend::{Backend as BackendCommand, Serve};
pub use events::Events;
pub use generate::{Completions, Man};
pub use machine::{BackendArg, MachineArgs, Watch};
pub use serve::ServeArgs;
pub use top::Top;

use crate::serve::firecracker::Firecracker;
use crate::status::{CLIENT_HELP, HELP, Status};

mod backend;
mod balloon;
mod config;
mod console;
pub mod ctl;
mod disk;
mod events;
mod fw_cfg;
mod generate;
mod limit;
mod list;
mod machine;
mod mem;
mod net;
mod pmem;
mod port;
mod rng;
mod serve;
mod top;
mod vdpa;
mod vhost_user;
mod vsock;

/// Runs microVMs anywhere, with or without KVM
#[derive(Debug, Parser)]
#[command(name = "umbra", version, after_help = HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel, with its console on this terminal
    #[command(after_help = HELP)]
    Run(Run),
    /// Fetch a Debian kernel and busybox, and boot into a shell
    #[command(after_help = HELP)]
    Demo(Demo),
    /// Fetch what `demo` boots, and print the paths of kernel and initrd
    Fetch(Fetch),
    /// Tell whether KVM can be used here, and what `--backend auto` takes
    Probe(Probe),
    /// Serve a machine's API on a unix socket: that of Firecracker, and more under /v1
    #[command(after_help = HELP)]
    Serve(ServeArgs),
    /// Ask a machine that is served: how it is, that it starts, stops, gets devices, and everything else
    #[command(after_help = CLIENT_HELP)]
    Ctl(Box<ctl::Ctl>),
    /// Print what happens to a machine that is served, until it has ended
    #[command(after_help = CLIENT_HELP)]
    Events(Events),
    /// Show what machines that are served do: exits, MMIO, throughput of devices
    #[command(after_help = CLIENT_HELP)]
    Top(Top),
    /// Print a shell's completions of this command
    Completions(Completions),
    /// Print or write the manual pages of this command
    Man(Man),
    /// Be Firecracker, with its command line, API and exit codes; also under its name
    #[command(disable_version_flag = true)]
    Firecracker(Box<Firecracker>),
    /// Serve a virtio device to the monitor of another process (vhost-user)
    #[command(subcommand, after_help = backend::HELP)]
    Backend(BackendCommand),
}

/// `umbra probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// Where KVM is
    #[arg(long, value_name = "PATH", default_value = umbra_vmm::KVM_DEVICE)]
    pub kvm_device: PathBuf,
}

/// `umbra run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The kernel: a bzImage, an ELF image with a PVH note, or a multiboot 1 image
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk; of a multiboot kernel the modules: "FILE STRING,FILE STRING"
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// One more module for a multiboot kernel, which is told the whole value; may be repeated
    #[arg(long = "module", value_name = "FILE[ STRING]")]
    pub modules: Vec<String>,
    /// The machine as --print-config prints it (JSON), instead of all options that describe one
    #[arg(long, value_name = "FILE", value_parser = config::parse,
          conflicts_with_all = ["kernel", "initrd", "modules", "MachineArgs"])]
    pub config: Option<Box<Spec>>,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub watch: Watch,
}

impl Run {
    /// Makes the specification.
    pub fn spec(&self) -> Spec {
        match (&self.config, &self.kernel) {
            (Some(config), _) => (**config).clone(),
            (None, kernel) => {
                let kernel = kernel.clone().unwrap_or_default();
                let modules = self.modules.iter().map(|text| Module::parse(text, None));
                Spec {
                    modules: modules.collect(),
                    ..self.machine.spec(kernel, self.initrd.clone())
                }
            }
        }
    }
}

impl Command {
    /// How the machine is watched, if there will be one.
    pub fn watch(&self) -> Option<&Watch> {
        match self {
            Self::Run(run) => Some(&run.watch),
            Self::Demo(demo) => Some(&demo.watch),
            _ => None,
        }
    }

    /// Tells whether the guest will have a port by which it chooses the exit status.
    pub fn has_exit_port(&self) -> bool {
        let (debug_exit, test_device) = match self {
            Self::Run(Run {
                config: Some(spec), ..
            }) => (spec.debug_exit, spec.test_device),
            Self::Run(Run { machine, .. }) | Self::Demo(Demo { machine, .. }) => {
                (machine.debug_exit, machine.test_device)
            }
            _ => (None, false),
        };
        debug_exit.is_some() || test_device
    }
}

/// `umbra demo`.
#[derive(Debug, Args)]
pub struct Demo {
    #[command(flatten)]
    pub fetch: Fetch,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub watch: Watch,
}

/// `umbra fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The architecture of the packages
    #[arg(long, value_enum, default_value_t = Arch::Amd64)]
    pub arch: Arch,
    /// The package of the kernel, or one that depends on it
    #[arg(long, value_name = "NAME")]
    pub kernel_package: Option<String>,
    /// Fetch again, also what was fetched before
    #[arg(long)]
    pub refresh: bool,
}

/// `--arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// 64-bit
    Amd64,
    /// 32-bit: Debian's 686 and 686-pae kernels
    I386,
}

/// Parses the process's arguments. Prints what is wrong in one line, or the help that was asked for.
pub fn parse() -> Result<Command, Status> {
    Cli::try_parse()
        .map(|cli| cli.command)
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                // Nothing can be done about a standard output that is closed.
                let _ = error.print();
                Status::Success
            }
            _ => {
                eprintln!("umbra: {}", one_line(&error));
                Status::BadInput
            }
        })
}

/// Makes one line of clap's several: the cause, its hints, and where to read on.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command was given; 'umbra --help' tells more".into();
    }
    let message = error.render().to_string();
    let cause = message.split("\n\nUsage:").next().unwrap_or(&message);
    let cause = cause
        .split("\n\nFor more information")
        .next()
        .unwrap_or(cause);
    let cause = cause.strip_prefix("error: ").unwrap_or(cause);
    let parts: Vec<String> = cause
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty())
        .collect();
    format!("{}; 'umbra --help' tells more", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use umbra_vmm::Verify;

    use super::*;

    fn refusal(arguments: &[&str]) -> String {
        let all = ["umbra"].iter().chain(arguments);
        one_line(&Cli::try_parse_from(all).unwrap_err())
    }

    #[test]
    fn every_refusal_is_one_line_that_names_the_culprit() {
        let table: [(&[&str], &str); 8] = [
            (&[], "no command was given"),
            (&["ctl"], "no command was given"),
            (&["fly"], "'fly'"),
            (&["run"], "--kernel"),
            (&["run", "--kernel", "k", "--turbo"], "--turbo"),
            (
                &["run", "--kernel", "k", "--memory", "lots"],
                "\"lots\" is no size",
            ),
            (&["run", "--kernel", "k", "--cpus", "-1"], "-1"),
            (
                &["run", "--kernel", "k", "--backend", "xen"],
                "[possible values: auto, soft, kvm]",
            ),
        ];
        for (arguments, culprit) in table {
            let line = refusal(arguments);
            assert!(line.contains(culprit) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_command_line_for_the_kernel_may_begin_with_a_dash() {
        let cli = Cli::try_parse_from(["umbra", "run", "--kernel", "k", "--cmdline", "-- -x"]);
        let Command::Run(run) = cli.unwrap().command else {
            panic!()
        };
        assert_eq!(run.machine.cmdline.as_deref(), Some("-- -x"));
    }

    #[test]
    fn the_debugging_switches_reach_the_specification() {
        let arguments = [
            "umbra",
            "run",
            "--kernel",
            "k",
            "--tag-bits",
            "2",
            "--first-generation",
            "524188",
            "--audit",
        ];
        let Command::Run(run) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!()
        };
        let spec = run.machine.spec("k".into(), None);
        assert_eq!((spec.tag_bits, spec.verify), (2, Verify::EveryFault(1000)));
        assert_eq!(spec.first_generation, (1 << 19) - 100);
    }

    fn run(arguments: &[&str]) -> Run {
        let all = [&["umbra", "run", "--kernel", "k"], arguments].concat();
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_exit_port_has_a_default_and_is_hexadecimal_or_decimal() {
        let table: [(&[&str], Option<u16>); 5] = [
            (&[], None),
            (&["--debug-exit"], Some(0xf4)),
            (&["--debug-exit", "0x501"], Some(0x501)),
            (&["--debug-exit=1281"], Some(0x501)),
            (&["--debug-exit", "--stats"], Some(0xf4)),
        ];
        for (arguments, port) in table {
            assert_eq!(run(arguments).spec().debug_exit, port, "{arguments:?}");
        }
        for port in ["x", "0x10000", "70000", "0x"] {
            assert!(refusal(&["run", "--kernel", "k", "--debug-exit", port]).contains("port"));
        }
    }

    #[test]
    fn the_test_device_brings_an_exit_port() {
        let plain = Command::Run(run(&[]));
        let tested = Command::Run(run(&["--test-device"]));
        assert_eq!(
            (plain.has_exit_port(), tested.has_exit_port()),
            (false, true)
        );
    }

    #[test]
    fn the_firmware_configuration_takes_items_and_needs_none() {
        assert_eq!(run(&[]).spec().fw_cfg, None);
        assert_eq!(run(&["--fw-cfg"]).spec().fw_cfg, Some(vec![]));
        let both = run(&[
            "--fw-cfg",
            "opt/a,string=x",
            "--fw-cfg",
            "name=opt/b,file=/f",
        ]);
        let names = both.spec().fw_cfg.unwrap();
        assert_eq!(
            (names.len(), &names[0].name[..], &names[1].name[..]),
            (2, "opt/a", "opt/b")
        );
        let bad = ["run", "--kernel", "k", "--fw-cfg", "opt/a"];
        assert!(refusal(&bad).contains("file=PATH or string=TEXT"));
    }

    #[test]
    fn modules_are_told_their_whole_value() {
        let modules = run(&["--module", "m a=1 b", "--module", "n"])
            .spec()
            .modules;
        let found: Vec<_> = modules
            .iter()
            .map(|m| (m.path.to_str().unwrap(), &m.command_line[..]))
            .collect();
        assert_eq!(found, [("m", "m a=1 b"), ("n", "n")]);
    }
}
