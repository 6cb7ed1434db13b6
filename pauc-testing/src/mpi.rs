//! The MPI launchers of this machine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable with further launchers, as paths separated by colons: those of Python packages, say.
const VARIABLE: &str = "PAUC_TEST_MPI";

/// A program that starts the ranks of a job.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    /// Whether it is that of Open MPI.
    pub is_open_mpi: bool,
}

impl Launcher {
    /// Returns the launcher in the system's path and those of `PAUC_TEST_MPI`. If there is none, says on stderr that
    /// `test` is skipped.
    pub fn all(test: &str) -> Vec<Launcher> {
        let further = std::env::var_os(VARIABLE).unwrap_or_default();
        let programs = std::iter::once("mpirun".into()).chain(std::env::split_paths(&further));
        let found: Vec<Launcher> = programs.filter_map(Launcher::of).collect();
        if found.is_empty() {
            // The harness hides what `eprintln!` prints. If stderr is closed, nobody reads it.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: there is no `mpirun`; install openmpi-bin");
        }
        found
    }

    fn of(program: PathBuf) -> Option<Launcher> {
        let version = Command::new(&program).arg("--version").output().ok()?;
        let is_open_mpi = String::from_utf8_lossy(&version.stdout).contains("Open MPI");
        version.status.success().then_some(Launcher { program, is_open_mpi })
    }

    /// Returns the folder with the library of a launcher that was named by its path.
    pub fn library_folder(&self) -> Option<PathBuf> {
        let folder = self.program.parent()?.parent()?.join("lib");
        folder.is_dir().then_some(folder)
    }

    /// Returns a command that starts `program` on `ranks` ranks, also as root, and on fewer cores than ranks.
    pub fn command(&self, ranks: usize, program: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if self.is_open_mpi {
            command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
        }
        if let Some(folder) = self.library_folder() {
            command.env("LD_LIBRARY_PATH", folder);
        }
        command.arg("-n").arg(ranks.to_string()).arg(program);
        command
    }
}
