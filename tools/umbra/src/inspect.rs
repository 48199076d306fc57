//! `--inspect SOCKET`: answers `ptdump`.
//!
//! One line is a request, `page-tables CPU` or `page-tables CPU ADDRESS` (decimal; hexadecimal with
//! 0x); the answer is text to the end of the connection, or one line that begins with `error: `. One
//! connection at a time. The socket is for whoever may open it: its folder's permissions decide.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use umbra_vmm::Handle;

/// Longer requests are none.
const REQUEST_MAX: u64 = 128;
/// How long a client may take to ask, or to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers as long as it lives; the socket goes with it.
pub struct Inspector {
    path: PathBuf,
}

impl Inspector {
    /// Makes the socket, which must not exist yet, and a thread that answers.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn start(path: &Path, handle: Handle) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| {
            let hint = if path.exists() {
                "; remove it if nobody uses it"
            } else {
                ""
            };
            format!("cannot make the socket {}{hint}", path.display())
        })?;
        // It ends with the process: a machine that has ended answers so.
        std::thread::Builder::new()
            .name("inspect".into())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    // A client that went away has had its answer, as far as we are concerned.
                    let _ = answer(&client, &handle);
                }
            })
            .context("cannot start the thread that answers ptdump")?;
        let path = path.to_owned();
        Ok(Self { path })
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer(mut client: &UnixStream, handle: &Handle) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new(client.take(REQUEST_MAX)).read_line(&mut request)?;
    let mut text = match serve(&request, handle) {
        Ok(lines) => lines.join("\n"),
        Err(error) => format!("error: {error}"),
    };
    text.push('\n');
    client.write_all(text.as_bytes())
}

fn serve(request: &str, handle: &Handle) -> Result<Vec<String>, String> {
    let words: Vec<&str> = request.split_whitespace().collect();
    let (cpu, address) = match words.as_slice() {
        ["page-tables", cpu] => (cpu, None),
        ["page-tables", cpu, address] => (cpu, Some(number(address)?)),
        _ => {
            return Err(format!(
                "{:?} is no request; page-tables CPU [ADDRESS] is",
                request.trim()
            ));
        }
    };
    let cpu = usize::try_from(number(cpu)?).map_err(|error| error.to_string())?;
    handle
        .page_tables(cpu, address)
        .map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| format!("{text:?} is no number"))
}
