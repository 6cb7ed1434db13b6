//! One error type for everything a component can fail at.

use std::path::{Path, PathBuf};

/// The result of a fallible component operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a component could not do its work. Every variant says what was wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes that have to agree do not.
    #[error("{operation}: {message}")]
    Shape {
        /// The operation or layer that was asked, such as `layer2.0.conv1`.
        operation: String,
        /// The shapes and the remedy.
        message: String,
    },
    /// A value of a recipe makes no sense together with the data or with another value.
    #[error("{message}")]
    Config {
        /// What is wrong and what would be right.
        message: String,
    },
    /// Something that a term reads is not there: keys without a momentum encoder, a queue, labels, levels.
    #[error("the term reads {what}, which this run does not have: {remedy}")]
    Missing {
        /// What is missing, such as "momentum keys".
        what: &'static str,
        /// How to provide it.
        remedy: &'static str,
    },
    /// A number that has to be finite is not.
    #[error("{what} is not finite{}", .place.as_ref().map(|p| format!(" ({p})")).unwrap_or_default())]
    NonFinite {
        /// What was computed.
        what: String,
        /// Where it was found, if known: a row, a layer, a step.
        place: Option<String>,
    },
    /// A file or folder is missing.
    #[error("{}: not found; {remedy}", path.display())]
    NotFound {
        /// The path that was looked for.
        path: PathBuf,
        /// How to get it.
        remedy: String,
    },
    /// A file is there, but its content is not what its format demands.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, where, and the remedy.
        message: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path that was used.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The tensor device failed.
    #[error("device: {0}")]
    Device(String),
    /// Anything else, from a plugin's own error type.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A [`Error::Shape`] from anything printable.
    pub fn shape(operation: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Shape { operation: operation.into(), message: message.into() }
    }

    /// A [`Error::Config`] from anything printable.
    pub fn config(message: impl Into<String>) -> Self {
        Error::Config { message: message.into() }
    }

    /// A [`Error::Damaged`] from anything printable.
    pub fn damaged(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Damaged { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Io`] about `path`; a missing file stays an `Io` error, callers that know a remedy use
    /// [`Error::NotFound`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A device error of dfdx, which is only `Debug`.
    pub fn device(error: impl std::fmt::Debug) -> Self {
        Error::Device(format!("{error:?}"))
    }

    /// Whether the cause is missing or damaged data rather than the run itself (exit code 4 of the binary).
    pub fn is_about_data(&self) -> bool {
        matches!(self, Error::NotFound { .. } | Error::Damaged { .. } | Error::Io { .. })
    }
}
