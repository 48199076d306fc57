//! Firecracker's command line: under its name, or as `umbra firecracker`.
//!
//! Programs that start Firecracker know its options, what it says of its version, and how it ends; they get that, and
//! whatever is this monitor's own stays out of their way. What they cannot say is said by the environment:
//! `UMBRA_BACKEND` is `auto`, `soft` or `kvm`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use signal_hook::consts::{SIGHUP, SIGXCPU};
use umbra_api::firecracker::VERSION;
use umbra_api::firecracker::config::Options;
use umbra_api::firecracker::resources::logger::{LogLevel, LoggerConfig};
use umbra_vmm::{Backend, Outcome};

use super::signals::die_by;
use super::{Served, Service};
use crate::console::Escapes;
use crate::report;

/// The name that programs start, and that of the subcommand.
const NAME: &str = "firecracker";

/// How Firecracker ends (`FcExitCode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok = 0,
    Generic = 1,
    /// An argument's value is wrong.
    BadConfiguration = 152,
    /// The arguments are.
    ArgParsing = 153,
    /// SIGXCPU came.
    CpuTime = 154,
    /// SIGHUP came.
    Hangup = 156,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

#[derive(Debug, Parser)]
#[command(name = NAME, disable_version_flag = true)]
struct Cli {
    #[command(flatten)]
    arguments: Firecracker,
}

/// What Firecracker can be told.
#[derive(Debug, Args)]
pub struct Firecracker {
    /// The unix socket of the API
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    api_sock: PathBuf,
    /// What the machine is called: letters, digits and '-', 64 of them at most
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,
    /// A machine's configuration (JSON), which starts at once
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Metadata of the machine (JSON)
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Serve no API
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// A file or a pipe for the log [default: standard output]
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,
    /// How much the log says: Off, Error, Warning, Info, Debug or Trace
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// Only what is of modules whose names begin so
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// Say the level in each line
    #[arg(long)]
    show_level: bool,
    /// Say the place in the source in each line
    #[arg(long)]
    show_log_origin: bool,
    /// A file or a pipe for counters
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 51200)]
    http_api_max_payload_size: usize,
    /// Bytes of metadata [default: as of a request]
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,
    /// Put devices on a PCI bus, where others can come and go
    #[arg(long)]
    enable_pci: bool,
    /// Taken, and of no consequence: no filter of system calls is installed
    #[arg(long)]
    no_seccomp: bool,
    /// Refused: filters of Firecracker's threads do not fit this program
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    seccomp_filter: Option<PathBuf>,
    /// Taken, and of no consequence
    #[arg(long)]
    boot_timer: bool,
    /// Taken, and of no consequence
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,
    /// Taken, and of no consequence
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,
    /// Taken, and of no consequence
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
    /// Print the version, and end
    #[arg(long)]
    version: bool,
    /// Refused: there are no snapshots
    #[arg(long)]
    snapshot_version: bool,
    /// Refused: there are no snapshots
    #[arg(long, value_name = "FILE")]
    describe_snapshot: Option<PathBuf>,
    /// What is after -- is not looked at
    #[arg(last = true, hide = true)]
    rest: Vec<OsString>,
}

fn instance_id(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match (1..=64).contains(&text.len()) && text.chars().all(good) {
        true => Ok(text.into()),
        false => Err("it has 1 to 64 letters, digits and '-'".into()),
    }
}

/// Tells whether these arguments, with the program's name before them, are for Firecracker; returns its own then.
pub fn meant(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    let name = Path::new(arguments.first()?)
        .file_name()?
        .to_str()?
        .to_owned();
    if name.starts_with(NAME) {
        return Some(arguments);
    }
    if arguments.get(1).is_some_and(|first| first == NAME) {
        arguments.remove(0);
        return Some(arguments);
    }
    None
}

/// Does what the arguments say; returns the exit status.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let matches = Cli::command()
        .args_override_self(false)
        .try_get_matches_from(arguments);
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => {
            let exit = cli.arguments.run();
            match exit {
                Exit::Ok => tracing::info!("Firecracker exiting successfully. exit_code=0"),
                _ => tracing::error!("Firecracker exiting with error. exit_code={}", exit as u8),
            }
            exit.into()
        }
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp) => {
            let _ = error.print();
            Exit::Ok.into()
        }
        Err(error) => {
            let _ = error.print();
            Exit::ArgParsing.into()
        }
    }
}

impl Firecracker {
    fn run(self) -> Exit {
        if self.version {
            println!(
                "Firecracker v{VERSION}\n\nas Umbra {} serves it",
                env!("CARGO_PKG_VERSION")
            );
            return Exit::Ok;
        }
        if self.snapshot_version || self.describe_snapshot.is_some() {
            eprintln!("Error: this monitor has no snapshots yet");
            return Exit::Generic;
        }
        if self.seccomp_filter.is_some() {
            eprintln!(
                "Error: --seccomp-filter: filters of Firecracker's threads do not fit this program; leave it out"
            );
            return Exit::Generic;
        }
        let service = match self.service() {
            Ok(service) => service,
            Err(what) => {
                eprintln!("Error: {what}");
                return Exit::BadConfiguration;
            }
        };
        match service.run() {
            Ok(Served::Nothing) => Exit::Ok,
            Ok(Served::Signal(SIGHUP)) => Exit::Hangup,
            Ok(Served::Signal(SIGXCPU)) => Exit::CpuTime,
            Ok(Served::Signal(signal)) => {
                // Firecracker has no handler for it.
                die_by(signal);
                Exit::Generic
            }
            Ok(Served::Machine(ended)) => {
                report::crash_of(&ended.outcome);
                match ended.outcome {
                    Outcome::Stuck(_) => Exit::Generic,
                    // To Firecracker a guest that crashes has ended, like any other.
                    _ => Exit::Ok,
                }
            }
            Err(error) => {
                report::failure(&error);
                Exit::Generic
            }
        }
    }

    fn service(self) -> Result<Service, String> {
        let level = match self.level.as_deref() {
            None => None,
            Some(name) => Some(LogLevel::parse(name).ok_or_else(|| {
                format!(
                    "Invalid value for logger level: {name}. Possible values: [Off, Error, Warning, Info, Debug, Trace]"
                )
            })?),
        };
        Ok(Service {
            name: format!("Firecracker v{VERSION}"),
            options: Options {
                id: self.id,
                backend: backend()?,
                pci: self.enable_pci,
                mmds_limit: self
                    .mmds_size_limit
                    .unwrap_or(self.http_api_max_payload_size),
            },
            socket: (!self.no_api).then_some(self.api_sock),
            body_max: self.http_api_max_payload_size,
            config: self.config_file,
            metadata: self.metadata,
            logger: LoggerConfig {
                log_path: self.log_path,
                level,
                show_level: self.show_level.then_some(true),
                show_log_origin: self.show_log_origin.then_some(true),
                module: self.module,
            },
            metrics: self.metrics_path,
            escapes: Escapes::None,
        })
    }
}

/// Which processor, as the environment says.
fn backend() -> Result<Backend, String> {
    const VARIABLE: &str = "UMBRA_BACKEND";
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("auto") => Ok(Backend::Auto),
        Ok("soft") => Ok(Backend::Soft),
        Ok("kvm") => Ok(Backend::Kvm),
        Ok(other) => Err(format!("{VARIABLE}={other}: it is auto, soft or kvm")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Option<Vec<OsString>> {
        meant(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_programs_name_or_the_first_word_chooses() {
        for (line, own) in [
            ("firecracker --id a", Some(3)),
            ("/opt/bin/firecracker-v1.17.0-x86_64 --id a", Some(3)),
            ("/usr/bin/umbra firecracker --id a", Some(3)),
            ("umbra run --kernel firecracker", None),
            ("umbra", None),
        ] {
            assert_eq!(arguments(line).map(|own| own.len()), own, "{line}");
        }
    }

    #[test]
    fn what_clients_say_is_understood() {
        let line = "firecracker --api-sock /tmp/a.sock --id my-vm-1 --config-file c --no-api --metadata m \
                    --log-path l --level warning --module m --show-level --show-log-origin --metrics-path p \
                    --boot-timer --no-seccomp --http-api-max-payload-size 1000 --mmds-size-limit 2000 --enable-pci \
                    --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let service = cli.arguments.service().unwrap();
        assert_eq!((service.body_max, service.options.mmds_limit), (1000, 2000));
        assert!(service.options.pci && service.socket.is_none());
        for bad in [
            "--no-api",
            "--id a_b",
            "--id ",
            "--nope",
            "--no-seccomp --seccomp-filter f",
        ] {
            let line = format!("firecracker {bad}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{bad}");
        }
    }
}
