//! `umbra completions` and `umbra man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `umbra completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// `umbra man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The folder for all pages, which is made if it is not there [default: the first page to standard output]
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}
