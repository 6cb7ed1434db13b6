//! The time of an epoch by stage.

use pauc_data::Throughput;
use pauc_report::events;
use pauc_traits::trace::Stage;

/// The time spent in the steps of this epoch, by this process.
#[derive(Default)]
pub(crate) struct EpochTimings {
    /// Seconds.
    seconds: f64,
    /// Images that the steps saw.
    images: u64,
    stages: Vec<Stage>,
}

impl EpochTimings {
    /// Returns whether no step was timed.
    pub fn is_empty(&self) -> bool {
        self.images == 0
    }

    /// Adds a series of steps.
    pub fn add_steps(&mut self, seconds: f64, images: u64) {
        self.seconds += seconds;
        self.images += images;
    }

    /// Adds the stages of a series of steps.
    pub fn add_stages(&mut self, stages: Vec<Stage>) {
        for new in stages {
            match self.stages.iter_mut().find(|s| s.path == new.path) {
                Some(s) => (s.calls, s.time) = (s.calls + new.calls, s.time + new.time),
                None => self.stages.push(new),
            }
        }
    }

    /// Returns the event that reports the epoch. `loaded` is the loader's work in the meantime.
    pub fn event(self, step: u64, epoch: f64, loaded: Throughput) -> events::Stages {
        let EpochTimings { seconds, images, stages } = self;
        let traced: f64 = stages.iter().map(|s| s.time.as_secs_f64()).sum();
        let stage = |s: Stage| events::StageTime { name: s.path, seconds: s.time.as_secs_f64() };
        let mut stages: Vec<_> = stages.into_iter().map(stage).collect();
        stages.push(events::StageTime { name: "other".into(), seconds: (seconds - traced).max(0.0) });
        events::Stages {
            step,
            epoch,
            seconds,
            images_per_second: images as f64 / seconds.max(1e-9),
            stages,
            peak_memory_bytes: peak_memory(),
            loader: Some(events::LoaderTime {
                images: loaded.images,
                read: loaded.read.as_secs_f64(),
                augment: loaded.augment.as_secs_f64(),
                normalize: loaded.normalize.as_secs_f64(),
            }),
        }
    }
}

/// Returns the peak memory of this process in bytes; `None` where the system does not report it (only Linux
/// does).
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
