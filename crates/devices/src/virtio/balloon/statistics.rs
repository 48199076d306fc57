//! What a guest says of its memory (virtio 1.3, 5.5.6.3), and when it is asked.

use std::time::{Duration, Instant};

/// Bytes of an entry: a tag and a value.
const ENTRY: usize = 10;
/// Entries that are read; there are 16 tags.
const ENTRIES_MAX: usize = 64;
/// Bytes of a buffer that are looked at.
pub const BUFFER_MAX: usize = ENTRY * ENTRIES_MAX;
/// A guest is not asked more often than this.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What a guest has said of its memory. Bytes, or counts of what happened since it started; a driver says
/// what it knows. All of it is the guest's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalloonStatistics {
    /// When it came.
    pub at: Instant,
    /// Bytes that were swapped in (VIRTIO_BALLOON_S_SWAP_IN).
    pub swap_in: Option<u64>,
    /// Bytes that were swapped out (VIRTIO_BALLOON_S_SWAP_OUT).
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk (VIRTIO_BALLOON_S_MAJFLT).
    pub major_faults: Option<u64>,
    /// Page faults that did not (VIRTIO_BALLOON_S_MINFLT).
    pub minor_faults: Option<u64>,
    /// Bytes that are used for nothing (VIRTIO_BALLOON_S_MEMFREE).
    pub free: Option<u64>,
    /// Bytes that there are (VIRTIO_BALLOON_S_MEMTOT).
    pub total: Option<u64>,
    /// Bytes that can be had without swapping (VIRTIO_BALLOON_S_AVAIL).
    pub available: Option<u64>,
    /// Bytes that are taken for caches of files (VIRTIO_BALLOON_S_CACHES).
    pub caches: Option<u64>,
    /// Huge pages that were given (VIRTIO_BALLOON_S_HTLB_PGALLOC).
    pub huge_pages_given: Option<u64>,
    /// Huge pages that could not be given (VIRTIO_BALLOON_S_HTLB_PGFAIL).
    pub huge_pages_failed: Option<u64>,
    /// Processes that were ended for want of memory (VIRTIO_BALLOON_S_OOM_KILL; from here on newer than 1.3).
    pub oom_kills: Option<u64>,
    /// How often somebody had to wait for memory (VIRTIO_BALLOON_S_ALLOC_STALL).
    pub stalls: Option<u64>,
    /// Bytes that were looked at in the background (VIRTIO_BALLOON_S_ASYNC_SCAN).
    pub scanned_in_background: Option<u64>,
    /// Bytes that were looked at by who wanted memory (VIRTIO_BALLOON_S_DIRECT_SCAN).
    pub scanned_directly: Option<u64>,
    /// Bytes that were reclaimed in the background (VIRTIO_BALLOON_S_ASYNC_RECLAIM).
    pub reclaimed_in_background: Option<u64>,
    /// Bytes that were reclaimed by who wanted memory (VIRTIO_BALLOON_S_DIRECT_RECLAIM).
    pub reclaimed_directly: Option<u64>,
}

impl BalloonStatistics {
    /// Nothing is known.
    pub(super) fn none(at: Instant) -> Self {
        Self {
            at,
            swap_in: None,
            swap_out: None,
            major_faults: None,
            minor_faults: None,
            free: None,
            total: None,
            available: None,
            caches: None,
            huge_pages_given: None,
            huge_pages_failed: None,
            oom_kills: None,
            stalls: None,
            scanned_in_background: None,
            scanned_directly: None,
            reclaimed_in_background: None,
            reclaimed_directly: None,
        }
    }

    /// Reads a buffer of the driver's. Unknown tags are skipped, and so are bytes that make no entry.
    pub(super) fn read(bytes: &[u8], at: Instant) -> Self {
        let mut statistics = Self::none(at);
        for entry in bytes.chunks_exact(ENTRY) {
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().expect("2 bytes"));
            let value = u64::from_le_bytes(value.try_into().expect("8 bytes"));
            if let Some(place) = statistics.place(tag) {
                *place = Some(value);
            }
        }
        statistics
    }

    fn place(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            8 => &mut self.huge_pages_given,
            9 => &mut self.huge_pages_failed,
            10 => &mut self.oom_kills,
            11 => &mut self.stalls,
            12 => &mut self.scanned_in_background,
            13 => &mut self.scanned_directly,
            14 => &mut self.reclaimed_in_background,
            15 => &mut self.reclaimed_directly,
            _ => return None,
        })
    }
}

/// When the driver is asked: by giving its buffer back, which it then fills anew (5.5.6.3).
#[derive(Debug, Default)]
pub struct Polling {
    interval: Option<Duration>,
    /// Somebody wants to know now.
    wanted: bool,
    /// The driver's buffer is here, and was read.
    held: bool,
    latest: Option<BalloonStatistics>,
}

impl Polling {
    pub fn set_interval(&mut self, interval: Option<Duration>) {
        self.interval = interval.map(|interval| interval.max(INTERVAL_MIN));
    }

    /// Wants fresh numbers now.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    pub fn latest(&self) -> Option<BalloonStatistics> {
        self.latest
    }

    /// Tells whether the buffer that is here was read already.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Takes what was in a buffer, which is kept.
    pub fn take(&mut self, statistics: BalloonStatistics) {
        self.latest = Some(statistics);
        self.held = true;
    }

    /// Returns how long the buffer is kept yet; for ever if there is no number.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        if self.wanted {
            return Some(Duration::ZERO);
        }
        let since = self.latest.map_or(now, |latest| latest.at);
        let interval = self.interval?;
        Some(interval.saturating_sub(now.saturating_duration_since(since)))
    }

    /// The buffer is given back.
    pub fn ask(&mut self) {
        self.wanted = false;
        self.held = false;
    }

    /// The driver is no more. What it has said is not true of the next one.
    pub fn reset(&mut self) {
        self.held = false;
        self.latest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn every_tag_has_its_place_and_none_is_made_up() {
        let at = Instant::now();
        let mut bytes: Vec<u8> = (0..20)
            .flat_map(|tag| entry(tag, 100 + u64::from(tag)))
            .collect();
        bytes.extend([1, 2, 3]);
        let all = BalloonStatistics::read(&bytes, at);
        assert_eq!(
            (all.swap_in, all.free, all.total),
            (Some(100), Some(104), Some(105))
        );
        assert_eq!(
            (all.huge_pages_failed, all.reclaimed_directly),
            (Some(109), Some(115))
        );
        let some = BalloonStatistics::read(&entry(6, u64::MAX), at);
        let expected = BalloonStatistics {
            available: Some(u64::MAX),
            ..BalloonStatistics::none(at)
        };
        assert_eq!(some, expected);
        assert_eq!(
            BalloonStatistics::read(&[0; 9], at),
            BalloonStatistics::none(at)
        );
    }

    #[test]
    fn a_buffer_is_kept_until_the_interval_has_passed_or_somebody_asks() {
        let begin = Instant::now();
        let mut polling = Polling::default();
        polling.take(BalloonStatistics::none(begin));
        assert_eq!(polling.patience(begin), None);
        polling.set_interval(Some(Duration::from_secs(3)));
        let later = begin + Duration::from_secs(1);
        assert_eq!(polling.patience(later), Some(Duration::from_secs(2)));
        polling.want();
        assert_eq!(polling.patience(later), Some(Duration::ZERO));
        polling.ask();
        polling.set_interval(Some(Duration::ZERO));
        assert_eq!(polling.patience(begin), Some(INTERVAL_MIN));
        assert_eq!(
            polling.patience(begin + Duration::from_secs(9)),
            Some(Duration::ZERO)
        );
    }
}
