//! Where translated code lives: a memory file mapped twice, once writable and once executable.
//!
//! Code is only ever appended, and never changed once it is there: what changes are the *links*, words in
//! a page of data beside the code through which one unit jumps to another. When code or links are full,
//! everything is dropped at once, between blocks, and the space used anew.

use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes of code of one processor.
const CODE: usize = 128 << 20;
/// How far from what it shall be near to the cache is mapped, in these steps, if the host has room there.
const AWAY: u64 = 128 << 20;
const STEPS: i64 = 14;
/// Bytes of links.
const LINKS: usize = 8 << 20;

/// Number of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(u32);

impl Link {
    /// As translated code hands it over.
    pub fn number(self) -> u32 {
        self.0
    }

    /// From what translated code handed over.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// The code and the links of one processor.
pub struct Cache {
    write: NonNull<u8>,
    /// Code, then links: near enough to each other for an address relative to the instruction.
    execute: NonNull<u8>,
    used: usize,
    links: usize,
    /// What is never dropped: it ends here.
    fixed: usize,
}

// SAFETY: the mappings belong to the cache alone and are plain memory; nothing refers to a thread.
unsafe impl Send for Cache {}

impl Cache {
    /// Maps an empty one, if possible within [reach](Self::reaches) of `near`; memory is taken when it is used.
    ///
    /// # Errors
    /// Where the host refuses executable memory.
    pub fn new(near: u64) -> Result<Self, Errno> {
        let file = memfd_create("umbra-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, CODE as u64)?;
        let pointer = |p: *mut std::ffi::c_void| NonNull::new(p.cast::<u8>()).ok_or(Errno::NOMEM);
        let whole = pointer(reserve(near)?)?;
        let mut cache = Self {
            write: whole,
            execute: whole,
            used: 0,
            links: 0,
            fixed: 0,
        };
        // SAFETY: 1. replaces the first CODE bytes of the mapping made above, which nobody uses yet.
        unsafe {
            mmap(
                whole.as_ptr().cast(),
                CODE,
                ProtFlags::READ | ProtFlags::EXEC,
                MapFlags::SHARED | MapFlags::FIXED,
                &file,
                0,
            )
        }?;
        // SAFETY: a new mapping of a file that nobody else has.
        let write = unsafe {
            mmap(
                std::ptr::null_mut(),
                CODE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        cache.write = pointer(write)?;
        Ok(cache)
    }

    /// Tells whether all code can name `address` by its distance, 31 bits and a sign.
    pub fn reaches(&self, address: u64) -> bool {
        let start = self.execute.as_ptr() as u64;
        let near = |from: u64| i32::try_from(address.wrapping_sub(from) as i64).is_ok();
        near(start) && near(start + CODE as u64)
    }

    /// Tells whether `bytes` of code and `links` more links have room.
    pub fn has_room(&self, bytes: usize, links: usize) -> bool {
        self.used + bytes <= CODE && (self.links + links) * 8 <= LINKS
    }

    /// Bytes of code that are used.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Where the next code will execute.
    pub fn next(&self) -> u64 {
        self.execute.as_ptr() as u64 + self.used as u64
    }

    /// Appends code made for [`Cache::next`]. The caller has asked for room.
    pub fn add(&mut self, code: &[u8]) -> u64 {
        assert!(self.has_room(code.len(), 0), "code that has no room");
        let at = self.next();
        // SAFETY: `used..used + len` lies inside the writable mapping, and nothing executes there: it is
        // behind all code that was made.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.as_ptr().add(self.used),
                code.len(),
            );
        }
        self.used = (self.used + code.len()).next_multiple_of(16).min(CODE);
        at
    }

    /// Keeps all code that is there for good.
    pub fn fix(&mut self) {
        self.fixed = self.used;
    }

    /// Makes a link.
    pub fn link(&mut self) -> Link {
        assert!(self.has_room(0, 1), "a link that has no room");
        self.links += 1;
        Link(self.links as u32 - 1)
    }

    /// Where the link's word is.
    pub fn place(&self, link: Link) -> u64 {
        self.execute.as_ptr() as u64 + (CODE + link.0 as usize * 8) as u64
    }

    /// Leads `link` to `target`, which is code of this cache.
    pub fn lead(&mut self, link: Link, target: u64) {
        let inside = (link.0 as usize) < self.links;
        assert!(inside, "a link that was not made");
        // SAFETY: the link's word lies in the part of the mapping behind the code, which is writable
        // data; translated code of this processor reads it, and does not execute now.
        unsafe { (self.place(link) as *mut u64).write(target) };
    }

    /// Drops all code but what was fixed, and all links. No such code may be executing, or be reached
    /// from anywhere.
    pub fn clear(&mut self) {
        self.used = self.fixed;
        self.links = 0;
    }
}

/// Address space for code and links: near to `near`, if there is room, or anywhere.
fn reserve(near: u64) -> Result<*mut std::ffi::c_void, Errno> {
    let map = |at: u64, flags| {
        // SAFETY: a new mapping, which replaces nothing.
        unsafe {
            mmap_anonymous(
                at as *mut std::ffi::c_void,
                CODE + LINKS,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | flags,
            )
        }
    };
    let steps = (1..STEPS).flat_map(|step| [-step, step]);
    let places = steps.map(|step| near.wrapping_add_signed(step * AWAY as i64) & !0xfff);
    for place in places {
        if let Ok(found) = map(place, MapFlags::FIXED_NOREPLACE) {
            return Ok(found);
        }
    }
    map(0, MapFlags::empty())
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and only the processor that owns them executes the code.
        unsafe {
            let _ = munmap(self.execute.as_ptr().cast(), CODE + LINKS);
            if self.write != self.execute {
                let _ = munmap(self.write.as_ptr().cast(), CODE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_near_to_what_it_shall_be_near_to() {
        let word = Box::new(0u32);
        let near = std::ptr::from_ref(&*word) as u64;
        let cache = Cache::new(near).unwrap();
        assert!(cache.reaches(near));
        let start = cache.execute.as_ptr() as u64;
        assert!(cache.reaches(start - (1 << 30)) && !cache.reaches(start.wrapping_sub(1 << 31)));
        assert!(!cache.reaches(start.wrapping_add(1 << 32)) && !cache.reaches(0));
    }
}
