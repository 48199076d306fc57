//! Counters: what the MMU did, and how often.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Plain counters; they live under the MMU lock.
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct Statistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Statistics {
            /// Names and values.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Answers from a present shadow entry.
    ram_hits,
    /// Answers from an MMIO entry with the current tag.
    mmio_hits,
    /// MMIO entries whose tag was another one.
    mmio_stale,
    /// MMIO entries made.
    mmio_marks,
    /// Walks of the guest's tables that led to an answer.
    slow_faults,
    /// Page faults for the guest.
    guest_faults,
    /// Decisions thrown away because the map had changed meanwhile.
    map_races,
    /// Decisions thrown away because a guest entry had changed meanwhile.
    table_races,
    /// Times the map was held still after too many races.
    holds,
    /// Answers that could not be remembered: a guest table outside RAM.
    uncached,
    /// Trapped writes to guest tables.
    tracked_writes,
    /// Roots that a processor began to use and that were there.
    roots_found,
    /// Roots made: no processor had used this table since it was changed or recycled.
    roots_made,
    /// Shadow pages made.
    pages_made,
    /// Shadow pages thrown away, for any reason.
    pages_zapped,
    /// Of these, because the table was written without being walked.
    pages_flooded,
    /// Of these, because there were too many.
    pages_recycled,
    /// Present leaves dropped.
    leaves_dropped,
    /// Present leaves that lost the write right.
    leaves_protected,
    /// Tables that became unsync.
    unsynced,
    /// Tables read again at a flush.
    synced,
    /// Times all pages became obsolete because the tag wrapped.
    wraps,
}
