//! `umbra events`.

use std::path::PathBuf;

use clap::Args;

/// `umbra events`.
#[derive(Debug, Args)]
pub struct Events {
    /// The unix socket of the machine's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// Begin after the event of this number; 0 is the first that is kept [default: now; with --no-follow 0]
    #[arg(long, value_name = "N")]
    pub since: Option<u64>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Go on until the machine has ended, which is what is done anyway
    #[arg(long, overrides_with = "no_follow")]
    pub follow: bool,
    /// Print what has happened, and end
    #[arg(long)]
    pub no_follow: bool,
}
