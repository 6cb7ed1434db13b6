//! What a person watching a run sees: one progress line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pauc::report::events::{self, Event, Subject};
use pauc::report::verdict::is_accuracy;
use pauc::train::engine::{Observer, Progress};
use pauc::traits::Result;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by SIGINT and SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

/// Makes the first SIGINT or SIGTERM ask the run to save and stop; a second one ends the process at once.
pub fn catch_signals() {
    let caught = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; a checkpoint will be saved (interrupt again to stop at once)");
    });
    if let Err(e) = caught {
        eprintln!("warning: signals cannot be caught, an interrupt will not save a checkpoint: {e}");
    }
}

/// Whether messages on stderr may be coloured.
pub fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Narrates a run on stderr.
pub struct Console {
    bar: Option<ProgressBar>,
}

impl Console {
    /// A console for a run; a bar only on a terminal.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} eta {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Console { bar }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Observer for Console {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(e) if self.bar.is_none() => {
                let term = |t: &events::Term| match t.value {
                    Some(v) => format!("{} {v:.3}", t.name),
                    None => format!("{} –", t.name),
                };
                self.say(&format!(
                    "step {:>6}  epoch {:>6.2}  loss {:.3}  {}  {:.0} images/s",
                    e.step,
                    e.epoch,
                    e.loss,
                    e.terms.iter().map(term).collect::<Vec<_>>().join("  "),
                    e.images_per_second,
                ));
            }
            Event::Clustering(e) => {
                let level = |l: &events::ClusterLevel| format!("k {} imbalance {:.2}", l.k, l.imbalance);
                let levels: Vec<_> = e.levels.iter().map(level).collect();
                self.say(&format!(
                    "epoch {:.0}: clustered in {:.1} s ({})",
                    e.epoch,
                    e.seconds,
                    levels.join("; ")
                ));
            }
            Event::Probe(e) => {
                let who = match e.subject {
                    Subject::Trained => "",
                    Subject::RandomInit => "random-init encoder: ",
                    Subject::RawPixels => "raw pixels: ",
                };
                // The many numbers of coagulation are for the report; here stand the accuracies.
                let accuracy = |m: &&events::Metric| is_accuracy(&m.name);
                let shown =
                    e.metrics.iter().filter(accuracy).map(|m| format!("{} {:.1} %", m.name, m.value * 100.0));
                let shown: Vec<_> = shown.collect();
                if !shown.is_empty() {
                    self.say(&format!("epoch {:.0}: {who}{}", e.epoch, shown.join("  ")));
                }
            }
            Event::Phase(e) => self.say(&format!("step {}: phase {}; {}", e.step, e.name, e.text)),
            Event::Warning(e) => self.say(&format!("warning: {}", e.text)),
            Event::End(e) => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
                let status = match e.status {
                    events::Status::Finished => "finished",
                    events::Status::Interrupted => "interrupted",
                    events::Status::Failed => "failed",
                };
                eprintln!("{status} after {:.1} s", e.seconds);
            }
            _ => {}
        }
        Ok(())
    }

    fn progress(&mut self, p: &Progress<'_>) {
        if let Some(bar) = &self.bar {
            bar.set_length(p.total);
            bar.set_position(p.step);
            let terms: Vec<_> = p.terms.iter().map(|t| format!("{} {:.2}", t.name, t.value)).collect();
            bar.set_message(format!(
                "epoch {:.1} {} {:.0} images/s",
                p.epoch,
                terms.join(" "),
                p.images_per_second
            ));
        }
    }

    fn should_stop(&self) -> bool {
        STOP.load(Ordering::SeqCst)
    }
}
