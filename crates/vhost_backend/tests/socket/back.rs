//! A back end on a thread of the test.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use umbra_vhost_backend::{Error, Server, Socket, Stopper, Visits};
use umbra_virtio::echo::{self, Knobs};

/// It ends with this.
pub struct Back {
    /// What the test turns and sees of the device.
    pub knobs: Arc<Knobs>,
    /// Where it listens.
    pub path: PathBuf,
    _dir: TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Back {
    /// Starts one that serves front ends until it is dropped.
    pub fn start() -> Self {
        Self::serve(Visits::Many)
    }

    /// Starts one.
    pub fn serve(visits: Visits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("back");
        let (device, knobs) = echo::device();
        let server = Server::new(Socket::bind(&path).unwrap(), Box::new(device)).unwrap();
        Self {
            knobs,
            path,
            _dir: dir,
            stopper: server.stopper(),
            thread: Some(std::thread::spawn(move || server.serve(visits))),
        }
    }

    /// Connects to it.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Waits until it ends by itself.
    pub fn end(mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Stops it.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
