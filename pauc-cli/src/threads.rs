//! The number of threads that compute.

use crate::{Failure, args};

/// Starts the threads of the process: `asked`, or this rank's share of the cores.
pub fn start(asked: Option<usize>, ranks_here: usize) -> Result<(), Failure> {
    // Rayon's own variable takes precedence over the default.
    let rayon = std::env::var("RAYON_NUM_THREADS").ok();
    let number = rayon.as_ref().and_then(|v| v.parse::<usize>().ok());
    if let Some(threads) = number.filter(|n| asked.is_none() && *n > args::MAX_THREADS) {
        let message =
            format!("error: RAYON_NUM_THREADS={threads}: use at most {} threads", args::MAX_THREADS);
        return Err(Failure::new(2, message));
    }
    let is_default = asked.is_none() && std::env::var_os("RAYON_NUM_THREADS").is_none();
    let threads = asked.or_else(|| is_default.then(|| default(ranks_here))).unwrap_or(0);
    pauc::kernels::threads::start(threads)
        .map_err(|e| Failure::new(1, format!("error: cannot start {threads} threads: {e}")))
}

/// Returns the number of threads of a rank that shares its machine with others; 0 if the machine does not tell.
fn default(ranks_here: usize) -> usize {
    let Ok(available) = std::thread::available_parallelism() else { return 0 };
    if ranks_here == 1 {
        return available.get();
    }
    let cores = Cores { available: available.get(), own: allowed("self"), of_launcher: of_launcher() };
    if let Some(warning) = cores.warning(ranks_here) {
        errln!("{warning}");
    }
    cores.share(ranks_here)
}

/// The cores that processes may use.
struct Cores {
    /// Those of this process, also limited by a container.
    available: usize,
    /// Those that this process is bound to, if known.
    own: Option<usize>,
    /// Those that its launcher is bound to, if known.
    of_launcher: Option<usize>,
}

impl Cores {
    /// Returns this rank's share of the cores that the launcher could give.
    fn fair(&self, ranks: usize) -> usize {
        let is_bound = self.own.is_some() && self.own < self.of_launcher;
        let all = if is_bound { self.of_launcher.unwrap_or(1) } else { self.available };
        (all / ranks).max(1)
    }

    fn share(&self, ranks: usize) -> usize {
        self.fair(ranks).min(self.available)
    }

    /// Warns if the launcher has bound the rank to fewer cores than its share.
    fn warning(&self, ranks: usize) -> Option<String> {
        let (bound, fair) = (self.own?, self.fair(ranks));
        (bound < fair).then(|| {
            format!(
                "warning: the launcher binds each rank to {bound} of the {fair} cores that are its share; use \
                 --bind-to none (mpirun of Open MPI), -bind-to none (mpiexec of MPICH), I_MPI_PIN=0 (Intel MPI) or \
                 --cpus-per-task={fair} (srun)"
            )
        })
    }
}

/// Returns the number of cores that a process may use, as far as the system tells.
fn allowed(process: &str) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(count)
}

#[cfg(unix)]
fn of_launcher() -> Option<usize> {
    allowed(&std::os::unix::process::parent_id().to_string())
}

#[cfg(not(unix))]
fn of_launcher() -> Option<usize> {
    None
}

/// Counts the numbers of a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    };
    list.trim().split(',').map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_counted() {
        let counts = ["0", "0-15", " 0-3,8,10-11\n", "", "x", "3-1"].map(count);
        assert_eq!(counts, [Some(1), Some(16), Some(7), None, None, Some(0)]);
        if cfg!(target_os = "linux") {
            let available = std::thread::available_parallelism().unwrap().get();
            assert!(allowed("self").unwrap() >= available, "a container may limit them further");
        }
    }

    #[test]
    fn ranks_share_the_cores_of_their_machine() {
        let cores =
            |available, own, of_launcher| Cores { available, own: Some(own), of_launcher: Some(of_launcher) };
        // Not bound: 16 cores for 4 ranks.
        let free = cores(16, 16, 16);
        assert_eq!((free.share(4), free.share(32), free.warning(4)), (4, 1, None));
        // Bound to a quarter, as it should be.
        let bound = cores(4, 4, 16);
        assert_eq!((bound.share(4), bound.warning(4)), (4, None));
        // Bound to one core, which is Open MPI's default for one or two ranks.
        let narrow = cores(1, 1, 16);
        assert_eq!(narrow.share(4), 1);
        assert!(
            narrow
                .warning(4)
                .unwrap()
                .starts_with("warning: the launcher binds each rank to 1 of the 4 cores")
        );
        // Two ranks on each of two sockets.
        assert_eq!(cores(8, 8, 16).share(4), 4);
        // A container with 2 of 64 cores.
        let limited = cores(2, 64, 64);
        assert_eq!((limited.share(2), limited.warning(2)), (1, None));
        let unknown = Cores { available: 8, own: None, of_launcher: None };
        assert_eq!((unknown.share(2), unknown.warning(2)), (4, None));
    }
}
