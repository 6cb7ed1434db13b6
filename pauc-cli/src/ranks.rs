//! The ranks of a command that a launcher such as `mpirun` has started several times.

use crate::args::Command;
use crate::device::{self, Identity};
use crate::{Failure, console};
use pauc::distributed::{Alone, Communicator, Disagreement, Launcher, LauncherError, Mpi, agree};
use pauc::train::plan::Plan;
use pauc::train::saved_run::SavedRun;
use pauc::train::trainer::check_ranks;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How long other ranks wait for the first one to print and end them; a launcher takes a second or two.
const PATIENCE: Duration = Duration::from_secs(3);

/// The start of an error that rank 0 prints itself.
const OF_FIRST: &str = "error: rank 0: ";

/// What a verb does if it is started on several ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All ranks work together.
    Together,
    /// Rank 0 works, and the others end.
    First,
    /// It is an error, with this remedy.
    Refused(&'static str),
}

impl Command {
    /// Returns what this verb does on several ranks.
    fn part(&self) -> Part {
        match self {
            Command::Run(_)
            | Command::Resume(_)
            | Command::Reproduce(_)
            | Command::Eval(_)
            | Command::Embed(_)
            | Command::Cluster(_) => Part::Together,
            Command::Sweep(_) => Part::Refused(
                "`sweep` starts a process for each of its runs; start it without the launcher, or train each run on \
                 several ranks with `run`",
            ),
            _ => Part::First,
        }
    }

    /// Returns whether this verb only prints, so that it may be done several times at once.
    fn only_prints(&self) -> bool {
        matches!(
            self,
            Command::Check(_)
                | Command::Compare(_)
                | Command::Completions(_)
                | Command::Devices(_)
                | Command::Explain(_)
                | Command::List(_)
                | Command::Tail(_)
        )
    }
}

/// The phase of a command that several ranks work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Ranks wait for each other in [`Ranks::compare`] only, so each failure is made known to all.
    Starting,
    /// Ranks wait for each other anywhere, so a failure aborts all.
    Working,
    /// All know of a failure.
    Failed,
}

/// The ranks of this command: this process alone, or those of a launcher.
pub struct Ranks {
    mpi: Option<Arc<Mpi>>,
    phase: Cell<Phase>,
    /// The number of this rank among those of its machine.
    local_rank: usize,
    /// This rank's device.
    device: RefCell<Identity>,
}

/// A verb and the ranks that it works on.
pub struct OnRanks<'r, V> {
    /// The verb's arguments.
    pub verb: V,
    /// The ranks.
    pub ranks: &'r Ranks,
}

/// A fact that has to be the same on all ranks, and what to do if it is not.
struct Fact {
    name: &'static str,
    /// Its value on this rank.
    value: String,
    remedy: &'static str,
}

/// Returns the facts about this process on which the numbers of runs depend.
fn facts_of_process() -> Vec<Fact> {
    let arguments = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    vec![
        Fact {
            name: "version of pauc",
            value: env!("CARGO_PKG_VERSION").into(),
            remedy: "install the same version everywhere",
        },
        Fact {
            name: "command line",
            value: arguments.collect::<Vec<_>>().join(" "),
            remedy: "start all ranks alike",
        },
        Fact {
            name: "instruction set",
            value: pauc::kernels::simd::Simd::active().name().into(),
            remedy: "results depend on it; set PAUC_SIMD to one that all machines have",
        },
    ]
}

/// Returns the facts about a run on which its numbers depend.
fn facts_of_run(plan: &Plan) -> [Fact; 2] {
    let data = plan.data_identity();
    let splits = std::iter::once(&data.train).chain(&data.test);
    let hashes = splits.flat_map(|split| [Some(&*split.content), split.labels.as_deref()]).flatten();
    let hashes: Vec<&str> = hashes.map(|hash| hash.get(..8).unwrap_or(hash)).collect();
    let (recipe, hash) = (&plan.recipe, &plan.hash);
    [
        Fact {
            name: "recipe",
            value: format!("`{}` with hash {hash} and seed {}", &*recipe.name, recipe.train.seed),
            remedy: "copy one recipe to all machines",
        },
        Fact {
            name: "data",
            value: format!("{} with hashes {}", plan.splits.description, hashes.join(", ")),
            remedy: "give all ranks the same data",
        },
    ]
}

/// Returns the launcher of this process, if it has started several ranks. From now on, only the first one prints.
pub fn launcher(command: &Command) -> Result<Option<Launcher>, Failure> {
    match Launcher::detect() {
        Ok(found) => {
            let several = found.filter(|launcher| launcher.size > 1);
            if several.as_ref().is_some_and(|launcher| launcher.rank > 0) {
                console::silence();
            }
            Ok(several)
        }
        // This verb needs no other rank, but tasks that cannot find each other would all write the same files.
        Err(e) if command.part() == Part::First => match e {
            LauncherError::SlurmWithoutPmi(_) if !command.only_prints() => Err(refused(&e)),
            _ => Ok(None),
        },
        Err(e) => Err(refused(&e)),
    }
}

fn refused(e: &LauncherError) -> Failure {
    Failure::new(2, format!("error: {e}"))
}

/// Returns how many ranks share this machine while a command works.
pub fn sharing(launcher: Option<&Launcher>, command: &Command) -> usize {
    match launcher {
        Some(launcher) if command.part() == Part::Together => launcher.local_size.unwrap_or(1),
        _ => 1,
    }
}

/// Executes a command on this rank as the launcher and the verb ask.
pub fn execute(
    launcher: Option<Launcher>,
    command: Command,
    execute: impl FnOnce(Command, &Ranks) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let Some(launcher) = launcher else { return execute(command, &Ranks::alone()) };
    match command.part() {
        Part::First if launcher.rank == 0 => execute(command, &Ranks::alone()),
        Part::First => Ok(ExitCode::SUCCESS),
        Part::Refused(why) => {
            // A launcher may kill all ranks when one fails, so the others end well: rank 0 still has to print.
            if launcher.rank > 0 {
                return Ok(ExitCode::SUCCESS);
            }
            Err(Failure::new(2, format!("error: {} ranks were started, but {why}", launcher.size)))
        }
        Part::Together => {
            let mpi = Mpi::start(&launcher).map_err(|e| {
                // All ranks of a machine have the same error. The launcher may kill them when the first one ends.
                let prints = launcher.local_rank.is_none_or(|rank| rank == 0);
                if !prints {
                    std::thread::sleep(PATIENCE);
                }
                let message = named(&name_of(launcher.rank), &format!("error: {e}"));
                Failure::new(1, if prints { message } else { String::new() })
            })?;
            let ranks = Ranks {
                mpi: Some(Arc::new(mpi)),
                phase: Cell::new(Phase::Starting),
                local_rank: launcher.local_rank.unwrap_or(launcher.rank),
                device: RefCell::default(),
            };
            ranks.execute(command, execute)
        }
    }
}

/// Returns the name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    name.map_or_else(|| "an unnamed host".into(), |name| name.trim().to_string())
}

fn name_of(rank: usize) -> String {
    format!("rank {rank} on {}", host())
}

impl Ranks {
    fn alone() -> Self {
        Ranks { mpi: None, phase: Cell::new(Phase::Working), local_rank: 0, device: RefCell::default() }
    }

    /// Returns what connects the ranks.
    pub fn communicator(&self) -> Arc<dyn Communicator> {
        match &self.mpi {
            Some(mpi) => mpi.clone(),
            None => Arc::new(Alone),
        }
    }

    /// Returns whether a launcher has started several ranks that work together.
    pub fn are_several(&self) -> bool {
        self.mpi.is_some()
    }

    /// Returns whether this is rank 0, which prints and writes.
    pub fn is_first(&self) -> bool {
        self.communicator().rank() == 0
    }

    /// Returns the device of this rank, given that of the command line.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn device(&self, name: &str) -> Result<String, Failure> {
        if !self.are_several() {
            return Ok(name.into());
        }
        let own = device::of_rank(name, self.local_rank);
        self.device.replace(device::identity(&own)?);
        Ok(own)
    }

    /// Returns the device on which this rank continues a run that rank 0 began on the device `name`.
    pub fn device_of_run(&self, name: &str) -> String {
        let each_has_its_own = self.are_several() && name.starts_with("cuda");
        if each_has_its_own { "cuda".into() } else { name.into() }
    }

    /// Lets the ranks train a plan together.
    ///
    /// # Errors
    /// If the number of ranks does not divide the plan's shards.
    pub fn share(&self, plan: Plan) -> Result<Plan, Failure> {
        let communicator = self.communicator();
        check_ranks(communicator.size(), plan.recipe.train.shards.get()).map_err(Failure::of_request)?;
        Ok(plan.with_communicator(communicator))
    }

    /// Checks that several ranks use the CPU, for a verb that cannot use several GPUs.
    ///
    /// # Errors
    /// If there are several ranks, and the device is not the CPU.
    pub fn check_device(&self, device: &str) -> Result<(), Failure> {
        if self.are_several() && device != "cpu" {
            let message = format!(
                "error: several ranks cannot cluster on {device}: use `--device cpu`, or start one rank"
            );
            return Err(Failure::new(2, message));
        }
        Ok(())
    }

    /// Executes a command, and ends the communication as its result asks.
    fn execute(
        &self,
        command: Command,
        execute: impl FnOnce(Command, &Ranks) -> Result<ExitCode, Failure>,
    ) -> Result<ExitCode, Failure> {
        let communicator = self.communicator();
        let name = name_of(communicator.rank());
        name_panics(name.clone());
        // Ranks with different command lines would wait for each other at different places.
        let work = || self.agree(facts_of_process()).and_then(|()| execute(command, self));
        let result = catch_unwind(AssertUnwindSafe(work));
        // The hook has printed the message.
        let result = result.unwrap_or_else(|_| communicator.abort(101));
        let failure = match result {
            Ok(code) => {
                self.finish()?;
                return Ok(code);
            }
            Err(failure) => match self.phase.get() {
                Phase::Starting => {
                    self.make_known(Some(failure)).err().unwrap_or_else(|| Failure::new(1, ""))
                }
                Phase::Failed => failure,
                Phase::Working => abort(&*communicator, &name, failure),
            },
        };
        failure.print();
        // The launcher kills all ranks when one has failed, so none ends before every message is printed.
        communicator.barrier().map_err(communication)?;
        self.finish()?;
        Err(Failure { message: String::new(), ..failure })
    }

    fn finish(&self) -> Result<(), Failure> {
        self.mpi.as_ref().map_or(Ok(()), |mpi| mpi.finish()).map_err(communication)
    }

    /// Lets all ranks know whether this one has failed.
    ///
    /// # Errors
    /// If any rank has failed. The message is empty where another rank prints it.
    fn make_known(&self, failure: Option<Failure>) -> Result<(), Failure> {
        let communicator = self.communicator();
        let own = failure.as_ref().map(|f| [&[f.code], f.message.as_bytes()].concat()).unwrap_or_default();
        let all = communicator.all_gather_messages(&own).map_err(communication)?;
        let Some(first) = all.iter().position(|message| !message.is_empty()) else { return Ok(()) };
        self.phase.set(Phase::Failed);
        let code = all[first][0];
        let rank = communicator.rank();
        let is_common = all.iter().all(|message| *message == all[0]);
        Err(match failure {
            Some(failure) if is_common && rank == 0 => failure,
            Some(failure) if !is_common => Failure { code, message: named(&name_of(rank), &failure.message) },
            _ => Failure { code, message: String::new() },
        })
    }

    /// Does `work` on rank 0, then on the others. Rank 0 may repair files, which the others only read.
    ///
    /// # Errors
    /// That of `work`, or another rank's.
    pub fn first_then_others<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        if self.communicator().rank() > 0 {
            self.make_known(None)?;
            return work();
        }
        let result = work();
        if result.is_ok() {
            self.make_known(None)?;
        }
        result
    }

    /// Does `work` on rank 0 only, before ranks are compared.
    ///
    /// # Errors
    /// That of `work`, or another rank's.
    pub fn on_first<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<(), Failure> {
        self.first_then_others(|| if self.is_first() { work().map(drop) } else { Ok(()) })
    }

    /// Waits until all ranks have planned their runs, and compares what their numbers depend on. From then on they work
    /// together.
    ///
    /// # Errors
    /// If a rank has failed, or something differs.
    pub fn compare<'p>(&self, plans: impl IntoIterator<Item = &'p Plan>) -> Result<(), Failure> {
        self.begin(|| plans.into_iter().flat_map(facts_of_run).collect())?;
        if !self.device.borrow().unique.is_empty() {
            device::warn_of_missing_transfers();
        }
        Ok(())
    }

    /// Compares a saved run between the ranks, and then lets them work on it together.
    ///
    /// # Errors
    /// If a rank has failed, or something differs.
    pub fn share_saved(&self, mut saved: SavedRun) -> Result<SavedRun, Failure> {
        saved.plan = saved.plan.with_communicator(self.communicator());
        let weights = saved.weights.get(..8).unwrap_or_default().to_string();
        let remedy = "give all ranks the same folder of the run";
        let checkpoint = Fact { name: "hash of the checkpoint", value: weights, remedy };
        self.begin(|| facts_of_run(&saved.plan).into_iter().chain([checkpoint]).collect())?;
        Ok(saved)
    }

    /// Waits until all ranks are ready, and compares facts. From then on they work together.
    fn begin(&self, facts: impl FnOnce() -> Vec<Fact>) -> Result<(), Failure> {
        if self.are_several() {
            self.make_known(None)?;
            let Identity { model, unique } = self.device.borrow().clone();
            let remedy = "devices of different models round differently; use one model, or `--device cpu`";
            let device = Fact { name: "device", value: model, remedy };
            self.agree(std::iter::once(device).chain(facts()).collect())?;
            self.warn_of_shared_gpus(&unique)?;
            self.phase.set(Phase::Working);
        }
        Ok(())
    }

    /// Warns if two ranks have the same GPU.
    fn warn_of_shared_gpus(&self, own: &[u8]) -> Result<(), Failure> {
        let mut all = self.communicator().all_gather_messages(own).map_err(communication)?;
        let ranks = all.len();
        all.sort();
        all.dedup();
        if !own.is_empty() && all.len() < ranks {
            let gpus = if all.len() == 1 { "one GPU".into() } else { format!("{} GPUs", all.len()) };
            errln!("warning: {ranks} ranks share {gpus}, and gradients pass through the memory of the host");
        }
        Ok(())
    }

    /// Checks that facts are the same on all ranks.
    fn agree(&self, facts: Vec<Fact>) -> Result<(), Failure> {
        let communicator = self.communicator();
        let hosts = communicator.all_gather_messages(host().as_bytes()).map_err(communication)?;
        let values: Vec<_> = facts.iter().map(|fact| (fact.name, fact.value.clone())).collect();
        let Some(found) = agree(&*communicator, &values).map_err(communication)? else { return Ok(()) };
        self.phase.set(Phase::Failed);
        let remedy = facts.iter().find(|fact| fact.name == found.fact).map_or("", |fact| fact.remedy);
        let message =
            if communicator.rank() == 0 { difference(&found, &hosts, remedy) } else { String::new() };
        Err(Failure::new(2, message))
    }
}

/// Prints a failure while ranks work together, and ends all of them.
fn abort(communicator: &dyn Communicator, name: &str, failure: Failure) -> ! {
    let code = failure.code;
    // If all ranks fail alike, as after a failed write, rank 0 ends the others before they repeat its message.
    if communicator.rank() > 0 {
        std::thread::sleep(PATIENCE);
    }
    if !failure.message.starts_with(OF_FIRST) {
        Failure { message: named(name, &failure.message), ..failure }.print();
    }
    communicator.abort(code)
}

fn communication(e: impl std::fmt::Display) -> Failure {
    Failure::new(1, format!("error: {e}"))
}

fn difference(found: &Disagreement, hosts: &[Vec<u8>], remedy: &str) -> String {
    let Disagreement { fact, rank, first, other } = found;
    let host = |rank: usize| String::from_utf8_lossy(&hosts[rank]).into_owned();
    format!(
        "error: the {fact} of rank {rank} on {} is {other}, but that of rank 0 on {} is {first}; {remedy}",
        host(*rank),
        host(0)
    )
}

/// Adds the name of a rank to an error's message.
fn named(name: &str, message: &str) -> String {
    match message.strip_prefix("error: ") {
        Some(message) => format!("error: {name}: {message}"),
        None => format!("error: {name}:\n{message}"),
    }
}

/// Lets the message of a panic begin with the name of the rank.
fn name_panics(name: String) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        console::complain(format_args!("error: {name}:\n"));
        print(panic);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_rank() {
        assert_eq!(named("rank 3 on node7", "error: no data"), "error: rank 3 on node7: no data");
        let diagnostic = "error[E0103]: a typo\n --> recipe";
        assert_eq!(named("rank 1 on a", diagnostic), format!("error: rank 1 on a:\n{diagnostic}"));
        let found = Disagreement { fact: "version", rank: 2, first: "0.2".into(), other: "0.3".into() };
        let hosts = ["a", "b", "c"].map(|host| host.as_bytes().to_vec());
        let text = difference(&found, &hosts, "install one version");
        let expected =
            "error: the version of rank 2 on c is 0.3, but that of rank 0 on a is 0.2; install one version";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_process_alone_compares_nothing() {
        let ranks = Ranks::alone();
        assert!(ranks.compare([]).is_ok());
        assert_eq!(ranks.first_then_others(|| Ok(3)).unwrap_or_default(), 3);
        assert_eq!(ranks.communicator().size(), 1);
    }
}
