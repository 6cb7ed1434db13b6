//! Trainings on several ranks, for the tests of them.

use super::{Output, root};
use pauc_testing::mpi::Launcher;
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns a command that starts `pauc-cli` on these ranks, in the project's root.
pub fn on<S: AsRef<std::ffi::OsStr>>(
    launcher: &Launcher,
    ranks: usize,
    args: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = launcher.command(ranks, Path::new(env!("CARGO_BIN_EXE_pauc-cli")));
    command.args(args).current_dir(root()).env_remove("PAUC_SIMD").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// Returns the ranks that work in a folder, without their launcher.
#[cfg(target_os = "linux")]
pub fn ranks(folder: &Path) -> Vec<u32> {
    let is_rank = |id: &u32| {
        std::fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|program| program.ends_with("pauc-cli"))
    };
    super::processes(folder).into_iter().filter(is_rank).collect()
}
