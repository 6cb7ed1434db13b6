//! Ranks that are processes, connected by an MPI library that is found when the program runs.

mod functions;
pub mod library;

use crate::launcher::LauncherError;
use crate::{CommunicationError, Communicator, Launcher, Library, Result};
use crate::{check_exchange, check_gather, check_root, check_shift, pieces};
use library::LibraryError;
use std::thread::ThreadId;

/// The most bytes that one call fills. MPI counts with 32 bits, so longer operations move pieces through buffers of
/// this size.
const LIMIT: usize = 1 << 28;

/// One of several ranks that a launcher has started.
///
/// Only the thread that has started MPI may use it; on others, all operations are errors. Nothing waits for other
/// ranks when this is dropped: call [`Mpi::finish`] at the end of the program. A process that ends without it
/// makes the launcher end the others.
#[derive(Debug)]
pub struct Mpi {
    library: Library,
    rank: usize,
    size: usize,
    limit: usize,
    thread: ThreadId,
}

/// Why the ranks cannot be connected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The launcher's variables cannot be used.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// There is no MPI library.
    #[error("this process was started by {launcher}, but {error}")]
    NoLibrary {
        /// The launcher's name.
        launcher: &'static str,
        /// Why there is no library.
        error: LibraryError,
    },
    /// Launcher and library do not belong together.
    #[error(
        "this process was started by {}, but the MPI library found, {file}, is {version}; start it with that \
         library's own mpirun or mpiexec, or set {} to the library of the launcher", .launcher.name, library::VARIABLE
    )]
    Family {
        /// The launcher.
        launcher: Box<Launcher>,
        /// The library's file.
        file: String,
        /// What the library says of itself.
        version: String,
    },
    /// The library reported an error.
    #[error(transparent)]
    Library(#[from] CommunicationError),
}

impl Mpi {
    /// Connects the ranks that a launcher has started. Must be called at most once in a process.
    ///
    /// # Errors
    /// If there is no library of the launcher's family, or it reports an error.
    pub fn start(launcher: &Launcher) -> Result<Mpi, StartError> {
        let family =
            |file, version| StartError::Family { launcher: Box::new(launcher.clone()), file, version };
        let library = library::find(launcher.family).map_err(|e| match e {
            LibraryError::Family { file, version } => family(file, version),
            error => StartError::NoLibrary { launcher: launcher.name, error },
        })?;
        let (rank, size) = library.calls.start()?;
        // A library that does not understand the launcher takes each process for a job of its own.
        if (rank, size) != (launcher.rank, launcher.size) {
            return Err(family(library.file, library.version));
        }
        Ok(Mpi { library, rank, size, limit: LIMIT, thread: std::thread::current().id() })
    }

    /// Limits the bytes that one call of the library fills, for tests of longer operations.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Mpi { limit, ..self }
    }

    /// Returns the library.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Ends the communication, once all ranks have called this. No operation may follow.
    ///
    /// # Errors
    /// If the library reports one.
    pub fn finish(&self) -> Result<()> {
        self.check_thread("MPI_Finalize")?;
        self.library.calls.finalize()
    }

    fn check_thread(&self, function: &'static str) -> Result<()> {
        let is_right = std::thread::current().id() == self.thread;
        if is_right { Ok(()) } else { Err(CommunicationError::Thread(function)) }
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        self.check_thread("all_gather")?;
        check_gather(self.size, own.len(), all.len())?;
        let call = |own: &[u8], all: &mut [u8]| self.library.calls.all_gather(own, all, self.size);
        pieces::all_gather((self.size, self.limit), own, all, call)
    }

    fn exchange(&self, to_each: &[u8], from_each: &mut [u8]) -> Result<()> {
        self.check_thread("exchange")?;
        check_exchange(self.size, to_each.len(), from_each.len())?;
        let call = |to: &[u8], from: &mut [u8]| self.library.calls.exchange(to, from, self.size);
        pieces::exchange((self.size, self.limit), to_each, from_each, call)
    }

    fn shift(&self, to_next: &[u8], from_previous: &mut [u8]) -> Result<()> {
        self.check_thread("shift")?;
        check_shift(to_next.len(), from_previous.len())?;
        let ranks = ((self.rank + 1) % self.size, (self.rank + self.size - 1) % self.size);
        let call = |to: &[u8], from: &mut [u8]| self.library.calls.shift(to, from, ranks);
        pieces::shift(self.limit, to_next, from_previous, call)
    }

    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        self.check_thread("broadcast")?;
        check_root(self.size, from)?;
        pieces::broadcast(self.limit, bytes, |bytes| self.library.calls.broadcast(bytes, from))
    }

    fn barrier(&self) -> Result<()> {
        self.check_thread("barrier")?;
        self.library.calls.barrier()
    }

    /// Ends all processes of the job through its launcher, with this exit code where the launcher passes it on.
    fn abort(&self, code: u8) -> ! {
        if self.check_thread("abort").is_ok() {
            self.library.calls.abort(code.into());
        }
        // The launcher ends the others when a process ends without finishing.
        std::process::exit(code.into())
    }
}
