//! `/balloon`, `/balloon/statistics` and `/balloon/hinting/…`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{BalloonSpec, BalloonStatistics, VirtioKind};

/// Bytes of a page, which balloons are counted in.
const PAGE: u64 = 4096;

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// What the guest shall lend, in MiB.
    pub amount_mib: u32,
    /// It may take back what it needs.
    pub deflate_on_oom: bool,
    /// Seconds between two looks at the guest's statistics; 0 for none, then and later.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The guest can be asked which pages are free.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// The guest says by itself which pages are free.
    #[serde(default)]
    pub free_page_reporting: bool,
}

impl Balloon {
    /// The device that it asks for.
    pub fn kind(&self) -> VirtioKind {
        VirtioKind::Balloon(BalloonSpec {
            size: mib(self.amount_mib),
            deflate_on_oom: self.deflate_on_oom,
            free_page_reporting: self.free_page_reporting,
            free_page_hinting: self.free_page_hinting,
            polling: interval(self.stats_polling_interval_s),
        })
    }
}

/// The interval that a number of seconds stands for.
pub fn interval(seconds: u16) -> Option<Duration> {
    (seconds != 0).then(|| Duration::from_secs(seconds.into()))
}

/// Bytes of so many MiB.
pub fn mib(amount: u32) -> u64 {
    u64::from(amount) << 20
}

/// A change of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// What the guest shall lend, in MiB.
    pub amount_mib: u32,
}

/// A change of how often statistics are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds in between.
    pub stats_polling_interval_s: u16,
}

/// The beginning of a run in which the guest says which pages are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonStartCmd {
    /// The run ends by itself when the guest has said everything.
    #[serde(default = "yes")]
    pub acknowledge_on_stop: bool,
}

impl Default for BalloonStartCmd {
    fn default() -> Self {
        Self {
            acknowledge_on_stop: true,
        }
    }
}

fn yes() -> bool {
    true
}

/// Where such a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BalloonHintingStatus {
    /// What the host last told the guest: 0 to stop, 1 that it is done, else the number of the run.
    pub host_cmd: u32,
    /// What the guest last answered.
    pub guest_cmd: Option<u32>,
}

/// What the guest says of its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BalloonStats {
    /// What it shall lend, in pages of 4 KiB.
    pub target_pages: u64,
    /// What it lends.
    pub actual_pages: u64,
    /// The same in MiB.
    pub target_mib: u64,
    /// The same in MiB.
    pub actual_mib: u64,
    #[serde(flatten)]
    guest: GuestStats,
}

/// Names as in virtio 1.3, 5.5.6.3; what a guest does not say is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
struct GuestStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb_failures: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_kill: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alloc_stall: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    async_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    async_reclaim: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_reclaim: Option<u64>,
}

impl BalloonStats {
    /// Puts together what host and guest say; sizes in bytes.
    pub fn new(target: u64, actual: u64, guest: Option<BalloonStatistics>) -> Self {
        let guest = guest.map(|guest| GuestStats {
            swap_in: guest.swap_in,
            swap_out: guest.swap_out,
            major_faults: guest.major_faults,
            minor_faults: guest.minor_faults,
            free_memory: guest.free,
            total_memory: guest.total,
            available_memory: guest.available,
            disk_caches: guest.caches,
            hugetlb_allocations: guest.huge_pages_given,
            hugetlb_failures: guest.huge_pages_failed,
            oom_kill: guest.oom_kills,
            alloc_stall: guest.stalls,
            async_scan: guest.scanned_in_background,
            direct_scan: guest.scanned_directly,
            async_reclaim: guest.reclaimed_in_background,
            direct_reclaim: guest.reclaimed_directly,
        });
        Self {
            target_pages: target / PAGE,
            actual_pages: actual / PAGE,
            target_mib: target >> 20,
            actual_mib: actual >> 20,
            guest: guest.unwrap_or_default(),
        }
    }
}
