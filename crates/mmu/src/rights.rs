//! What page-table entries allow, and who may do what under which control registers
//! (SDM vol. 3, 4.6 and 4.7).

use umbra_x86::PageFaultError as Error;

use crate::mode::Mode;

/// Write, user and execute, as the AND over all levels of a walk gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rights(u8);

impl Rights {
    /// No entry so far has taken anything away.
    pub const ALL: Self = Self(7);
    /// Writes are allowed.
    pub const WRITE: Self = Self(1);
    /// User-mode accesses are allowed.
    pub const USER: Self = Self(2);
    /// Fetches are allowed.
    pub const EXECUTE: Self = Self(4);
    /// The two that an MMIO entry keeps.
    pub const WRITE_USER: Self = Self(3);

    pub const fn bits(self) -> u8 {
        self.0
    }

    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both allow.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This, without `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Builds from the three bits.
    pub const fn new(write: bool, user: bool, execute: bool) -> Self {
        Self(write as u8 | (user as u8) << 1 | (execute as u8) << 2)
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Reads data.
    Read,
    /// Writes data; also a read-modify-write.
    Write,
    /// Fetches instructions.
    Fetch,
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// It is a user-mode access: CPL is 3 and it is no implicit access to a system structure.
    pub user: bool,
    /// EFLAGS.AC, for explicit supervisor-mode accesses; false for implicit ones.
    pub ac: bool,
}

impl Access {
    /// The same mode, another kind.
    pub(crate) const fn with_kind(self, kind: AccessKind) -> Self {
        Self { kind, ..self }
    }
}

impl Mode {
    /// Tells whether a translation with these rights allows the access.
    pub(crate) fn allows(&self, rights: Rights, pkey: u8, access: Access) -> bool {
        if !self.is_paging() {
            return true;
        }
        let user_page = rights.contains(Rights::USER);
        let allowed = match (access.kind, access.user) {
            (AccessKind::Read, true) => user_page,
            (AccessKind::Write, true) => user_page && rights.contains(Rights::WRITE),
            (AccessKind::Fetch, true) => user_page && rights.contains(Rights::EXECUTE),
            (AccessKind::Read, false) => self.supervisor_may_touch(user_page, access.ac),
            (AccessKind::Write, false) => {
                self.supervisor_may_touch(user_page, access.ac)
                    && (!self.wp || rights.contains(Rights::WRITE))
            }
            (AccessKind::Fetch, false) => {
                rights.contains(Rights::EXECUTE) && !(self.smep && user_page)
            }
        };
        allowed && !self.key_forbids(user_page, pkey, access)
    }

    fn supervisor_may_touch(&self, user_page: bool, ac: bool) -> bool {
        !(user_page && self.smap && !ac)
    }

    /// Protection keys (SDM vol. 3, 4.6.2): data accesses to user pages only.
    fn key_forbids(&self, user_page: bool, pkey: u8, access: Access) -> bool {
        if !self.pke || !user_page || access.kind == AccessKind::Fetch {
            return false;
        }
        let key = self.pkru >> (2 * pkey);
        let access_disabled = key & 1 != 0;
        let write_disabled = key & 2 != 0;
        access_disabled
            || (write_disabled && access.kind == AccessKind::Write && (access.user || self.wp))
    }

    /// The error-code bits that the access alone decides.
    fn access_bits(&self, access: Access) -> u32 {
        let mut bits = 0;
        if access.kind == AccessKind::Write {
            bits |= Error::WRITE;
        }
        if access.user {
            bits |= Error::USER;
        }
        if access.kind == AccessKind::Fetch && (self.nxe || self.smep) {
            bits |= Error::FETCH;
        }
        bits
    }

    /// The error code of an access that met an entry that is not present.
    pub(crate) fn not_present(&self, access: Access) -> Error {
        Error(self.access_bits(access))
    }

    /// The error code of an access that met an entry with a reserved bit set.
    pub(crate) fn reserved(&self, access: Access) -> Error {
        Error(self.access_bits(access) | Error::PRESENT | Error::RESERVED)
    }

    /// The error code of an access that [`Mode::allows`] refused.
    pub(crate) fn violation(&self, rights: Rights, pkey: u8, access: Access) -> Error {
        let mut bits = self.access_bits(access) | Error::PRESENT;
        if self.key_forbids(rights.contains(Rights::USER), pkey, access) {
            bits |= Error::PKEY;
        }
        Error(bits)
    }
}
