//! The error type of all components.

use std::path::{Path, PathBuf};

/// The result of a fallible component operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a component. The message says what is wrong, where, and what is expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes that must agree differ.
    #[error("{operation}: {message}")]
    Shape {
        /// The operation or layer that failed, such as `layer2.0.conv1`.
        operation: String,
        /// The shapes and the remedy.
        message: String,
    },
    /// A value of a recipe is inconsistent with the data or with another value.
    #[error("{message}")]
    Config {
        /// What is wrong and what is expected.
        message: String,
    },
    /// A term reads something that the run does not provide: keys without a momentum encoder, a queue,
    /// labels, levels.
    #[error("the term reads {what}, which this run does not have; {remedy}")]
    Missing {
        /// What is missing, such as "momentum keys".
        what: &'static str,
        /// How to provide it.
        remedy: &'static str,
    },
    /// A number is NaN or infinite.
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
        /// The path.
        path: PathBuf,
        /// How to get it.
        remedy: String,
    },
    /// A file exists, but its content is invalid.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, where, and the remedy.
        message: String,
    },
    /// The operating system reported an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The run was asked to stop while this was computed; see [`stop`](crate::stop).
    #[error("stopped on request")]
    Stopped,
    /// The tensor device failed.
    #[error("device: {0}")]
    Device(String),
    /// Any other error, such as that of a plugin.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Returns an [`Error::Shape`].
    pub fn shape(operation: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Shape { operation: operation.into(), message: message.into() }
    }

    /// Returns an [`Error::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Error::Config { message: message.into() }
    }

    /// Returns an [`Error::Damaged`].
    pub fn damaged(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Damaged { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Returns an [`Error::Io`] about `path`. A missing file is also an `Io` error; callers that know a
    /// remedy use [`Error::NotFound`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Wraps a device error of dfdx, which only implements `Debug`.
    pub fn device(error: impl std::fmt::Debug) -> Self {
        Error::Device(format!("{error:?}"))
    }

    /// Returns whether the cause is missing or damaged data rather than the run itself (exit code 4 of the
    /// binary).
    pub fn is_about_data(&self) -> bool {
        matches!(self, Error::NotFound { .. } | Error::Damaged { .. } | Error::Io { .. })
    }
}
