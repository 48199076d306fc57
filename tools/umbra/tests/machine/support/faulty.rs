//! A file of the host that fails, or takes its time, when it is told to: a FUSE file system that is one file.
//!
//! The host's kernel does what it does with any file whose medium fails: calls return EIO, or do not return. Only
//! what is needed for that is spoken of its protocol (linux/fuse.h, version 7.31).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// Nobody waits for an answer to these: FORGET, INTERRUPT, BATCH_FORGET.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// Every read and write comes here, past the page cache.
const FOPEN_DIRECT_IO: u32 = 1;
const HEADER: usize = 40;
/// Behind the header of a WRITE.
const WRITE_HEADER: usize = 40;
const MAX_WRITE: usize = 128 << 10;

/// What becomes of reads, writes and syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Works,
    Fails(Errno),
    /// Nothing is answered before the mood changes.
    Hangs,
}

/// The file. It goes with the process and its mount namespace.
#[derive(Clone)]
pub struct Faulty(Arc<Shared>);

struct Shared {
    mood: Mutex<Mood>,
    changed: Condvar,
}

impl Faulty {
    /// Puts the file, so many zeros, at a path that is there. For who may mount.
    pub fn mount(path: &Path, len: usize) -> Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.context("cannot open /dev/fuse")?;
        let options = format!(
            "fd={},rootmode=100600,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("faulty", path, "fuse", flags, Some(&*options)).context("cannot mount by FUSE")?;
        let this = Self(Arc::new(Shared {
            mood: Mutex::new(Mood::Works),
            changed: Condvar::new(),
        }));
        let theirs = this.clone();
        std::thread::spawn(move || theirs.serve(device, vec![0; len]));
        Ok(this)
    }

    pub fn set(&self, mood: Mood) {
        *self.0.mood.lock().unwrap() = mood;
        self.0.changed.notify_all();
    }

    /// What becomes of a request, when that is known.
    fn verdict(&self) -> Result<(), Errno> {
        let mut mood = self.0.mood.lock().unwrap();
        loop {
            match *mood {
                Mood::Works => return Ok(()),
                Mood::Fails(error) => return Err(error),
                Mood::Hangs => mood = self.0.changed.wait(mood).unwrap(),
            }
        }
    }

    fn serve(&self, mut device: File, mut bytes: Vec<u8>) {
        let mut buffer = vec![0; HEADER + WRITE_HEADER + MAX_WRITE];
        // It ends with the mount.
        while let Ok(len) = device.read(&mut buffer) {
            let request = &buffer[..len];
            let opcode = u32_at(request, 4);
            if UNANSWERED.contains(&opcode) {
                continue;
            }
            let answer = self.answer(opcode, &request[HEADER..], &mut bytes);
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error.raw_os_error(), Vec::new()),
            };
            let len = 16 + body.len() as u32;
            let unique = &request[8..16];
            let reply = [&len.to_ne_bytes(), &error.to_ne_bytes(), unique, &body].concat();
            // Who asked may have given up.
            let _ = device.write_all(&reply);
        }
    }

    fn answer(&self, opcode: u32, body: &[u8], bytes: &mut [u8]) -> Result<Vec<u8>, Errno> {
        if matches!(opcode, READ | WRITE | FSYNC) {
            self.verdict()?;
        }
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(match opcode {
            // Version, read-ahead, flags, background, bytes of a write, and what is not used.
            INIT => words(&[&[7, 31, 0, 0, 0, MAX_WRITE as u32, 1][..], &[0; 9]].concat()),
            GETATTR | SETATTR => attributes(bytes.len() as u64),
            OPEN => words(&[0, 0, FOPEN_DIRECT_IO, 0]),
            READ => {
                let begin = (u64_at(body, 8) as usize).min(bytes.len());
                let len = (u32_at(body, 16) as usize).min(bytes.len() - begin);
                bytes[begin..begin + len].to_vec()
            }
            WRITE => {
                let begin = u64_at(body, 8) as usize;
                let data = &body[WRITE_HEADER..];
                let place = bytes.get_mut(begin..begin + data.len());
                place.ok_or(Errno::FBIG)?.copy_from_slice(data);
                words(&[data.len() as u32, 0])
            }
            FSYNC | FLUSH | RELEASE => Vec::new(),
            _ => return Err(Errno::NOSYS),
        })
    }
}

/// A regular file of that length, known for ever.
fn attributes(len: u64) -> Vec<u8> {
    let times = [0u64; 3];
    let long = [[u64::MAX >> 1, 0, 1, len, len / 512].as_slice(), &times].concat();
    // Nanoseconds, mode, links, user, group, device, block size, flags.
    let short = [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0u32];
    let long = long.iter().flat_map(|word| word.to_ne_bytes());
    long.chain(short.iter().flat_map(|word| word.to_ne_bytes()))
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}
