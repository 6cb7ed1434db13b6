//! The output of a run: a progress line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pauc::report::events::Event;
use pauc::report::narrate::line;
use pauc::train::observer::{Observer, Progress};
use pauc::traits::Result;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by SIGINT, SIGTERM and SIGUSR1 (Ctrl-C on Windows).
static STOP: AtomicBool = AtomicBool::new(false);

/// On the first SIGINT or SIGTERM, asks the run to save and stop; a second one ends the process at once.
/// SIGUSR1, by which batch systems announce a job's time limit, also asks, even if repeated.
pub fn catch_signals() {
    if let Err(e) = watch_signals() {
        eprintln!("warning: cannot catch signals, so an interrupt will not save a checkpoint: {e}");
    }
}

#[cfg(unix)]
fn watch_signals() -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let watch = move || {
        for signal in signals.forever() {
            if signal == SIGUSR1 { announced() } else { interrupted() }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map(|_| ())
}

#[cfg(windows)]
fn watch_signals() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(interrupted)
}

fn interrupted() {
    if STOP.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    eprintln!("\nstopping after this step; a checkpoint will be saved (interrupt again to stop at once)");
}

#[cfg(unix)]
fn announced() {
    if !STOP.swap(true, Ordering::SeqCst) {
        eprintln!("\nSIGUSR1: stopping after this step; a checkpoint will be saved");
    }
}

/// Whether a signal has asked this process to stop.
pub fn stop_asked() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Whether messages on stderr may be colored.
pub fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Returns a progress bar for `total` items on stderr, which is hidden unless stderr is a terminal.
pub fn progress(verb: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template("{msg} {bar:24} {pos}/{len} eta {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(verb)
}

/// Prints the progress of a run on stderr.
pub struct Console {
    bar: Option<ProgressBar>,
}

impl Console {
    /// Creates a console for a run, with a progress bar only on a terminal.
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
        match (event, &self.bar) {
            // The bar shows the terms.
            (Event::Step(_), Some(_)) => return Ok(()),
            (Event::End(_), Some(bar)) => bar.finish_and_clear(),
            _ => {}
        }
        if let Some(line) = line(event) {
            self.say(&line);
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
        stop_asked()
    }
}
