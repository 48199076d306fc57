//! The balloon.

use umbra_vmm::{BalloonControl, HintingError};

use super::Instance;
use crate::firecracker::config::BALLOON_ID;
use crate::firecracker::fault::Fault;
use crate::firecracker::resources::balloon::{
    Balloon, BalloonHintingStatus, BalloonStartCmd, BalloonStats, BalloonStatsUpdate, interval, mib,
};

/// What clients know.
const NOT_ACTIVE: &str = "Balloon: Device not activated yet.";

impl Instance {
    /// `GET /balloon`
    pub(super) fn balloon_config(&self) -> Result<Balloon, Fault> {
        let balloon = self.config.balloon();
        balloon.ok_or_else(|| Fault::BalloonConfig("No balloon device found.".into()))
    }

    /// What changes the balloon of a machine that runs.
    fn balloon(&self) -> Result<BalloonControl, Fault> {
        let control = self.handle()?.balloon(BALLOON_ID);
        control.ok_or_else(|| Fault::BalloonUpdate("No balloon device found.".into()))
    }

    /// The same, if the guest uses it.
    fn active_balloon(&self) -> Result<BalloonControl, Fault> {
        let control = self.balloon()?;
        match self.is_in_use(BALLOON_ID) {
            true => Ok(control),
            false => Err(Fault::BalloonUpdate(NOT_ACTIVE.into())),
        }
    }

    /// `PATCH /balloon`
    pub(super) fn resize_balloon(&mut self, amount_mib: u32) -> Result<(), Fault> {
        let control = self.active_balloon()?;
        if u64::from(amount_mib) > self.config.machine().mem_size_mib {
            return Err(Fault::BalloonUpdate(
                "Balloon: Amount of pages requested cannot be greater than the guest memory."
                    .into(),
            ));
        }
        let set = control.set_target(mib(amount_mib));
        set.map_err(|error| Fault::BalloonUpdate(format!("Balloon: {error}")))?;
        if let Some(balloon) = self.config.balloon_mut() {
            balloon.amount_mib = amount_mib;
        }
        Ok(())
    }

    /// `GET /balloon/statistics`
    pub(super) fn balloon_stats(&self) -> Result<BalloonStats, Fault> {
        let control = self.balloon()?;
        if self.balloon_config()?.stats_polling_interval_s == 0 {
            return Err(Fault::Device(
                "Balloon: Statistics for the balloon device are not enabled".into(),
            ));
        }
        Ok(BalloonStats::new(
            control.target(),
            control.actual(),
            control.statistics(),
        ))
    }

    /// `PATCH /balloon/statistics`
    pub(super) fn poll_balloon(&mut self, change: BalloonStatsUpdate) -> Result<(), Fault> {
        let seconds = change.stats_polling_interval_s;
        let control = self.balloon()?;
        let balloon = self.config.balloon_mut();
        let old = balloon
            .as_ref()
            .map_or(0, |balloon| balloon.stats_polling_interval_s);
        if (old == 0) != (seconds == 0) {
            return Err(Fault::BalloonUpdate(
                "Balloon: Statistics cannot be enabled/disabled after activation.".into(),
            ));
        }
        control.set_polling(interval(seconds));
        if let Some(balloon) = balloon {
            balloon.stats_polling_interval_s = seconds;
        }
        Ok(())
    }

    /// `PATCH /balloon/hinting/start`
    pub(super) fn start_hinting(&self, command: BalloonStartCmd) -> Result<(), Fault> {
        let started = self.balloon()?.start_hinting(command.acknowledge_on_stop);
        started.map(drop).map_err(no_hints)
    }

    /// `PATCH /balloon/hinting/stop`
    pub(super) fn stop_hinting(&self) -> Result<(), Fault> {
        self.balloon()?.stop_hinting().map_err(no_hints)
    }

    /// `GET /balloon/hinting/status`
    pub(super) fn hinting_status(&self) -> Result<BalloonHintingStatus, Fault> {
        let status = self.balloon()?.hinting();
        let status = status.ok_or_else(|| no_hints(HintingError::Off))?;
        Ok(BalloonHintingStatus {
            host_cmd: status.host_cmd,
            guest_cmd: status.guest_cmd,
        })
    }
}

fn no_hints(error: HintingError) -> Fault {
    Fault::BalloonUpdate(match error {
        HintingError::NoDriver => NOT_ACTIVE.into(),
        error => format!("Balloon: {error}"),
    })
}
