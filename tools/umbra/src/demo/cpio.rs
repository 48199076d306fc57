//! Writes cpio archives in the "newc" format (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`). Everything belongs to root and dates from 1970, so that the same content is
//! the same archive.

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.member(name, DIRECTORY, (0, 0), b"")
    }

    /// Adds a file that is no program.
    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.member(name, FILE, (0, 0), content)
    }

    /// Adds an executable file.
    pub fn executable(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.member(name, EXECUTABLE, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.member(name, SYMLINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.member(name, CHARACTER_DEVICE, (major, minor), b"")
    }

    /// Returns the archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.member("TRAILER!!!", 0, (0, 0), b"");
        self.pad(512);
        self.bytes
    }

    fn member(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // An initramfs is far below 4 GiB, the format's limit.
        let (len, name_len) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [
            self.inode, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name_len, 0,
        ];
        self.inode += 1;
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend(content);
        self.pad(4);
        self
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_padded_and_the_trailer_ends_a_block() {
        let mut archive = Archive::default();
        archive
            .directory("dev")
            .character_device("dev/console", 5, 1)
            .executable("init", b"#!");
        let bytes = archive.finish();
        assert!(bytes.len().is_multiple_of(512));
        let text = String::from_utf8_lossy(&bytes);
        // Inode 1, mode, owner, links, time, size, device, special device 5:1, name length 12.
        assert!(text.contains(
            "070701000000010000218000000000000000000000000100000000000000000000000000000000\
             00000005000000010000000c00000000dev/console\0"
        ));
        assert!(text.contains("init\0\0#!\0\x00070701"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
