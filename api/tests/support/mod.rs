//! A machine whose guest only halts, behind a real socket, and a client that knows HTTP no better than it has to.
#![allow(dead_code)]

pub mod document;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use umbra_api::firecracker::config::Options;
use umbra_api::firecracker::instance::{Instance, Message, Process};
use umbra_api::firecracker::resources::logger::LoggerConfig;
use umbra_api::firecracker::resources::serial::SerialDevice;
use umbra_api::server::{Limits, Server};
use umbra_vmm::{Backend, Console, Ended, Handle, RunError};

/// `cli; hlt`, for ever.
pub const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfc];

/// Writes a multiboot image that executes `code` at 1 MiB + 0x40.
pub fn write_kernel(path: &Path, code: &[u8]) {
    let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let (load, entry) = (0x10_0000u32, 0x10_0040u32);
    let end = entry + code.len() as u32;
    let header = [magic, flags, checksum, load, load, end, end + 0x1000, entry];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(0x40, 0);
    bytes.extend(code);
    std::fs::write(path, bytes).unwrap();
}

/// A process that does nothing with what it is told.
pub struct Silent;

impl Process for Silent {
    fn console(&mut self, serial: &SerialDevice) -> io::Result<Console> {
        Ok(match &serial.serial_out_path {
            Some(path) => Console::to(std::fs::File::create(path)?),
            None => Console::discarded(),
        })
    }

    fn set_logger(&mut self, config: &LoggerConfig) -> Result<(), String> {
        match &config.log_path {
            Some(path) => std::fs::File::create(path)
                .map(drop)
                .map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    fn started(&mut self, _handle: &Handle) {}
}

/// A served machine.
pub struct Rig {
    pub place: TempDir,
    server: Option<Server>,
    owner: Sender<Message>,
    thread: Option<JoinHandle<Result<Option<Ended>, RunError>>>,
    checked: AtomicUsize,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(false, Limits::default())
    }

    pub fn with(pci: bool, limits: Limits) -> Self {
        let place = tempfile::tempdir().unwrap();
        write_kernel(&place.path().join("kernel"), &HALT);
        for file in ["disk", "disk2", "pmem"] {
            std::fs::write(place.path().join(file), vec![0; 2 << 20]).unwrap();
        }
        std::fs::write(place.path().join("empty"), "").unwrap();
        let (owner, messages) = channel();
        let options = Options {
            id: "golden".into(),
            backend: Backend::Soft,
            pci,
            mmds_limit: limits.body,
        };
        let instance = Instance::new(options, Box::new(Silent), owner.clone());
        let thread = std::thread::spawn(move || instance.run(&messages));
        let server = Server::start(&place.path().join("api.sock"), limits, owner.clone()).unwrap();
        Self {
            place,
            server: Some(server),
            owner,
            thread: Some(thread),
            checked: AtomicUsize::new(0),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path("api.sock"))
    }

    /// Asks once.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut client = self.client();
        let answer = client.ask(method, path, body);
        self.checked.fetch_add(client.checked, Ordering::Relaxed);
        answer
    }

    /// How many requests of [`ask`](Self::ask) were compared with the document, and their answers.
    pub fn checked(&self) -> usize {
        self.checked.load(Ordering::Relaxed)
    }

    /// Says what the smallest machine needs, and starts it.
    pub fn start(&self) {
        let kernel = format!(r#"{{"kernel_image_path": "{}"}}"#, self.text("kernel"));
        assert_eq!(self.ask("PUT", "/boot-source", &kernel).status, 204);
        let start = self.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
        assert_eq!(start.status, 204, "{start:?}");
    }

    /// Ends the machine; returns how it ended.
    pub fn stop(self) -> Option<Ended> {
        self.owner.send(Message::Stop).unwrap();
        self.join()
    }

    /// What has happened to the machine, and how it ended if it has.
    pub fn log(self) -> Option<String> {
        let _ = self.owner.send(Message::Stop);
        let mut rig = self;
        let ended = rig.thread.take().unwrap().join().unwrap();
        Some(match ended {
            Ok(ended) => format!("{:?}", ended.map(|ended| ended.outcome)),
            Err(error) => format!("{error:?}"),
        })
    }

    /// Waits until the machine has ended, and returns how.
    pub fn join(mut self) -> Option<Ended> {
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.owner.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok());
        }
        drop(self.server.take());
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn fault(&self) -> String {
        self.json()["fault_message"]
            .as_str()
            .unwrap_or_else(|| panic!("{self:?}"))
            .to_owned()
    }
}

/// A connection.
pub struct Client {
    stream: BufReader<UnixStream>,
    /// How many requests were compared with the document, and their answers.
    pub checked: usize,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
            checked: 0,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Asks, and compares with the document what is asked and what is answered.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(request(method, path, body).as_bytes());
        let answer = self.answer().unwrap();
        document::check(method, path, body, &answer);
        self.checked += 1;
        answer
    }

    /// Asks, and reads the status of an answer that has no end.
    pub fn status(&mut self, method: &str, path: &str) -> u16 {
        self.send(request(method, path, "").as_bytes());
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Reads an answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim_end();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
        self.stream.read_exact(&mut body)?;
        Ok(Answer {
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        })
    }

    /// Waits until the other end has gone; what comes before is lost.
    pub fn wait_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A request on the wire.
pub fn request(method: &str, path: &str, body: &str) -> String {
    let length = match body {
        "" => String::new(),
        body => format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{length}\r\n{body}"
    )
}
