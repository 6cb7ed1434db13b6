//! What the program prints. No failure to print ends it: a reader that goes away, or a full disk behind a
//! redirection, must not cost a training.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pauc::report::events::Event;
use pauc::report::narrate::line;
use pauc::train::observer::{Observer, Progress};
use pauc::traits::Result;
use pauc::traits::progress::{Bar, Display};
use std::borrow::Cow;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Prints to stdout, like `print!`, but never panics: see [`lost_output`].
macro_rules! out {
    ($($arg:tt)*) => { $crate::console::write_stdout(format_args!($($arg)*)) };
}

/// As [`out`], with a line break.
macro_rules! outln {
    () => { out!("\n") };
    ($($arg:tt)*) => { out!("{}\n", format_args!($($arg)*)) };
}

/// Prints to stderr, like `eprint!`, but ignores failures: there is nobody to tell.
macro_rules! err {
    ($($arg:tt)*) => { $crate::console::write_stderr(format_args!($($arg)*)) };
}

/// As [`err`], with a line break.
macro_rules! errln {
    ($($arg:tt)*) => { err!("{}\n", format_args!($($arg)*)) };
}

/// The first failure to write to stdout.
static OUTPUT_FAILURE: OnceLock<std::io::Error> = OnceLock::new();

/// Set on ranks that print nothing but errors.
static SILENT: OnceLock<()> = OnceLock::new();

/// Prints nothing from now on but errors that end the process: another rank prints the rest.
pub fn silence() {
    // It may be set already.
    let _ = SILENT.set(());
}

fn is_silent() -> bool {
    SILENT.get().is_some()
}

/// Writes to stdout, unless that has failed before. Control characters are escaped: see [`visible`].
pub fn write_stdout(text: fmt::Arguments<'_>) {
    let write = || std::io::stdout().lock().write_all(visible(&text.to_string()).as_bytes());
    if OUTPUT_FAILURE.get().is_none()
        && !is_silent()
        && let Err(e) = BARS.suspend(write)
    {
        // Another thread's failure is as good.
        let _ = OUTPUT_FAILURE.set(e);
    }
}

/// Writes to stderr if that is possible.
pub fn write_stderr(text: fmt::Arguments<'_>) {
    if !is_silent() {
        complain(text);
    }
}

/// As [`write_stderr`], also on ranks that are silent.
pub fn complain(text: fmt::Arguments<'_>) {
    let _ = BARS.suspend(|| std::io::stderr().lock().write_fmt(text));
}

/// Escapes control characters in text that quotes names of files, archives' members or tensors: they could
/// hide a message, or change the terminal's settings.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_hidden) {
        return text.into();
    }
    let escaped = |c: char| if is_hidden(c) { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

/// Returns whether the reader of stdout has gone away.
fn reader_is_gone() -> bool {
    OUTPUT_FAILURE.get().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Returns why output was lost, after writing what is buffered. A reader that went away, as in `| head`, has
/// what it wanted: then nothing was lost.
pub fn lost_output() -> Option<&'static std::io::Error> {
    if OUTPUT_FAILURE.get().is_none()
        && let Err(e) = std::io::stdout().lock().flush()
    {
        let _ = OUTPUT_FAILURE.set(e);
    }
    OUTPUT_FAILURE.get().filter(|_| !reader_is_gone())
}

/// Set by a signal (Ctrl-C on Windows), or by the end of a sweep.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether there is a run that looks at [`STOP`].
static CAUGHT: AtomicBool = AtomicBool::new(false);

/// On the first SIGINT or SIGTERM, asks the run to save and stop; a second one ends the process at once.
/// Signals that announce an end also ask, even if repeated: SIGHUP of a closed terminal, SIGUSR1 of a batch
/// system, SIGXCPU of a limit on processor time.
pub fn catch_signals() {
    CAUGHT.store(true, Ordering::SeqCst);
    if let Err(e) = watch_signals() {
        errln!("warning: cannot catch signals, so an interrupt will not save a checkpoint: {e}");
    }
}

#[cfg(unix)]
fn watch_signals() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXCPU};
    // Under `nohup`, a training outlives its terminal.
    let of_terminal = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let caught = [SIGINT, SIGTERM, SIGUSR1, SIGXCPU].into_iter().chain(of_terminal);
    let mut signals = signal_hook::iterator::Signals::new(caught)?;
    let watch = move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => announced("SIGHUP"),
                SIGUSR1 => announced("SIGUSR1"),
                SIGXCPU => announced("SIGXCPU"),
                _ => interrupted(),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map(|_| ())
}

/// Returns whether this process ignores a signal, as far as the system tells.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(windows)]
fn watch_signals() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(interrupted)
}

fn interrupted() {
    if STOP.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    errln!("\nstopping after this step; a checkpoint will be saved (interrupt again to stop at once)");
}

#[cfg(unix)]
fn announced(signal: &str) {
    if !STOP.swap(true, Ordering::SeqCst) {
        errln!("\n{signal}: stopping after this step; a checkpoint will be saved");
    }
}

/// Asks the run to save and stop when stdin ends, or ends the process before [`catch_signals`]. A sweep holds the
/// other end of its runs' stdin, which the system closes however the sweep ends.
pub fn stop_at_end_of_stdin() {
    let watch = || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        STOP.store(true, Ordering::SeqCst);
        if !CAUGHT.load(Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("stdin".into()).spawn(watch) {
        errln!("warning: cannot watch stdin, so this run will not end with its sweep: {e}");
    }
}

/// Lets a write beyond the limit on the size of files fail, like one to a full disk. The system would end the process.
#[cfg(unix)]
pub fn survive_file_size_limit() {
    // If it cannot be registered, the system's default stays.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

#[cfg(not(unix))]
pub fn survive_file_size_limit() {}

/// Whether a signal has asked this process to stop.
pub fn stop_asked() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Whether messages on stderr may be colored.
pub fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// The progress bars, on stderr, and hidden unless that is a terminal. Other output suspends them.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));

/// Adds a progress bar.
fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // A bar that cannot be written is not shown.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    };
    let style = style.with_key("rate", rate);
    // Added before it is drawn for the first time, else it would be drawn outside of the others.
    BARS.add(ProgressBar::new(total).with_style(style))
}

fn shows_progress() -> bool {
    std::io::stderr().is_terminal() && !is_silent()
}

/// Returns what shows the progress of this process: bars on stderr if that is a terminal.
pub fn display() -> Option<Arc<dyn Display>> {
    shows_progress().then(|| Arc::new(Bars) as Arc<dyn Display>)
}

/// Shows tasks as bars.
struct Bars;

impl Display for Bars {
    fn begin(&self, what: &str, total: u64) -> Box<dyn Bar> {
        Box::new(TaskBar {
            what: what.into(),
            total,
            began: Instant::now(),
            done: AtomicU64::new(0),
            bar: OnceLock::new(),
        })
    }
}

/// The time after which a task is shown. Bars of short tasks would flicker.
const PATIENCE: Duration = Duration::from_millis(500);

/// The bar of a task, which is drawn once the task has lasted a while.
struct TaskBar {
    what: String,
    total: u64,
    began: Instant,
    done: AtomicU64,
    bar: OnceLock<ProgressBar>,
}

impl TaskBar {
    fn draw(&self) -> ProgressBar {
        if self.total == 0 {
            return bar(0, "{msg} {pos} {rate}").with_message(self.what.clone());
        }
        bar(self.total, "{msg} {bar:24} {pos}/{len} {rate} eta {eta}").with_message(self.what.clone())
    }
}

impl Bar for TaskBar {
    fn advance(&self, parts: u64) {
        let done = self.done.fetch_add(parts, Ordering::Relaxed) + parts;
        if self.bar.get().is_some() || self.began.elapsed() >= PATIENCE {
            self.bar.get_or_init(|| self.draw().with_elapsed(self.began.elapsed())).set_position(done);
        }
    }
}

impl Drop for TaskBar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

/// Prints the progress of a run on stderr.
pub struct Console {
    bar: Option<ProgressBar>,
}

impl Console {
    /// Creates a console for a run, with a progress bar only on a terminal.
    pub fn new() -> Self {
        Console { bar: shows_progress().then(|| bar(0, "{bar:24} {pos}/{len} {msg} eta {eta}")) }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
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
            errln!("{}", visible(&line));
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

    fn stop_flag(&self) -> Option<Arc<AtomicBool>> {
        Some(STOP.clone())
    }
}
