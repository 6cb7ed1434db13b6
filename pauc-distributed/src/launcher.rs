//! The program that has started this process as one of several ranks: `mpirun`, `mpiexec`, `srun`, `flux run`.

/// A family of MPI libraries and launchers. A library of one family does not work with a launcher of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Open MPI.
    OpenMpi,
    /// MPICH and what is derived from it: Intel MPI, MVAPICH, Cray MPICH.
    Mpich,
}

impl Family {
    /// Returns the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH or Intel MPI",
        }
    }
}

/// What the launcher has told this process, by environment variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// Its name for messages.
    pub name: &'static str,
    /// The family that the library must have; `None` if the launcher works with several.
    pub family: Option<Family>,
    /// The rank of this process.
    pub rank: usize,
    /// The number of ranks.
    pub size: usize,
    /// The number of this rank among those of its machine, if known.
    pub local_rank: Option<usize>,
    /// The number of ranks on this machine, if known.
    pub local_size: Option<usize>,
}

/// The variables of a launcher.
struct Signature {
    name: &'static str,
    family: Option<Family>,
    rank: &'static str,
    /// The first that is set.
    size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_size: &'static [&'static str],
}

const SLURM_SIZE: [&str; 2] = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];

/// The launchers. Open MPI's also sets the variables of PMIx.
const SIGNATURES: [Signature; 3] = [
    Signature {
        name: "Open MPI's mpirun",
        family: Some(Family::OpenMpi),
        rank: "OMPI_COMM_WORLD_RANK",
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    // srun --mpi=pmi2 sets these, too.
    Signature {
        name: "a launcher with PMI, such as the mpiexec of MPICH and Intel MPI",
        family: Some(Family::Mpich),
        rank: "PMI_RANK",
        size: &["PMI_SIZE", SLURM_SIZE[0], SLURM_SIZE[1]],
        local_rank: &["MPI_LOCALRANKID", "SLURM_LOCALID"],
        local_size: &["MPI_LOCALNRANKS"],
    },
    Signature {
        name: "a launcher with PMIx, such as srun --mpi=pmix",
        family: None,
        rank: "PMIX_RANK",
        size: &[SLURM_SIZE[0], SLURM_SIZE[1], "FLUX_JOB_SIZE"],
        local_rank: &["SLURM_LOCALID", "FLUX_TASK_LOCAL_ID"],
        local_size: &[],
    },
];

/// Why the variables of a launcher cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LauncherError {
    /// A variable has no possible value.
    #[error("{variable}={value}: not {expected}; start pauc-cli with mpirun, mpiexec or srun")]
    Value {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// The number of ranks is not known.
    #[error("{rank} is set, but none of {}; start pauc-cli with mpirun, mpiexec or srun", .sizes.join(", "))]
    Size {
        /// The variable with the rank.
        rank: &'static str,
        /// The variables that would tell the number of ranks.
        sizes: &'static [&'static str],
    },
    /// Slurm has started tasks that cannot find each other.
    #[error(
        "srun has started {0} tasks without a way to find each other; use `srun --mpi=pmix` or `srun --mpi=pmi2` \
         (`srun --mpi=list` shows what there is), or one task"
    )]
    SlurmWithoutPmi(usize),
}

/// Prefixes of the variables by which launchers tell a process its rank.
const PREFIXES: [&str; 5] = ["OMPI_", "PMI_", "PMI2_", "PMIX_", "MPI_LOCAL"];

impl Launcher {
    /// Reads the variables of this process. `None` if no launcher has started it.
    ///
    /// # Errors
    /// If they contradict each other.
    pub fn detect() -> Result<Option<Launcher>, LauncherError> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Returns the variables of this process that tell a launcher's ranks. A process that is started without
    /// them trains alone.
    pub fn variables() -> Vec<std::ffi::OsString> {
        std::env::vars_os().map(|(name, _)| name).filter(|name| tells_rank(&name.to_string_lossy())).collect()
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launcher>, LauncherError> {
        let number = |name: &'static str| -> Result<Option<usize>, LauncherError> {
            let wrong =
                |value: String| LauncherError::Value { variable: name, value, expected: "a number".into() };
            variable(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
        };
        let first = |names: &[&'static str]| -> Result<Option<usize>, LauncherError> {
            names.iter().find_map(|name| number(name).transpose()).transpose()
        };
        let Some(found) = SIGNATURES.iter().find(|s| variable(s.rank).is_some()) else {
            return match number(SLURM_SIZE[0])? {
                Some(tasks) if tasks > 1 => Err(LauncherError::SlurmWithoutPmi(tasks)),
                _ => Ok(None),
            };
        };
        let rank = number(found.rank)?.unwrap_or_default();
        let size = first(found.size)?.ok_or(LauncherError::Size { rank: found.rank, sizes: found.size })?;
        if rank >= size {
            let expected = format!("a rank among {size}");
            return Err(LauncherError::Value { variable: found.rank, value: rank.to_string(), expected });
        }
        let of_slurm = || {
            let node = variable("SLURM_NODEID")?.parse().ok()?;
            tasks_of_node(&variable("SLURM_STEP_TASKS_PER_NODE")?, node)
        };
        Ok(Some(Launcher {
            name: found.name,
            family: found.family,
            rank,
            size,
            local_rank: first(found.local_rank)?,
            local_size: first(found.local_size)?.or_else(of_slurm),
        }))
    }
}

/// Returns whether a variable may tell a process its rank.
fn tells_rank(variable: &str) -> bool {
    PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

/// Returns the number of tasks of a node from Slurm's list, such as `8(x3),4`.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut nodes = 0;
    for entry in list.split(',') {
        let (tasks, times) = match entry.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        nodes += times;
        if node < nodes {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Launcher>, LauncherError> {
        Launcher::of(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_told_by_their_variables() {
        assert_eq!(of(&[("HOME", "/root"), ("SLURM_NTASKS", "4")]), Ok(None), "a batch script of Slurm");
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_RANK", "3"),
        ];
        let found = of(&open_mpi).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.family), (3, 8, Some(Family::OpenMpi)));
        assert_eq!((found.local_rank, found.local_size), (Some(1), Some(2)));
        let hydra =
            [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2"), ("MPI_LOCALRANKID", "0")];
        let found = of(&hydra).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.family), (0, 2, Some(Family::Mpich)));
        assert_eq!((found.local_rank, found.local_size), (Some(0), Some(2)));
        let slurm = [
            ("PMIX_RANK", "9"),
            ("SLURM_STEP_NUM_TASKS", "12"),
            ("SLURM_NODEID", "2"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3,1"),
        ];
        let found = of(&slurm).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.family), (9, 12, None));
        assert_eq!((found.local_rank, found.local_size), (Some(1), Some(3)));
    }

    #[test]
    fn every_variable_of_a_rank_is_removed_for_other_processes() {
        let ranks = SIGNATURES.iter().map(|signature| signature.rank);
        assert!(ranks.chain(["PMI_FD", "PMIX_NAMESPACE", "MPI_LOCALNRANKS"]).all(tells_rank));
        assert!(!["PATH", "SLURM_JOB_ID", "I_MPI_ROOT"].into_iter().any(tells_rank));
    }

    #[test]
    fn contradictions_are_errors() {
        let message = |variables| of(variables).unwrap_err().to_string();
        let text = message(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")]);
        assert!(text.starts_with("PMI_RANK=2: not a rank among 2"), "{text}");
        let text = message(&[("OMPI_COMM_WORLD_RANK", "x")]);
        assert!(text.starts_with("OMPI_COMM_WORLD_RANK=x: not a number"), "{text}");
        let text = message(&[("PMIX_RANK", "0")]);
        assert!(text.contains("SLURM_STEP_NUM_TASKS"), "{text}");
        let text = message(&[("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "1")]);
        assert!(text.contains("4 tasks") && text.contains("--mpi=pmix"), "{text}");
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "1")]), Ok(None));
    }

    #[test]
    fn slurm_counts_the_tasks_of_each_node() {
        let list = "2(x2),8";
        assert_eq!([0, 1, 2, 3].map(|node| tasks_of_node(list, node)), [Some(2), Some(2), Some(8), None]);
        assert_eq!(tasks_of_node("2(x", 0), None);
    }
}
