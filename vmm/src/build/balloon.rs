//! The balloon, and what changes it from outside.

use umbra_devices::virtio::{Balloon, BalloonControl, BalloonOptions};

use crate::spec::BalloonSpec;

/// Makes the device.
pub fn make(id: &str, spec: &BalloonSpec) -> (Balloon, BalloonControl) {
    let options = BalloonOptions {
        name: id.to_owned(),
        target: spec.size,
        deflate_on_oom: spec.deflate_on_oom,
        free_page_reporting: spec.free_page_reporting,
        free_page_hinting: spec.free_page_hinting,
        polling: spec.polling,
    };
    Balloon::new(options).expect("a plan's balloon is smaller than its memory")
}
