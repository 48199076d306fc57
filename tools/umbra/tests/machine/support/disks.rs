//! Disks that are other processes: a folder with them, and those who serve them.

use std::fs;
use std::path::PathBuf;

use super::back_ends::{self, Program, Server, wait_for, wait_for_socket};

/// A folder with sockets and files.
pub struct Place(tempfile::TempDir);

impl Place {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where a file of it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Makes a disk of zeroes.
    pub fn disk(&self, name: &str, len: u64) {
        let file = fs::File::create(self.path(name)).unwrap();
        file.set_len(len).unwrap();
    }
}

/// QEMU's storage daemon with the disks `raw` and `ext4`, at sockets of the same names.
pub fn start_storage(daemon: &Program, place: &Place) -> Vec<Server> {
    let mut arguments = Vec::new();
    for name in ["raw", "ext4"] {
        let (file, socket) = (place.text(name), place.text(&format!("{name}.sock")));
        let _ = fs::remove_file(&socket);
        arguments.extend([
            "--blockdev".into(),
            format!("driver=file,filename={file},node-name={name},cache.direct=off"),
            "--export".into(),
            format!(
                "type=vhost-user-blk,id={name}-export,node-name={name},writable=on,\
                 addr.type=unix,addr.path={socket}"
            ),
        ]);
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let server = daemon.start(&arguments, &place.path("messages"));
    for name in ["raw", "ext4"] {
        wait_for_socket(&place.path(&format!("{name}.sock")));
    }
    vec![server]
}

/// Our own back ends, one for each disk.
pub fn start_ours(place: &Place) -> Vec<Server> {
    let start = |name: &str| {
        let (disk, socket) = (place.text(name), place.text(&format!("{name}.sock")));
        let arguments = ["backend", "block", &disk, "--socket", &socket];
        let server = back_ends::ours().start(&arguments, &place.path(&format!("{name}.log")));
        (server, place.path(&format!("{name}.log")))
    };
    ["raw", "ext4"]
        .map(start)
        .into_iter()
        .map(|(server, log)| {
            // A socket that a killed one has left is there all the time.
            wait_for(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("listens")));
            server
        })
        .collect()
}
