//! Errors that end a command, and their exit codes.

use crate::console;
use pauc::train::bench::BenchError;
use pauc::train::diagnostic::Diagnostics;
use pauc::train::plan::PlanError;
use pauc::train::recipe::LoadError;
use pauc::train::saved_run::OpenError;
use pauc::traits::Error;
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// Why a command failed: what to print, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// 1 the run failed, 2 usage or recipe, 3 a comparison failed, 4 data missing or damaged.
    pub code: u8,
    /// What to print.
    pub message: String,
}

impl Failure {
    /// Prints the message on stderr and returns the exit code.
    pub fn exit(self) -> ExitCode {
        self.print();
        ExitCode::from(self.code)
    }

    /// Prints the message on stderr. If it is empty, another rank prints its own.
    pub(crate) fn print(&self) {
        if !self.message.is_empty() {
            console::complain(format_args!("{}\n", self.message));
        }
    }

    pub(crate) fn new(code: u8, message: impl Display) -> Self {
        Failure { code, message: console::visible(&message.to_string()).into_owned() }
    }

    /// Returns the failure to produce `output`: 1 if that file cannot be written, else as for any error.
    pub(crate) fn of_output(e: Error, output: &Path) -> Self {
        match e {
            Error::Io { ref path, .. } if path == output => Failure::of_writing(e),
            e => e.into(),
        }
    }

    /// Returns the failure of something that only writes: every error of the system is about an output.
    pub(crate) fn of_writing(e: Error) -> Self {
        match e {
            Error::Io { ref source, .. } => {
                let help = "the file cannot be written there: create its folder, make it writable, free some \
                    space, or choose another path";
                let help = limit_to_raise(source).unwrap_or(help);
                Failure::new(1, format!("error: {e}\n{help}"))
            }
            e => e.into(),
        }
    }

    /// Returns the failure of a request; a request that does not fit the data or the run is a usage error.
    pub(crate) fn of_request(e: Error) -> Self {
        match e {
            Error::Config { .. } => Failure::new(2, format!("error: {e}")),
            e => e.into(),
        }
    }
}

/// Returns what to do if a limit of the system is why a file could not be opened or written.
pub(crate) fn limit_to_raise(error: &std::io::Error) -> Option<&'static str> {
    // Too many open files in this process, or in the whole system.
    if cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24)) {
        return Some("raise the limit on open files (`ulimit -n`)");
    }
    let is_too_large = error.kind() == std::io::ErrorKind::FileTooLarge;
    is_too_large.then_some("raise the limit on the size of files (`ulimit -f`)")
}

/// Returns whether a file cannot be read because of the path that the user gave. Otherwise, the disk is broken.
fn is_mistake(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
    };
    let mistakes =
        [InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied];
    mistakes.contains(&error.kind())
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::new(if e.is_about_data() { 4 } else { 1 }, format!("error: {e}"))
    }
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Self {
        // Rendering escapes what it quotes, and adds colors.
        Failure { code: 2, message: diagnostics.render(console::color()).trim_end().to_string() }
    }
}

impl From<LoadError> for Failure {
    fn from(e: LoadError) -> Self {
        match e {
            LoadError::File { ref source, .. } => match limit_to_raise(source) {
                Some(help) => Failure::new(1, format!("error: {e}\n{help}")),
                None => Failure::new(if is_mistake(source) { 2 } else { 4 }, format!("error: {e}")),
            },
            LoadError::Recipe(diagnostics) => diagnostics.into(),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        match e {
            PlanError::Recipe(diagnostics) => diagnostics.into(),
            PlanError::Data { error, .. } => Failure::new(4, format!("error: {error}")),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::NoRun(_) => Failure::new(2, format!("error: {e}")),
            OpenError::Recipe(e) => e.into(),
            OpenError::Plan(e) => e.into(),
            OpenError::Other(e) => Failure::of_request(e),
        }
    }
}

impl From<BenchError> for Failure {
    fn from(e: BenchError) -> Self {
        match e {
            BenchError::Recipe(diagnostics) => diagnostics.into(),
            BenchError::Failed(e) => e.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_their_exit_codes() {
        let missing = || Error::NotFound { path: "data".into(), remedy: "fetch it".into() };
        assert_eq!(Failure::from(missing()).code, 4);
        assert_eq!(Failure::from(Error::config("k is too large")).code, 1);
        assert_eq!(Failure::of_request(Error::config("k is too large")).code, 2);
        assert_eq!(Failure::of_request(missing()).code, 4);
        let io = || Error::io("out/x", std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(Failure::of_output(io(), Path::new("out/x")).code, 1);
        assert_eq!(Failure::of_output(io(), Path::new("out")).code, 4, "an input, not the output");
        assert_eq!(Failure::of_output(missing(), Path::new("data")).code, 4);
        assert_eq!((Failure::of_writing(io()).code, Failure::of_writing(missing()).code), (1, 4));
        let full =
            |code| Failure::of_writing(Error::io("x", std::io::Error::from_raw_os_error(code))).message;
        if cfg!(target_os = "linux") {
            assert!(full(24).contains("`ulimit -n`") && full(27).contains("`ulimit -f`"), "{}", full(24));
        }
        let unreadable = |source| OpenError::Recipe(LoadError::File { path: "a.ron".into(), source });
        let failure = Failure::from(unreadable(std::io::ErrorKind::NotFound.into()));
        let message = "error: cannot read the recipe a.ron: entity not found";
        assert_eq!((failure.code, &*failure.message), (2, message));
        if cfg!(target_os = "linux") {
            let code = |number| Failure::from(unreadable(std::io::Error::from_raw_os_error(number))).code;
            assert_eq!([5, 13, 21, 24].map(code), [4, 2, 2, 1], "EIO, EACCES, EISDIR, EMFILE");
        }
    }
}
